"""Records of the metadata store as messages of the public API."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence

from metadata.records import CreatedWith, LogRecord, NodeRecord, Segment
from metadata.store import Version
from sharedlog.batch import Record
from sharedlog.errors import InvalidArgument
from sharedlog.ids import LogletId, NodeId, SequencerId
from sharedlog.retention_proto import retention_to_proto
from sharedlog.v1 import types_pb2


def describe_log(
    record: LogRecord,
    version: Version,
    directory: Callable[[NodeId], NodeRecord | None],
    *,
    chain_from: int = 0,
    chain_limit: int = 0,
    open_only: bool = False,
) -> types_pb2.LogDescription:
    """A log, its chain, and the addresses of the nodes in it as far as `directory` knows them.

    The whole chain, or the part that a `DescribeLogRequest` asks for by fields of the same names;
    only the nodes of that part are told, and some that live for who has to read the archive.
    """
    chain = chain_part(
        record.chain, chain_from=chain_from, chain_limit=chain_limit, open_only=open_only
    )
    named = {segment.sequencer.node_id for segment in chain}
    named.update(replica.node_id for segment in chain for replica in segment.nodeset)
    if record.archived_end:
        named.add(record.open_segment.sequencer.node_id)
        named.update(replica.node_id for replica in record.open_segment.nodeset)
    nodes = [node for node_id in sorted(named) if (node := directory(node_id)) is not None]
    return types_pb2.LogDescription(
        log_id=record.log_id,
        name=record.name,
        replicas=record.replicas,
        write_quorum=record.write_quorum,
        chain=[describe_segment(segment) for segment in chain],
        chain_version=version,
        nodes=[node_address(node) for node in nodes],
        created_ms=record.created_ms,
        spread=dict(record.spread),
        segment_count=len(record.chain),
        created_with=settings_to_proto(record.created_with),
        start=record.start,
        trimmed=record.trimmed,
        archived_end=record.archived_end,
        retention=retention_to_proto(record.retention),
        near=record.near,
    )


def summarize_log(record: LogRecord, version: Version) -> types_pb2.LogSummary:
    """A log in short."""
    segment = record.open_segment
    return types_pb2.LogSummary(
        log_id=record.log_id,
        name=record.name,
        replicas=record.replicas,
        write_quorum=record.write_quorum,
        spread=dict(record.spread),
        created_ms=record.created_ms,
        chain_version=version,
        segment_count=len(record.chain),
        sequencer_node_id=segment.sequencer.node_id,
        node_ids=[replica.node_id for replica in segment.nodeset],
    )


def settings_to_proto(settings: CreatedWith) -> list[types_pb2.Setting]:
    """Settings and where they come from."""
    return [
        types_pb2.Setting(name=name, value=value, source=source) for name, value, source in settings
    ]


def chain_part(
    chain: Sequence[Segment], *, chain_from: int = 0, chain_limit: int = 0, open_only: bool = False
) -> Sequence[Segment]:
    """Segments that reach above offset `chain_from`, and the open one; 0 is no limit.

    The lowest `chain_limit` of them: the open one is not among these if there are more.
    """
    if open_only:
        return chain[-1:]
    # Ends are the next ones' bases: the first one to take is the last that begins at or below.
    first = max(bisect_right(chain, chain_from, key=lambda segment: segment.base) - 1, 0)
    return chain[first : first + chain_limit] if chain_limit else chain[first:]


def describe_segment(segment: Segment) -> types_pb2.Segment:
    """A segment on the wire."""
    return types_pb2.Segment(
        index=segment.index,
        base=segment.base,
        end=segment.end,
        sequencer=sequencer_id(segment.sequencer),
        nodeset=[
            types_pb2.Replica(node_id=r.node_id, storage_id=r.storage_id, location=r.location)
            for r in segment.nodeset
        ],
        write_quorum=segment.write_quorum,
        spread=dict(segment.spread),
        timestamp_ms=segment.timestamp_ms,
        lost=[
            types_pb2.LostRange(
                first=it.first, end=it.end, accepted_ms=it.accepted_ms, reason=it.reason
            )
            for it in segment.lost
        ],
    )


def node_address(node: NodeRecord) -> types_pb2.NodeAddress:
    """How to reach a node."""
    return types_pb2.NodeAddress(
        node_id=node.node_id,
        address=node.address,
        generation=node.generation,
        storage_id=node.storage_id,
    )


def sequencer_id(sequencer: SequencerId) -> types_pb2.SequencerId:
    """A sequencer on the wire."""
    return types_pb2.SequencerId(node_id=sequencer.node_id, generation=sequencer.generation)


def loglet_id(loglet: LogletId) -> types_pb2.LogletId:
    """A loglet on the wire."""
    return types_pb2.LogletId(log_id=loglet.log_id, segment_index=loglet.segment_index)


def record_to_proto(record: Record) -> types_pb2.Record:
    """A record as the plain calls carry it."""
    return types_pb2.Record(
        value=record.value,
        key=record.key,
        headers=[types_pb2.Header(name=n, value=v) for n, v in record.headers.items()],
        offset=record.offset,
        timestamp_ms=record.timestamp_ms,
    )


def record_columns(
    records: Iterable[types_pb2.Record],
) -> list[tuple[bytes, bytes | None, dict[str, bytes] | None]]:
    """(value, key, headers) of each record of an append.

    Raises:
        InvalidArgument: a record names a header twice.
    """
    return [
        (record.value, record.key if record.HasField("key") else None, _headers(record))
        for record in records
    ]


def _headers(record: types_pb2.Record) -> dict[str, bytes] | None:
    if not record.headers:
        return None
    headers = {header.name: header.value for header in record.headers}
    if len(headers) != len(record.headers):
        raise InvalidArgument("a record names a header twice; names are unique within a record")
    return headers
