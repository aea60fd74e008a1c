"""The forms that are stored: an example of each as bytes, and how the present version reads them.

An example is recorded once by each version (`record_messages.py`) and read by every later one
(`tests/compat/test_recorded.py`). To a form that changes, a further example is added under another
name; those that are here stay as they are.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from google.protobuf import text_format

from loglet.archive.manifest import LogSettings, Manifest, ObjectEntry, PageEntry
from loglet.archive.manifest_codec import (
    decode_manifest,
    decode_page,
    encode_manifest,
    encode_page,
)
from loglet.archive.object_format import (
    ObjectBuilder,
    decode_footer,
    decode_index,
    split_block,
)
from loglet.keys import (
    Identity,
    decode_identity,
    decode_loglet,
    encode_identity,
    encode_loglet,
    loglet_key,
)
from loglet.store import PutLoglet
from metadata import encoding
from metadata.records import (
    ClusterRecord,
    CursorRecord,
    LeaseRecord,
    LogRecord,
    LostRange,
    NamespaceRecord,
    NodeRecord,
    Replica,
    Segment,
)
from metadata.store import Entry, Version
from sharedlog.batch import (
    KIND_CONTROL,
    BatchBuilder,
    BatchProducer,
    Placement,
    check_batch,
    check_placed,
    decode_placed,
    parse_batch_header,
    place_batch,
)
from sharedlog.control import decode_control, encode_control
from sharedlog.ids import Generation, LogId, LogletId, NodeId, Offset, SequencerId, StorageId
from sharedlog.retention import Retention
from sharedlog.v1 import control_pb2

TIME_MS: Final = 1_795_000_000_000
LOG_ID: Final = LogId(0xFEDC_BA98_7654_3210)
LOGLET: Final = LogletId(LOG_ID, 3)
CLUSTER_ID: Final = "0123456789abcdef" * 2
_SEQUENCER: Final = SequencerId(NodeId("n1"), Generation(7))
_MANIFEST_KEY: Final = "cluster/log/manifest"
_PAGE_KEY: Final = "cluster/log/page"
_STORES: Final = {name: StorageId(name.encode().hex() * 8) for name in ("n1", "n2", "n3")}


@dataclass(frozen=True, slots=True)
class StoredForm:
    """One form: an example as this version writes it, and what its bytes mean, as plain values."""

    name: str
    encode: Callable[[], bytes]
    read: Callable[[bytes], Any]

    def text(self, data: bytes) -> str:
        """What the bytes mean, for people."""
        return json.dumps(self.read(data), indent=1, ensure_ascii=False) + "\n"


def _replica(name: str) -> Replica:
    return Replica(node_id=NodeId(name), storage_id=_STORES[name], location=f"eu.zone-{name[1]}")


NODESET: Final = tuple(map(_replica, _STORES))
PRODUCER: Final = BatchProducer(producer_id=0x1122_3344_5566_7788, epoch=2, sequence=40)


def _batch() -> bytes:
    builder = BatchBuilder()
    builder.append(b"first", b"key", {"trace": b"abc"})
    builder.append(b"", None, None)
    builder.append("dritter \N{LATIN SMALL LETTER SHARP S}".encode(), b"", None)
    return builder.encode(PRODUCER)


def _state() -> control_pb2.LogState:
    producer = control_pb2.NamedProducer(
        name="importer-7", epoch=2, next_sequence=43, last_ms=TIME_MS
    )
    return control_pb2.LogState(
        cause=control_pb2.LogState.CAUSE_FENCE,
        fencing_token="leader-9",  # noqa: S106  no password
        producers=[producer],
        forgotten_epoch=1,
    )


def _placed(batch: bytes, first: int, *, kind: int = 0) -> bytes:
    header = check_batch(batch)
    placement = Placement(
        loglet=LOGLET,
        first=Offset(first),
        record_count=header.record_count,
        timestamp_ms=TIME_MS + first,
        committed_tail=Offset(first - 1),
        batch_crc32c=header.crc32c,
        kind=kind,
        state_from=Offset(1),
        state_until=Offset(first),
    )
    return place_batch(placement, batch)


def _log() -> LogRecord:
    lost = LostRange(first=Offset(4), end=Offset(6), accepted_ms=TIME_MS, reason="both disks gone")
    closed = Segment(
        index=0,
        base=Offset(0),
        end=Offset(10),
        sequencer=SequencerId(NodeId("n2"), Generation(3)),
        nodeset=NODESET,
        write_quorum=2,
        spread=(("zone", 2),),
        lost=(lost,),
    )
    opened = Segment(
        index=2,
        base=Offset(10),
        sequencer=_SEQUENCER,
        nodeset=NODESET,
        write_quorum=2,
        spread=(("zone", 2),),
        timestamp_ms=TIME_MS,
    )
    return LogRecord(
        log_id=LOG_ID,
        name="team/orders",
        replicas=3,
        write_quorum=2,
        created_ms=TIME_MS,
        create_nonce="nonce-1",
        chain=(closed, opened),
        spread=(("zone", 2),),
        change_nonce="nonce-2",
        created_with=(("replicas", "3", "namespace:team/"), ("write_quorum", "2", "default")),
        start=Offset(1),
        trimmed=Offset(2),
        archived_end=Offset(3),
        retention=Retention(local_bytes=10_000, total_age_s=86_400),
    )


_NODE: Final = NodeRecord(
    node_id=NodeId("n1"),
    generation=Generation(7),
    storage_id=StorageId(""),
    address="127.0.0.1:4100",
    http_address="127.0.0.1:4200",
    location="eu.zone-1",
    roles=("log-server", "sequencer"),
    state="draining",
    past_storage_id=_STORES["n1"],
)
_NAMESPACE: Final = NamespaceRecord(
    prefix="team/",
    changed_ms=TIME_MS,
    change_nonce="nonce-3",
    replicas=3,
    spread=(("zone", 2),),
    retention=Retention(local_age_s=0, total_age_s=86_400),
)
_CURSOR: Final = CursorRecord(
    log_id=LOG_ID,
    name="billing",
    position=Offset(9),
    epoch=4,
    owner="owner-1",
    owner_name="billing-7",
    change=11,
    changed_ms=TIME_MS,
)
_LOGLETS: Final = {
    "opened": PutLoglet(LOGLET, Offset(5), _SEQUENCER, sealed=False, local_start=Offset(5)),
    "ended": PutLoglet(
        LOGLET, Offset(5), _SEQUENCER, sealed=True, local_start=Offset(5), told_end=Offset(9)
    ),
    "trimmed": PutLoglet(
        LOGLET,
        Offset(5),
        None,
        sealed=True,
        local_start=Offset(7),
        told_end=Offset(9),
        last_timestamp_ms=TIME_MS,
    ),
}


def _object() -> bytes:
    builder = ObjectBuilder(
        cluster_id=bytes.fromhex(CLUSTER_ID),
        log_id=LOG_ID,
        object_id=bytes(range(16)),
        first=Offset(20),
        created_ms=TIME_MS,
    )
    builder.add(_placed(_batch(), 20))
    builder.add(_placed(encode_control(_state(), PRODUCER), 23, kind=KIND_CONTROL))
    builder.skip_to(Offset(30))
    builder.add(_placed(_batch(), 30))
    return b"".join(builder.finish())


def _entry(first: int, end: int) -> ObjectEntry:
    return ObjectEntry(
        key=f"cluster/log/{first:020}.slog",
        first=Offset(first),
        end=Offset(end),
        size=1_000,
        records=end - first,
        first_ms=TIME_MS,
        last_ms=TIME_MS + 1,
    )


def _manifest() -> Manifest:
    page = PageEntry(
        key=_PAGE_KEY,
        first=Offset(0),
        end=Offset(20),
        objects=2,
        size=2_000,
        first_ms=TIME_MS,
        last_ms=TIME_MS,
    )
    lost = LostRange(first=Offset(24), end=Offset(30), accepted_ms=TIME_MS, reason="gone")
    return Manifest(
        cluster_id=CLUSTER_ID,
        log_id=LOG_ID,
        settings=LogSettings(name="team/orders", replicas=3, write_quorum=2, spread=(("zone", 2),)),
        revision=5,
        salt="salt",
        changed_ms=TIME_MS,
        start=Offset(0),
        end=Offset(40),
        pages=(page,),
        entries=(_entry(20, 40),),
        lost=(lost,),
        forks=("cluster/fork",),
        origins=(),
        segment=3,
    )


# ------------------------------------------------------------------ reading


def _plain(value: object) -> Any:
    """Dataclasses, tuples and bytes as what JSON has."""
    return msgspec.to_builtins(value, enc_hook=str)


def _read_batch(data: bytes) -> Any:
    header = check_batch(data)
    assert header == parse_batch_header(data)
    return header._asdict() | {"producer": header.producer._asdict()}


def _read_placed(data: bytes) -> Any:
    placement = check_placed(data)
    records = [
        {
            "offset": record.offset,
            "value": record.value.decode(),
            "key": None if record.key is None else record.key.decode(),
            "headers": {name: value.decode() for name, value in record.headers.items()},
            "timestamp_ms": record.timestamp_ms,
        }
        for record in decode_placed(data)
    ]
    loglet = str(placement.loglet)
    return {"placement": placement._asdict() | {"loglet": loglet}, "records": records}


def _read_control(data: bytes) -> Any:
    placement = check_placed(data)
    state = text_format.MessageToString(decode_control(data))
    return {
        "placement": placement._asdict() | {"loglet": str(placement.loglet)},
        "state": state.splitlines(),
    }


def _read_object(data: bytes) -> Any:
    footer = decode_footer(data, len(data))
    index_end = footer.index_position + footer.index_bytes
    blocks = decode_index(data[footer.index_position : index_end], footer)
    return {
        "footer": _plain(footer) | {"cluster_id": footer.cluster_id.hex()},
        "blocks": [
            block._asdict()
            | {
                "batches": [
                    check_placed(batch).first
                    for batch in split_block(
                        data[block.position : block.position + block.size], block
                    )
                ]
            }
            for block in blocks
        ],
    }


def _record(key: str, decode: Callable[[Entry], object]) -> Callable[[bytes], Any]:
    return lambda data: _plain(decode(Entry(key, data, Version(1))))


def _loglet_record(name: str) -> StoredForm:
    key = loglet_key(LOGLET)
    return StoredForm(
        f"store-loglet-{name}",
        lambda: encode_loglet(key, _LOGLETS[name]),
        lambda data: _plain(decode_loglet(key, data)),
    )


_IDENTITY: Final = Identity(node_id=NodeId("n1"), cluster_id=CLUSTER_ID, storage_id=_STORES["n1"])
_LOG_KEY: Final = encoding.log_key("team/orders")
_CURSOR_KEY: Final = encoding.cursor_key(LOG_ID, "billing")

FORMS: Final = (
    StoredForm("batch", _batch, _read_batch),
    StoredForm("placed-batch", lambda: _placed(_batch(), 20), _read_placed),
    StoredForm(
        "placed-control-batch",
        lambda: _placed(encode_control(_state(), PRODUCER), 23, kind=KIND_CONTROL),
        _read_control,
    ),
    StoredForm(
        "metadata-cluster",
        lambda: encoding.encode_cluster(
            ClusterRecord(cluster_id=CLUSTER_ID, created_ms=TIME_MS, name="prod")
        ),
        _record("cluster", encoding.decode_cluster),
    ),
    StoredForm(
        "metadata-controller",
        lambda: encoding.encode_lease(
            LeaseRecord(holder=NodeId("n1"), nonce="nonce-4", counter=12, ttl_ms=2_000)
        ),
        _record("controller", encoding.decode_lease),
    ),
    StoredForm(
        "metadata-node",
        lambda: encoding.encode_node(_NODE),
        _record("nodes/n1", encoding.decode_node),
    ),
    StoredForm(
        "metadata-log",
        lambda: encoding.encode_log(_log()),
        _record(_LOG_KEY, encoding.decode_log),
    ),
    StoredForm(
        "metadata-namespace",
        lambda: encoding.encode_namespace(_NAMESPACE),
        _record("namespaces/team/", encoding.decode_namespace),
    ),
    StoredForm(
        "metadata-cursor",
        lambda: encoding.encode_cursor(_CURSOR),
        _record(_CURSOR_KEY, encoding.decode_cursor),
    ),
    StoredForm(
        "store-identity",
        lambda: encode_identity(_IDENTITY),
        lambda data: _plain(decode_identity(data)),
    ),
    *(_loglet_record(name) for name in _LOGLETS),
    StoredForm("archive-object", _object, _read_object),
    StoredForm(
        "archive-manifest",
        lambda: encode_manifest(_MANIFEST_KEY, _manifest()),
        lambda data: _plain(decode_manifest(_MANIFEST_KEY, data)),
    ),
    StoredForm(
        "archive-page",
        lambda: encode_page(_PAGE_KEY, [_entry(0, 10), _entry(10, 20)]),
        lambda data: _plain(decode_page(_PAGE_KEY, data)),
    ),
)
"""Every form, in the order of docs/compatibility.md."""
