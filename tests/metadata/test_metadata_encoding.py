"""Records to bytes and back; damage is always found."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from metadata.encoding import (
    decode_cluster,
    decode_log,
    decode_node,
    encode_cluster,
    encode_log,
    encode_node,
)
from metadata.errors import MetadataCorrupt
from metadata.records import ClusterRecord, LogRecord, NodeRecord, Replica, Segment
from metadata.store import Entry, Version
from sharedlog.checksum import crc32c
from sharedlog.ids import Generation, LogId, NodeId, Offset, SequencerId, StorageId
from sharedlog.retention import NO_RETENTION, Retention
from sharedlog.rpc.errors import error_from_proto, error_to_proto

NODE = NodeRecord(
    node_id=NodeId("n1"),
    generation=Generation(3),
    storage_id=StorageId("ab" * 16),
    address="127.0.0.1:4100",
    http_address="",
    location="zone-ä",
    roles=("log-server", "sequencer"),
)
LOG = LogRecord(
    log_id=LogId(2**64 - 1),
    name="orders/eu",
    replicas=1,
    write_quorum=1,
    created_ms=1_795_000_000_000,
    create_nonce="n",
    chain=(
        Segment(
            index=0,
            base=Offset(0),
            end=Offset(2**63),
            sequencer=SequencerId(NodeId("n1"), Generation(3)),
            nodeset=(Replica(node_id=NodeId("n1"), storage_id=StorageId("s"), location="z"),),
            write_quorum=1,
        ),
        Segment(
            index=1,
            base=Offset(2**63),
            sequencer=SequencerId(NodeId("n1"), Generation(4)),
            nodeset=(Replica(node_id=NodeId("n1"), storage_id=StorageId("s")),),
            write_quorum=1,
        ),
    ),
)


def entry(key: str, value: bytes) -> Entry:
    return Entry(key, value, Version(1))


def sealed(key: str, body: bytes) -> Entry:
    """A value as a writer of another version might have made it."""
    return entry(key, b"%08x " % crc32c(key.encode() + body) + body)


def test_records_come_back_as_they_were() -> None:
    cluster = ClusterRecord(cluster_id="c" * 32, created_ms=5)
    assert decode_cluster(entry("cluster", encode_cluster(cluster))) == cluster
    assert decode_node(entry("nodes/n1", encode_node(NODE))) == NODE
    assert decode_log(entry("logs/orders/eu", encode_log(LOG))) == LOG


def test_what_most_logs_lack_costs_them_nothing_and_may_be_missing() -> None:
    """Of what is archived and kept; a log of an earlier build has none of it."""
    plain = encode_log(LOG)
    for word in (b"start", b"trimmed", b"archived", b"retention"):
        assert word not in plain
    assert decode_log(entry("logs/orders/eu", plain)).retention is NO_RETENTION
    full = replace(
        LOG,
        start=Offset(1),
        trimmed=Offset(2**62),
        archived_end=Offset(2**63),
        retention=Retention(local_bytes=10**12, total_age_s=60),
    )
    assert decode_log(entry("logs/orders/eu", encode_log(full))) == full
    assert json.loads(encode_log(full)[9:])["retention"] == {
        "local_bytes": 10**12,
        "total_age_s": 60,
    }


def test_a_value_is_a_line_that_a_person_can_read() -> None:
    checksum, _, body = encode_node(NODE).partition(b" ")
    assert int(checksum, 16) == crc32c(b"nodes/n1" + body)
    assert json.loads(body)["address"] == "127.0.0.1:4100"
    assert b"\n" not in body


def test_every_flipped_bit_is_found() -> None:
    """Field note 24: a damaged value is a typed error that names its key, never a wrong record."""
    value = encode_node(NODE)
    for index in range(len(value)):
        for bit in range(8):
            damaged = bytearray(value)
            damaged[index] ^= 1 << bit
            with pytest.raises(MetadataCorrupt, match="nodes/n1"):
                decode_node(entry("nodes/n1", bytes(damaged)))


def test_every_cut_is_found() -> None:
    value = encode_node(NODE)
    for length in range(len(value)):
        with pytest.raises(MetadataCorrupt):
            decode_node(entry("nodes/n1", value[:length]))


def test_a_value_under_another_key_is_found() -> None:
    with pytest.raises(MetadataCorrupt):
        decode_node(entry("nodes/n2", encode_node(NODE)))


def test_fields_of_a_newer_version_are_skipped() -> None:
    body = json.loads(encode_node(NODE)[9:]) | {"colour": {"deep": [1]}}
    found = decode_node(sealed("nodes/n1", json.dumps(body).encode()))
    assert found == NODE


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b'{"node_id": 5}', b"\xff"])
def test_what_is_no_record_is_corrupt(body: bytes) -> None:
    with pytest.raises(MetadataCorrupt):
        decode_node(sealed("nodes/n1", body))


def test_a_log_without_a_segment_is_corrupt() -> None:
    body = json.loads(encode_log(LOG)[9:]) | {"chain": []}
    with pytest.raises(MetadataCorrupt, match="no segment"):
        decode_log(sealed("logs/orders/eu", json.dumps(body).encode()))


def test_the_error_travels_with_its_key() -> None:
    error = error_from_proto(error_to_proto(MetadataCorrupt("damaged", key="nodes/n1")))
    assert isinstance(error, MetadataCorrupt)
    assert error.key == "nodes/n1"
    assert str(error) == "nodes/n1: damaged"
