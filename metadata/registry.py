"""Procedures over a metadata store: a node registers, a log is made, found, changed.

Each is a short loop of read, decide (`core.py`) and compare-and-swap. A procedure that raises
`MetadataUnavailable` may have been carried out; each can simply be run again: registering takes a
further generation, creating and changing are told by their nonces.

**The state of a node** is that of its store. It outlives restarts, so that a draining node which
restarts goes on draining, and one that was declared gone or lost does not come back by itself. A
node that registers another store starts anew as read-write; the old store is lost by then (see
`reconfiguration.replica_state`), whatever was declared of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Final

from metadata import core
from metadata.core import (
    ROLES,
    Load,
    chain_too_long,
    check_chain,
    check_chain_change,
    check_log_name,
    check_node_id,
    new_log_record,
    next_generation,
)
from metadata.encoding import (
    decode_cluster,
    decode_log,
    decode_node,
    encode_cluster,
    encode_log,
    encode_node,
    log_key,
    node_key,
)
from metadata.history_rules import ArchivedHistory, with_history
from metadata.moved import check_moved
from metadata.reconfiguration import Plan, end_segment
from metadata.records import (
    CLUSTER_KEY,
    LOGS_PREFIX,
    NODE_STATES,
    STATE_DATA_LOSS,
    STATE_DRAINING,
    STATE_GONE,
    STATE_READ_WRITE,
    ClusterRecord,
    CreatedWith,
    LogRecord,
    NodeRecord,
    Spread,
)
from metadata.store import ABSENT, MetadataStore, Version
from sharedlog.errors import (
    InvalidArgument,
    LogExists,
    LogNotFound,
    LogUnavailable,
    MetadataUnavailable,
    SharedLogError,
    VersionMismatch,
    WrongCluster,
)
from sharedlog.ids import Generation, LogId, NodeId, Offset, StorageId
from sharedlog.limits import KIB, METADATA_VALUE_BYTES_MAX
from sharedlog.retention import NO_RETENTION, Retention

RACES_MAX: Final = 100
"""Lost races in a row after which a procedure gives up: one key is not changed that often."""

READ_BACKS_MAX: Final = 3
"""Times that a change whose answer got lost is looked for before it counts as unknown."""

CHAIN_BYTES_MAX: Final = METADATA_VALUE_BYTES_MAX - 32 * KIB
"""Of a log's value: a change that makes the chain longer is refused beyond it. What remains up to
the store's limit is for changes that don't: re-replication, accepted losses."""

RESERVED_SEGMENTS: Final = 500
"""Of a chain: what is planned is refused when no more can be added, so that failovers still fit."""

RESERVED_BYTES: Final = 24 * KIB
"""Of a chain's value, likewise."""

_SURPRISE_BYTES: Final = 2 * KIB
"""By which a segment that ends may turn out longer than was foreseen: it got other servers."""

_SEGMENT_RECORDS: Final = 1 << 40  # more than an open segment has got

STATE_CHANGES: Final[Mapping[str, frozenset[str]]] = MappingProxyType(
    {
        STATE_READ_WRITE: frozenset({STATE_DRAINING, STATE_DATA_LOSS}),
        STATE_DRAINING: frozenset({STATE_READ_WRITE, STATE_GONE, STATE_DATA_LOSS}),
        # Nothing names its store any more; it is as good as new, once somebody says so.
        STATE_GONE: frozenset({STATE_READ_WRITE}),
        # The store has turned up after all, and what it holds is true, though what was moved away
        # stays moved; or all of it was moved away.
        STATE_DATA_LOSS: frozenset({STATE_READ_WRITE, STATE_GONE}),
    }
)
"""The states to which a node may be set, by the one that it has. A new store is not in here."""

assert set(STATE_CHANGES) == set(NODE_STATES)


async def join_cluster(
    store: MetadataStore,
    *,
    known_cluster_id: str,
    new_id: Callable[[], str],
    now_ms: int,
    name: str = "",
    make: bool = True,
) -> ClusterRecord:
    """The cluster of this metadata store; the first node that asks makes it, if it may.

    `known_cluster_id` is what the caller remembers of an earlier life, "" if nothing. A caller that
    remembers one never makes a cluster: its metadata is missing, and to begin anew would hide that.
    `name`: the cluster that the caller is to join, "" for any.

    Raises:
        WrongCluster: the store is another cluster's, or empty although there was one, or the
            cluster's metadata was moved away from it, or not all of it is there yet.
        MetadataUnavailable: there is none yet, and the caller is not to `make` it; or no answer.
        MetadataCorrupt.
    """
    entry = await store.get(CLUSTER_KEY)
    if entry is None and not known_cluster_id:
        if not make:
            raise MetadataUnavailable(
                "the metadata store holds no cluster yet; `sharedlog cluster init"
                f"{' --name ' + name if name else ''}` makes it"
            )
        made = ClusterRecord(cluster_id=new_id(), created_ms=now_ms, name=name)
        try:
            await store.put(CLUSTER_KEY, encode_cluster(made), expected=ABSENT)
        except VersionMismatch:
            entry = await store.get(CLUSTER_KEY)
        else:
            return made
    if entry is None:
        raise WrongCluster(
            f"this node belongs to cluster {known_cluster_id}, but the metadata store is empty"
        )
    check_moved(entry.value)
    found = decode_cluster(entry)
    if known_cluster_id and found.cluster_id != known_cluster_id:
        raise WrongCluster(
            f"this node belongs to cluster {known_cluster_id}, but the metadata store is that of "
            f"cluster {found.cluster_id}{' (' + found.name + ')' if found.name else ''}"
        )
    if name and found.name != name:
        raise WrongCluster(
            f"this node is to join cluster {name}, but the metadata store is that of cluster "
            f"{found.name or 'without a name'} ({found.cluster_id})"
        )
    return found


async def register_node(
    store: MetadataStore,
    *,
    node_id: NodeId,
    storage_id: StorageId,
    address: str,
    http_address: str = "",
    location: str = "",
    roles: Sequence[str],
    known_cluster_id: str,
    new_id: Callable[[], str],
    now_ms: int,
) -> NodeRecord:
    """Register a process start; the record carries its generation, which no other start has.

    Joins (or, as the first node, makes) the cluster. An earlier process of the node is superseded
    by this. A wiped disk registers its new `storage_id`; nodesets that name the old one still do.
    The state that was set stays with the store; a process without a store ("") keeps it too, and
    remembers whose it is.

    Raises:
        WrongCluster: see `join_cluster`. InvalidArgument: node id, roles or address.
        MetadataUnavailable, MetadataCorrupt.

    **Cancellation:** the registration may or may not be made; running it again is safe.
    """
    check_node_id(node_id)
    unknown = sorted(set(roles) - set(ROLES))
    if unknown or not address:
        what = f"unknown role {unknown[0]!r}" if unknown else "no address"
        raise InvalidArgument(f"node {node_id}: {what}")
    await join_cluster(store, known_cluster_id=known_cluster_id, new_id=new_id, now_ms=now_ms)
    for _ in range(RACES_MAX):
        entry = await store.get(node_key(node_id))
        previous = None if entry is None else decode_node(entry)
        record = NodeRecord(
            node_id=node_id,
            generation=next_generation(previous),
            storage_id=storage_id,
            address=address,
            http_address=http_address,
            location=location,
            roles=tuple(roles),
            state=_state_at_start(previous, storage_id),
            past_storage_id=_past_store(previous, storage_id),
        )
        expected = ABSENT if entry is None else entry.version
        try:
            await store.put(node_key(node_id), encode_node(record), expected=expected)
        except VersionMismatch:
            continue  # another process of this node was faster: it is superseded by us, or we by it
        assert record.generation >= Generation(1)
        return record
    raise MetadataUnavailable(f"node {node_id}: lost {RACES_MAX} races to register; giving up")


def _state_at_start(previous: NodeRecord | None, storage_id: StorageId) -> str:
    if previous is None:
        return STATE_READ_WRITE
    last = previous.last_storage_id
    other = storage_id and last and storage_id != last
    return STATE_READ_WRITE if other else previous.state


def _past_store(previous: NodeRecord | None, storage_id: StorageId) -> StorageId:
    if storage_id or previous is None:
        return StorageId("")
    return previous.last_storage_id


async def set_node_state(
    store: MetadataStore, node_id: NodeId, state: str, *, storage_id: StorageId | None = None
) -> NodeRecord:
    """Set the state of a node's store; to set the one that it has does nothing.

    `storage_id`: the store that is meant, if the caller looked at one. Whoever declares a node gone
    must have seen that no segment names that store.

    Raises:
        InvalidArgument: no such node or state, not from its present state (`STATE_CHANGES`), or the
            node has another store by now.
        MetadataUnavailable: it may or may not be done; running it again is safe.
    """
    for _ in range(RACES_MAX):
        entry = await store.get(node_key(node_id))
        if entry is None:
            raise InvalidArgument(f"there is no node {node_id!r}")
        record = decode_node(entry)
        if storage_id is not None and record.storage_id != storage_id:
            raise InvalidArgument(f"node {node_id} has another store by now")
        if record.state == state:
            return record
        if state not in STATE_CHANGES.get(record.state, ()):
            raise InvalidArgument(f"node {node_id} is {record.state}: it can't be set to {state!r}")
        record = replace(record, state=state)
        try:
            await store.put(node_key(node_id), encode_node(record), expected=entry.version)
        except VersionMismatch:
            continue  # it has restarted, or somebody else sets a state
        return record
    raise MetadataUnavailable(f"node {node_id}: lost {RACES_MAX} races to set its state; giving up")


async def create_log(
    store: MetadataStore,
    *,
    name: str,
    replicas: int,
    write_quorum: int,
    nonce: str,
    alive: Sequence[NodeRecord],
    load: Load,
    log_id: LogId,
    now_ms: int,
    prefer: NodeId | None = None,
    spread: Spread = (),
    near: str = "",
    created_with: CreatedWith = (),
    retention: Retention = NO_RETENTION,
    history: ArchivedHistory | None = None,
) -> tuple[LogRecord, Version]:
    """Make a log, or find the one that an earlier try with the same `nonce` made (field note 50).

    `log_id` is 64 random bits, fresh for each call. `write_quorum` 0 takes the majority. With an
    empty nonce a repeated create can't be told from a second one. What a repeat asks for is not
    compared with what the first one asked for. `history`: what it begins with; its manifest, under
    `log_id`, names that already.

    Raises:
        LogExists: made by another create.
        InvalidLogName, InvalidArgument: name, quorum, spread, near or retention.
        LogUnavailable: too few nodes are alive. MetadataUnavailable: it may or may not be made.

    **Cancellation:** the log may or may not be made; running it again with the same nonce is safe.
    """
    check_log_name(name)
    key = log_key(name)
    record = unable = None
    try:
        record = new_log_record(
            name=name,
            log_id=log_id,
            replicas=replicas,
            write_quorum=write_quorum,
            alive=alive,
            load=load,
            created_ms=now_ms,
            create_nonce=nonce,
            prefer=prefer,
            spread=spread,
            near=near,
            created_with=created_with,
            retention=retention,
        )
        if history is not None:
            record = with_history(record, history)
            check_chain(record)
    except SharedLogError as error:
        unable = error  # but an earlier try may have been able
    for _ in range(RACES_MAX):
        if record is not None:
            try:
                return record, await store.put(key, encode_log(record), expected=ABSENT)
            except VersionMismatch:
                pass  # there is one; it may even be this one's earlier try
        entry = await store.get(key)
        if entry is not None:
            found = decode_log(entry)
            if nonce and found.create_nonce == nonce:
                return found, entry.version
            raise LogExists(name=name)
        if unable is not None:
            raise unable
    raise MetadataUnavailable(f"log {name!r}: lost {RACES_MAX} races to create it; giving up")


async def fetch_log(store: MetadataStore, name: str) -> tuple[LogRecord, Version]:
    """The log as it is now, and the version of its chain.

    Raises:
        InvalidLogName, LogNotFound, MetadataUnavailable, MetadataCorrupt.
    """
    check_log_name(name)
    entry = await store.get(log_key(name))
    if entry is None:
        raise LogNotFound(name=name)
    return decode_log(entry), entry.version


async def list_logs(store: MetadataStore, *, prefix: str = "") -> list[tuple[LogRecord, Version]]:
    """All logs whose names start with `prefix`, in order of their names.

    Raises:
        MetadataUnavailable, MetadataCorrupt.
    """
    entries = await store.list(LOGS_PREFIX + prefix)
    return [(decode_log(entry), entry.version) for entry in entries]


async def change_log(
    store: MetadataStore, old: LogRecord, new: LogRecord, *, expected: Version
) -> Version:
    """Replace a log's record, which was read at version `expected`; the only way a chain moves.

    Raises:
        InvalidArgument: `new` may not follow `old`. VersionMismatch: the chain has moved on.
        LogUnavailable: the chain can't become longer. MetadataUnavailable: it may or may not be
        done; read it back, or use `commit_change`, which does.
    """
    check_chain_change(old, new)
    value = encode_log(new)
    if len(new.chain) > len(old.chain) and len(value) > CHAIN_BYTES_MAX:
        raise LogUnavailable(chain_too_long(new))
    return await store.put(log_key(new.name), value, expected=expected)


def check_room(record: LogRecord, plan: Plan, *, optional: bool) -> None:
    """Whether the chain can take a further segment, to be asked before the open one is sealed.

    The open segment is taken to end with records in it, wherever that may be. A change that is
    `optional` leaves room for those that are not.

    Raises:
        LogUnavailable: it is too long for that.
    """
    end = Offset(record.open_segment.base + _SEGMENT_RECORDS)
    after = end_segment(record, end=end, timestamp_ms=0, plan=plan, nonce="0" * 64)
    segments = len(after.chain) + (RESERVED_SEGMENTS if optional else 0)
    size = len(encode_log(after)) + (RESERVED_BYTES if optional else _SURPRISE_BYTES)
    if segments > core.CHAIN_SEGMENTS_MAX or size > CHAIN_BYTES_MAX:
        raise LogUnavailable(chain_too_long(after))


async def commit_change(
    store: MetadataStore,
    name: str,
    build: Callable[[LogRecord], LogRecord | None],
    nonce: str,
    *,
    start: tuple[LogRecord, Version] | None = None,
) -> tuple[LogRecord, Version, bool]:
    """Change a log's record, and know how it ended: (the record, its version, made by this call).

    `build` makes the new record from the present one; None: there is nothing left to do, the
    present one is the answer. It is called again, with what is there by then, each time another
    change was faster, so it must decide anew each time. For a segment that is to end at M: it is
    still the open one, so the same M again; it is not, so None, and the caller adopts the chain.

    `nonce` names this change: the record keeps it, so a change whose answer was lost is known
    again. If yet another change came between, that can't be told any more: `build` then finds its
    work done, and the change counts as somebody else's. `start`: the record as the caller knows it,
    maybe stale; it saves the first read.

    Raises:
        LogNotFound, MetadataCorrupt; what `build` and `change_log` raise, but `VersionMismatch`.
        MetadataUnavailable: it may or may not be done. Calling again with the same nonce is safe,
        and tells which.

    **Cancellation:** as with `MetadataUnavailable`.
    """
    assert nonce
    present = start
    failures_left = 0  # as long as nothing was put there is nothing to be read back
    for _ in range(RACES_MAX):
        try:
            record, version = present or await fetch_log(store, name)
            if record.change_nonce == nonce:
                return record, version, True
            new = build(record)
            if new is None:
                return record, version, False
            new = replace(new, change_nonce=nonce)
            failures_left = failures_left or 1 + READ_BACKS_MAX
            return new, await change_log(store, record, new, expected=version), True
        except VersionMismatch:
            present = None
        except MetadataUnavailable:
            # A put that may still arrive does no harm: either it or ours, by the same expected
            # version, is made, and both say the same.
            present = None
            failures_left -= 1
            if failures_left <= 0:
                raise
    raise MetadataUnavailable(f"log {name!r}: lost {RACES_MAX} races to change it; giving up")
