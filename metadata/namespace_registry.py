"""Procedures over a metadata store: namespaces are set, listed, deleted.

Each is a short loop of read, decide (`namespaces.py`) and compare-and-swap, as in `registry.py`.
All namespaces are read at once, which their number allows: a change must look at those above and
below, and who creates a log needs those above.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from metadata.encoding import decode_namespace, encode_namespace, namespace_key
from metadata.namespaces import NamespaceChange, changed, check_change, check_prefix
from metadata.records import NAMESPACES_PREFIX, NamespaceRecord
from metadata.registry import RACES_MAX
from metadata.store import ABSENT, MetadataStore, Version
from sharedlog.errors import MetadataUnavailable, VersionMismatch


class StoredNamespace(NamedTuple):
    """A namespace and the version of its record."""

    record: NamespaceRecord
    version: Version


async def fetch_namespaces(store: MetadataStore) -> dict[str, StoredNamespace]:
    """All namespaces, by their prefixes, in order.

    Raises:
        MetadataUnavailable, MetadataCorrupt.
    """
    entries = await store.list(NAMESPACES_PREFIX)
    found = [StoredNamespace(decode_namespace(entry), entry.version) for entry in entries]
    return {it.record.prefix: it for it in found}


def records_of(namespaces: Mapping[str, StoredNamespace]) -> dict[str, NamespaceRecord]:
    """The records alone."""
    return {prefix: found.record for prefix, found in namespaces.items()}


async def set_namespace(
    store: MetadataStore,
    prefix: str,
    change: NamespaceChange,
    *,
    expected: Version | None,
    nonce: str,
    now_ms: int,
    default_replicas: int,
) -> StoredNamespace:
    """Change some settings of a prefix and keep the others; the result is as it is now.

    `expected`: only if it has this version (`ABSENT`: only if it sets nothing yet). A repeat with
    the nonce of the last change finds it made.

    Raises:
        InvalidArgument: what is asked for can't be, here or in a namespace below.
        VersionMismatch: it has another version than was expected.
        MetadataUnavailable: it may or may not be done. MetadataCorrupt.

    **Cancellation:** it may or may not be done.
    """
    assert nonce
    check_prefix(prefix)
    for _ in range(RACES_MAX):
        namespaces = await fetch_namespaces(store)
        present = namespaces.get(prefix)
        if present is not None and present.record.change_nonce == nonce:
            return present
        version = ABSENT if present is None else present.version
        _check_expected(prefix, version, expected)
        before = None if present is None else present.record
        record = changed(before, prefix, change, changed_ms=now_ms, nonce=nonce)
        after = records_of(namespaces) | {prefix: record}
        check_change(after, prefix, default_replicas=default_replicas)
        try:
            made = await store.put(
                namespace_key(prefix), encode_namespace(record), expected=version
            )
        except VersionMismatch:
            continue  # somebody else was faster, or this is the repeat of what was made meanwhile
        return StoredNamespace(record, made)
    raise _lost(prefix)


async def delete_namespace(
    store: MetadataStore, prefix: str, *, expected: Version | None, default_replicas: int
) -> bool:
    """End what a prefix sets; returns whether it set anything.

    Raises:
        InvalidArgument: a namespace below could not be without it.
        VersionMismatch: it has another version than was expected.
        MetadataUnavailable: it may or may not be done. MetadataCorrupt.
    """
    check_prefix(prefix)
    for _ in range(RACES_MAX):
        namespaces = await fetch_namespaces(store)
        present = namespaces.pop(prefix, None)
        _check_expected(prefix, ABSENT if present is None else present.version, expected)
        if present is None:
            return False
        check_change(records_of(namespaces), prefix, default_replicas=default_replicas)
        try:
            await store.delete(namespace_key(prefix), expected=present.version)
        except VersionMismatch:
            continue
        return True
    raise _lost(prefix)


def _check_expected(prefix: str, version: Version, expected: Version | None) -> None:
    if expected is not None and version != expected:
        raise VersionMismatch(
            key=namespace_key(prefix), expected=expected or None, actual=version or None
        )


def _lost(prefix: str) -> MetadataUnavailable:
    return MetadataUnavailable(
        f"namespace {prefix!r}: lost {RACES_MAX} races to change it; giving up"
    )
