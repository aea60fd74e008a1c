"""Procedures over a metadata store: a cluster is made with its defaults, looked up, renamed.

Two values say what a cluster is: its record, with its random id and its name, and the root
namespace, whose settings every new log inherits. `init_cluster` writes the record first and then
the settings, each by compare-and-swap. The record alone decides who made the cluster: of two calls
at once one finds the other's, and what is there is never changed by it. If a call breaks off
between the two, the next one with the same arguments finds no settings and writes them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from metadata.core import check_cluster_name
from metadata.encoding import decode_cluster, encode_cluster
from metadata.moved import check_moved
from metadata.namespace_registry import (
    StoredNamespace,
    fetch_namespaces,
    records_of,
    set_namespace,
)
from metadata.namespaces import SETTINGS, NamespaceChange, changed, check_change
from metadata.quorum import format_spread
from metadata.records import CLUSTER_KEY, ClusterRecord, NamespaceRecord
from metadata.registry import RACES_MAX
from metadata.store import ABSENT, MetadataStore, Version
from sharedlog.errors import InvalidArgument, MetadataUnavailable, VersionMismatch
from sharedlog.retention import RETENTION_SETTINGS, amount_text

ROOT: Final = ""
"""The namespace of every log."""

NOT_SET: Final = "not set"

NO_CHANGE: Final = NamespaceChange()


class Difference(NamedTuple):
    """A setting that is not as it is wanted, each value as a person types it."""

    setting: str
    present: str
    wanted: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a cluster is to be; what is empty or None may be anything."""

    name: str = ""
    defaults: NamespaceChange = NO_CHANGE


@dataclass(frozen=True, slots=True, kw_only=True)
class InitResult:
    """What `init_cluster` found and did."""

    cluster_id: str  # "" of a dry run that would make it
    name: str
    made: bool  # by this call, or it would be
    changes: Sequence[Difference] = ()  # what was set, or would be
    conflicts: Sequence[Difference] = ()  # what is otherwise than wanted: nothing was done then


class StoredCluster(NamedTuple):
    """The cluster's record and its version."""

    record: ClusterRecord
    version: Version


async def fetch_cluster(store: MetadataStore) -> StoredCluster | None:
    """The cluster of this store, None if there is none yet.

    Raises:
        MetadataUnavailable, MetadataCorrupt. WrongCluster: it was moved to another store, or is on
            the way here.
    """
    entry = await store.get(CLUSTER_KEY)
    if entry is None:
        return None
    check_moved(entry.value)
    return StoredCluster(decode_cluster(entry), entry.version)


async def init_cluster(
    store: MetadataStore,
    wanted: Wanted,
    *,
    new_id: Callable[[], str],
    now_ms: int,
    default_replicas: int,
    dry_run: bool = False,
) -> InitResult:
    """Make the cluster with these defaults, unless it is there; with `dry_run` only say so.

    Raises:
        InvalidArgument: the name, or settings that can't be.
        MetadataUnavailable: it may be done, in part or wholly; doing it again is safe.
        MetadataCorrupt.

    **Cancellation:** as with `MetadataUnavailable`.
    """
    if wanted.name:
        check_cluster_name(wanted.name)
    for _ in range(RACES_MAX):
        cluster = await fetch_cluster(store)
        root, lacking = await _look(store, wanted, now_ms, default_replicas)
        found = _judge(cluster, root, lacking, wanted)
        if dry_run or found.conflicts or not (found.made or found.changes):
            return found
        if cluster is None:
            record = ClusterRecord(cluster_id=new_id(), created_ms=now_ms, name=wanted.name)
            try:
                await store.put(CLUSTER_KEY, encode_cluster(record), expected=ABSENT)
            except VersionMismatch:
                continue  # somebody else was faster: what is there now is looked at
            found = replace(found, cluster_id=record.cluster_id)
        if not lacking:
            return found
        try:
            await set_namespace(
                store,
                ROOT,
                wanted.defaults,
                expected=ABSENT,
                nonce=new_id(),
                now_ms=now_ms,
                default_replicas=default_replicas,
            )
        except VersionMismatch:
            continue
        return found
    raise MetadataUnavailable(f"lost {RACES_MAX} races to make the cluster; giving up")


async def rename_cluster(
    store: MetadataStore, name: str, *, expected: Version | None
) -> StoredCluster:
    """Give the cluster another name; the one that it has does nothing.

    `expected`: only if its record has this version. That it is called so already counts as done,
    which makes it safe to repeat.

    Raises:
        InvalidArgument: no name, or there is no cluster. VersionMismatch.
        MetadataUnavailable: it may or may not be done. MetadataCorrupt.
    """
    check_cluster_name(name)
    for _ in range(RACES_MAX):
        found = await fetch_cluster(store)
        if found is None:
            raise InvalidArgument("there is no cluster in this metadata store")
        if found.record.name == name:
            return found
        if expected is not None and found.version != expected:
            raise VersionMismatch(key=CLUSTER_KEY, expected=expected, actual=found.version)
        renamed = replace(found.record, name=name)
        try:
            version = await store.put(CLUSTER_KEY, encode_cluster(renamed), expected=found.version)
        except VersionMismatch:
            continue
        return StoredCluster(renamed, version)
    raise MetadataUnavailable(f"lost {RACES_MAX} races to rename the cluster; giving up")


def differences(present: NamespaceRecord | None, after: NamespaceRecord) -> list[Difference]:
    """Settings that are otherwise in `after` than at present."""
    found = []
    for setting in SETTINGS:
        before = NOT_SET if present is None else setting_text(present, setting)
        then = setting_text(after, setting)
        if before != then:
            found.append(Difference(setting, before, then))
    return found


def setting_text(record: NamespaceRecord, setting: str) -> str:
    """What a namespace sets, as a person types it."""
    if setting in RETENTION_SETTINGS:
        amount = record.retention.amount(setting)
        return NOT_SET if amount is None else amount_text(setting, amount) or "none"
    if setting == "spread":
        return NOT_SET if record.spread is None else format_spread(record.spread) or "none"
    if setting == "near":
        return NOT_SET if record.near is None else record.near or "none"
    number = record.replicas if setting == "replicas" else record.write_quorum
    return NOT_SET if number is None else str(number)


async def _look(
    store: MetadataStore, wanted: Wanted, now_ms: int, default_replicas: int
) -> tuple[StoredNamespace | None, list[Difference]]:
    """The root namespace, if anything is set there, and what of the defaults it lacks."""
    namespaces = await fetch_namespaces(store)
    root = namespaces.get(ROOT)
    present = None if root is None else root.record
    after = changed(present, ROOT, wanted.defaults, changed_ms=now_ms, nonce="")
    if root is None:
        records = records_of(namespaces) | {ROOT: after}
        check_change(records, ROOT, default_replicas=default_replicas)
    return root, differences(present, after)


def _judge(
    cluster: StoredCluster | None,
    root: StoredNamespace | None,
    lacking: Sequence[Difference],
    wanted: Wanted,
) -> InitResult:
    """What is to be done, or why it can't be. Settings that are there are never changed."""
    name = wanted.name if cluster is None else cluster.record.name
    naming = []
    if wanted.name and (cluster is None or name != wanted.name):
        present = NOT_SET if cluster is None else name or NOT_SET
        naming = [Difference("name", present, wanted.name)]
    conflicts = [*(naming if cluster is not None else ()), *(lacking if root is not None else ())]
    return InitResult(
        cluster_id="" if cluster is None else cluster.record.cluster_id,
        name=name,
        made=cluster is None and not conflicts,
        changes=() if conflicts else (*naming, *lacking),
        conflicts=conflicts,
    )
