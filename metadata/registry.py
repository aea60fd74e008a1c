"""Procedures over a metadata store: a node registers, a log is made, found, changed.

Each is a short loop of read, decide (`core.py`) and compare-and-swap. A procedure that raises
`MetadataUnavailable` may have been carried out; each can simply be run again: registering takes a
further generation, creating is told by its nonce.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from metadata.core import (
    ROLES,
    Load,
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
from metadata.records import CLUSTER_KEY, LOGS_PREFIX, ClusterRecord, LogRecord, NodeRecord
from metadata.store import ABSENT, MetadataStore, Version
from sharedlog.errors import (
    InvalidArgument,
    LogExists,
    LogNotFound,
    MetadataUnavailable,
    VersionMismatch,
    WrongCluster,
)
from sharedlog.ids import Generation, LogId, NodeId, StorageId

RACES_MAX: Final = 100
"""Lost races in a row after which a procedure gives up: one key is not changed that often."""


async def join_cluster(
    store: MetadataStore, *, known_cluster_id: str, new_id: Callable[[], str], now_ms: int
) -> ClusterRecord:
    """The cluster of this metadata store; the first node that asks makes it.

    `known_cluster_id` is what the caller remembers of an earlier life, "" if nothing. A caller that
    remembers one never makes a cluster: its metadata is missing, and to begin anew would hide that.

    Raises:
        WrongCluster: the store is another cluster's, or empty although there was one.
        MetadataUnavailable, MetadataCorrupt.
    """
    entry = await store.get(CLUSTER_KEY)
    if entry is None and not known_cluster_id:
        made = ClusterRecord(cluster_id=new_id(), created_ms=now_ms)
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
    found = decode_cluster(entry)
    if known_cluster_id and found.cluster_id != known_cluster_id:
        raise WrongCluster(
            f"this node belongs to cluster {known_cluster_id}, but the metadata store is that of "
            f"cluster {found.cluster_id}"
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
        generation = next_generation(None if entry is None else decode_node(entry))
        record = NodeRecord(
            node_id=node_id,
            generation=generation,
            storage_id=storage_id,
            address=address,
            http_address=http_address,
            location=location,
            roles=tuple(roles),
        )
        expected = ABSENT if entry is None else entry.version
        try:
            await store.put(node_key(node_id), encode_node(record), expected=expected)
        except VersionMismatch:
            continue  # another process of this node was faster: it is superseded by us, or we by it
        assert record.generation >= Generation(1)
        return record
    raise MetadataUnavailable(f"node {node_id}: lost {RACES_MAX} races to register; giving up")


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
) -> tuple[LogRecord, Version]:
    """Make a log, or find the one that an earlier try with the same `nonce` made (field note 50).

    `log_id` is 64 random bits, fresh for each call. `write_quorum` 0 takes the majority. With an
    empty nonce a repeated create can't be told from a second one. What a repeat asks for is not
    compared with what the first one asked for.

    Raises:
        LogExists: made by another create. InvalidLogName, InvalidArgument: name or quorum.
        LogUnavailable: too few nodes are alive. MetadataUnavailable: it may or may not be made.

    **Cancellation:** the log may or may not be made; running it again with the same nonce is safe.
    """
    check_log_name(name)
    key = log_key(name)
    for _ in range(RACES_MAX):
        entry = await store.get(key)
        if entry is not None:
            found = decode_log(entry)
            if nonce and found.create_nonce == nonce:
                return found, entry.version
            raise LogExists(name=name)
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
        )
        try:
            version = await store.put(key, encode_log(record), expected=ABSENT)
        except VersionMismatch:
            continue  # another create was faster; it may even be this one's earlier try
        return record, version
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
        MetadataUnavailable: it may or may not be done; read it back.
    """
    check_chain_change(old, new)
    return await store.put(log_key(new.name), encode_log(new), expected=expected)
