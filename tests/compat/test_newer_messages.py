"""What a newer version says beyond what this one knows is skipped, on the wire and in stores."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from helpers.memory_metadata import MemoryMetadata
from helpers.recorded import known_methods, recorded_messages

from loglet.archive.manifest_codec import decode_manifest
from metadata.encoding import decode_log, decode_node, encode_log, log_key
from metadata.records import LogRecord
from metadata.registry import change_log, set_node_state
from metadata.store import ABSENT, Entry, Version
from sharedlog.checksum import crc32c
from sharedlog.cli.views import view_digest, view_finding, view_status
from sharedlog.errors import ProtocolError
from sharedlog.ids import NodeId
from sharedlog.rpc.errors import error_from_proto
from sharedlog.rpc.grpc_client import error_of_status
from sharedlog.v1 import admin_pb2, cluster_pb2, types_pb2
from tools.compat_forms import FORMS
from tools.compat_messages import message_class, message_types, methods

NUMBER = b"\xf0\x93\x09\x07"  # field 19,006, a varint: 7
TEXT = b"\xfa\x93\x09\x03new"  # field 19,007, bytes
BY_NAME = {form.name: form for form in FORMS}


def example(name: str) -> bytes:
    return BY_NAME[name].encode()


def resealed(key: str, value: bytes, change: Callable[[Any], None]) -> Entry:
    """The record with what a newer version would have written besides, its checksum right."""
    body = json.loads(value[9:])
    change(body)
    changed = json.dumps(body).encode()
    return Entry(key, b"%08x %s" % (crc32c(changed, crc32c(key.encode())), changed), Version(1))


def add_field(body: Any) -> None:
    body["colour"] = {"deep": [1, None, "x"]}


def test_further_fields_of_a_message_are_skipped() -> None:
    """In every message that was recorded, at its top and within: the rest means what it meant."""
    types = message_types()
    for name, path in recorded_messages():
        data = path.read_bytes()
        plain = message_class(types[name]).FromString(data)
        more = message_class(types[name]).FromString(data + NUMBER + TEXT)
        more.DiscardUnknownFields()  # protobuf keeps them
        assert more == plain, path.name


def test_further_fields_do_not_reach_what_is_made_of_a_message() -> None:
    """Methods whose messages are taken apart by hand."""
    recorded = {name: path.read_bytes() for name, path in recorded_messages()}
    for name, method in known_methods().items():
        request, response = methods()[name]
        for message, decode in (
            (request.name, method.decode_request),
            (response.name, method.decode_response),
        ):
            plain = decode(recorded[message])
            if not isinstance(plain, Message):
                more = decode(NUMBER + recorded[message] + TEXT)
                assert repr(more) == repr(plain), name


def test_values_of_enums_that_are_not_known_are_shown_all_the_same() -> None:
    """As something that is not known, never as an error."""
    status = cluster_pb2.GetStatusResponse(
        problems=[cluster_pb2.Problem(severity=77, subject="node n1", message="new")]  # type: ignore[arg-type]
    )
    assert view_status(status)["problems"][0]["severity"] == "warning"
    finding = admin_pb2.CheckFinding(kind=77, message="new")  # type: ignore[arg-type]
    assert view_finding(finding)["kind"] == "unknown"
    part = admin_pb2.DigestRange(holdings=[77])  # type: ignore[list-item]
    digest = view_digest(admin_pb2.DigestLogResponse(ranges=[part]))
    assert digest["ranges"][0]["holdings"] == ["unknown"]


def test_an_error_of_a_newer_version_keeps_its_name_and_text() -> None:
    """And is taken for one that proves nothing."""
    error = error_from_proto(types_pb2.Error(kind="TooPurple", message="it is", fields={"a": "1"}))
    assert isinstance(error, ProtocolError)
    assert str(error) == "TooPurple: it is"


def test_a_method_that_the_peer_does_not_know_is_no_reason_to_try_again() -> None:
    """An older node answers so; whoever can do without it goes on, others say it in one line."""
    status = grpc.StatusCode.UNIMPLEMENTED
    error = error_of_status("n1:1", status, "Method not found!")
    assert isinstance(error, ProtocolError)
    assert not error.retryable
    assert "n1:1" in str(error)
    assert "Method not found!" in str(error)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("metadata-cluster", "cluster"),
        ("metadata-controller", "controller"),
        ("metadata-node", "nodes/n1"),
        ("metadata-log", "logs/team/orders"),
        ("metadata-namespace", "namespaces/team/"),
        ("metadata-cursor", "cursors/fedcba9876543210/billing"),
        ("archive-manifest", "cluster/log/manifest"),
    ],
)
def test_further_fields_of_a_record_are_skipped(name: str, key: str) -> None:
    data = example(name)
    changed = resealed(key, data, add_field).value
    assert changed != data
    assert BY_NAME[name].read(changed) == BY_NAME[name].read(data)


def test_further_elements_of_segments_and_entries_are_skipped() -> None:
    """Rows of a chain are arrays with an object at their end; entries of a manifest are arrays."""

    def longer_rows(body: Any) -> None:
        for row in body["chain"]["segments"]:
            row.extend([{}] if len(row) == 6 else [])
            row[6]["colour"] = "red"
            row.append("more")
        body["chain"]["tables"] = []

    def longer_entries(body: Any) -> None:
        for entry in (*body["entries"], *body["pages"]):
            entry.append("more")

    key = log_key("team/orders")
    plain = Entry(key, example("metadata-log"), Version(1))
    assert decode_log(resealed(key, plain.value, longer_rows)) == decode_log(plain)
    key, data = "cluster/log/manifest", example("archive-manifest")
    changed = resealed(key, data, longer_entries).value
    assert decode_manifest(key, changed) == decode_manifest(key, data)


async def test_a_record_that_is_written_anew_loses_what_is_not_known() -> None:
    """As docs/compatibility.md says, which draws the rule from it: what must not get lost is not
    written before every node knows it."""
    store = MemoryMetadata()
    newer = resealed("nodes/n1", example("metadata-node"), add_field)
    await store.put("nodes/n1", newer.value, expected=ABSENT)
    await set_node_state(store, NodeId("n1"), "read-write")
    entry = await store.get("nodes/n1")
    assert entry is not None
    assert b"colour" not in entry.value
    assert decode_node(entry).generation == 7
    key = log_key("team/orders")
    newer = resealed(key, example("metadata-log"), add_field)
    version = await store.put(key, newer.value, expected=ABSENT)
    record: LogRecord = decode_log(newer)
    await change_log(store, record, record, expected=version)
    entry = await store.get(key)
    assert entry is not None
    assert entry.value == encode_log(record)
