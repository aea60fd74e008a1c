"""The tools for emergencies: what is shown, what is taken, and which store is meant."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.memory_metadata import MemoryMetadata

from metadata import tools
from metadata.core import Load, new_log_record
from metadata.emergency import check_value_of, diff_of, line_of, value_from
from metadata.encoding import (
    cursor_key,
    encode_cluster,
    encode_cursor,
    encode_lease,
    encode_log,
    encode_namespace,
    encode_node,
)
from metadata.moved import moved_to
from metadata.records import (
    ClusterRecord,
    CursorRecord,
    LeaseRecord,
    NamespaceRecord,
    NodeRecord,
)
from metadata.store import ABSENT, Entry, Version
from metadata.tool_settings import load_settings
from sharedlog.errors import InvalidArgument
from sharedlog.ids import Generation, LogId, NodeId, Offset, StorageId

NODE = NodeRecord(
    node_id=NodeId("n1"),
    generation=Generation(1),
    storage_id=StorageId("s"),
    address="h:1",
    http_address="",
    location="",
    roles=("log-server", "sequencer"),
)
LOG = new_log_record(
    name="a/b",
    log_id=LogId(7),
    replicas=1,
    write_quorum=1,
    alive=[NODE],
    load=Load(),
    created_ms=1,
    create_nonce="",
)
VALUES = {
    "cluster": encode_cluster(ClusterRecord(cluster_id="c", created_ms=1)),
    "controller": encode_lease(LeaseRecord(holder=NodeId("n1"), nonce="n", counter=1, ttl_ms=1)),
    "nodes/n1": encode_node(NODE),
    "logs/a/b": encode_log(LOG),
    "namespaces/t/": encode_namespace(NamespaceRecord(prefix="t/", changed_ms=1, change_nonce="n")),
    cursor_key(LogId(7), "c"): encode_cursor(
        CursorRecord(
            log_id=LogId(7),
            name="c",
            position=Offset(0),
            epoch=1,
            owner="o",
            owner_name="",
            changed_ms=1,
        )
    ),
}


@pytest.mark.parametrize("key", VALUES)
def test_values_of_each_family_are_taken(key: str) -> None:
    """As nodes write them; their JSON alone gets the checksum that it lacks."""
    value = VALUES[key]
    assert check_value_of(key, value) == ""
    assert value_from(key, value + b"\n") == value
    assert value_from(key, value[9:] + b"\n") == value


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("nodes/n2", VALUES["nodes/n1"][9:], "it is the value of the key nodes/n1"),
        ("logs/b", VALUES["logs/a/b"][9:], "it is the value of the key logs/a/b"),
        ("nodes/n1", VALUES["nodes/n1"].replace(b"h:1", b"h:2"), "does not match its checksum"),
        ("logs/a", b"{}", "the value can't be read"),
        ("nodes/n1", b"garbage", "does not match its checksum"),
        ("logs/a/b", encode_log(replace(LOG, write_quorum=2))[9:], "can't be had from 1 replicas"),
    ],
)
def test_what_a_node_could_not_use_is_refused(key: str, value: bytes, words: str) -> None:
    assert words in check_value_of(key, value_from(key, value))


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("other", b"{}", "no key of a cluster begins like that"),
        ("cluster", moved_to("s3://b/p", b"x"), "says that the cluster is being moved"),
    ],
)
def test_what_nobody_can_check(key: str, value: bytes, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        check_value_of(key, value)


def test_a_diff_is_of_what_the_values_say() -> None:
    """Laid out, without the checksums; of what is no JSON, line by line."""
    lines = diff_of(VALUES["nodes/n1"], encode_node(replace(NODE, location="eu")))
    assert [line for line in lines[3:] if line[0] in "+-"] == [
        '-  "location": "",',
        '+  "location": "eu",',
    ]
    assert diff_of(VALUES["nodes/n1"], VALUES["nodes/n1"]) == []
    assert diff_of(None, b"a")[-1] == "+a"
    assert diff_of(b"\xff{", b"a{")[-2:] == [r"-\xff{", "+a{"]


def test_a_line_of_a_dump_has_all_of_it() -> None:
    assert line_of(Entry("k", b"v", Version(3))) == {"key": "k", "version": 3, "value": "v"}
    assert line_of(Entry("k", b"\xff", Version(3)))["value_base64"] == "/w=="


def test_settings_come_from_a_node_s_file_and_variables(tmp_path: Path) -> None:
    """A variable beats the file; what else the file has is not looked at."""
    path = tmp_path / "node.toml"
    path.write_text('node_id = "n1"\nmetadata = "s3://b/p"\n[metadata_s3]\nregion = "eu-1"\n')
    url, settings = load_settings(path, {"SHAREDLOG_METADATA_S3__TIMEOUT_S": "7"})
    assert (url, settings.s3.region, settings.s3.timeout_s) == ("s3://b/p", "eu-1", 7.0)
    assert load_settings(path, {"SHAREDLOG_METADATA": "etcd://h:1/p"})[0] == "etcd://h:1/p"
    assert load_settings(None, {})[0] == ""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("metadata = 3", "metadata: a URL is needed"),
        ("metadata_s3 = 3", "metadata_s3: it is a section"),
        ("[metadata_s3]\nbucket = 'b'", "metadata_s3.bucket: there is no such setting"),
        ("[metadata_s3]\ntimeout_s = 'x'", "metadata_s3: Expected `float`"),
        ("[metadata_etcd]\nuser = 'x'", "metadata_etcd: user and password_file belong together"),
        ("[", "node.toml: "),
    ],
)
def test_settings_that_can_not_be_right(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "node.toml"
    path.write_text(text)
    with pytest.raises(InvalidArgument) as refused:
        load_settings(path, {})
    assert words in str(refused.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"can't read .*: No such file"):
        load_settings(tmp_path / "node.toml", {})


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("dump", 2, "which metadata store"),
        ("dump --metadata x://y", 2, "metadata URL 'x://y': the forms are"),
        ("migrate --from s3://buck/p --to s3://buck/p/", 2, "--from and --to are the same store"),
        ("put k --expect-version 1 --metadata embedded://h:1 --file /nowhere", 1, "No such file"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: str,
    code: int,
    said: str,
) -> None:
    monkeypatch.delenv("SHAREDLOG_METADATA", raising=False)
    assert tools.main(words.split()) == code
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("error: ")
    assert said in err


@pytest.mark.parametrize("key", ["cluster", "nodes/n1", "logs/a/b"])
async def test_nothing_is_put_into_a_store_that_was_left(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Least of all what would let nodes start on it again, beside those on the other one."""
    store = MemoryMetadata()
    versions = {
        it: await store.put(it, moved_to("s3://bucket/p", VALUES[it]), expected=ABSENT)
        for it in ("cluster", "nodes/n1")
    }
    before = dict(store.entries)
    monkeypatch.setattr(tools, "open_metadata_store", lambda *_, **__: store)
    (tmp_path / "value").write_bytes(VALUES[key])
    words = ["put", key, "--metadata", "embedded://h:1", "--file", str(tmp_path / "value")]
    words += ["--expect-version", str(versions.get(key, ABSENT))]
    assert await asyncio.to_thread(tools.main, words) == 1
    assert "was moved to s3://bucket/p" in capsys.readouterr().err
    assert store.entries == before
    assert await asyncio.to_thread(tools.main, [*words, "--unchecked"]) == 0
