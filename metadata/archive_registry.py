"""Procedures over a metadata store: what is archived, trimmed and kept of a log.

Each is one change of the log's record by the rules of `archive_rules.py`, made once however often
it is asked for: what is there already is the answer, without a write. Each names the log by its
name and its id. A log that was deleted, or made anew under the name, is never written to: what was
archived or trimmed of the one says nothing of the other.

A procedure that raises `MetadataUnavailable` may have been carried out; it can be run again.
"""

from __future__ import annotations

from collections.abc import Callable

from metadata.archive_rules import (
    Committed,
    change_retention,
    purge_below,
    raise_archived_end,
    raise_trimmed,
)
from metadata.records import LogRecord
from metadata.registry import commit_change
from metadata.store import MetadataStore, Version
from sharedlog.errors import InvalidArgument, LogNotFound
from sharedlog.ids import LogId, Offset
from sharedlog.retention import Retention

Known = tuple[LogRecord, Version]
"""A log as its caller knows it, maybe stale: saves the first read, unless it forbids the change."""


async def set_archived_end(
    store: MetadataStore,
    name: str,
    log_id: LogId,
    end: Offset,
    *,
    nonce: str,
    committed: Committed | None = None,
    start: Known | None = None,
) -> tuple[LogRecord, Version]:
    """All of the log below `end` is in objects that its manifest names; the record as it is then.

    Only after the manifest says so. `committed`: what the open segment has committed.

    Raises:
        InvalidArgument: not all of that is known to be committed.
        LogNotFound: there is no log of this name and id any more. MetadataCorrupt.
        MetadataUnavailable: it may or may not be done.

    **Cancellation:** it may or may not be done.
    """
    return await _change(
        store,
        name,
        log_id,
        lambda record: raise_archived_end(record, end, known=committed),
        nonce=nonce,
        start=start,
    )


async def set_trimmed(
    store: MetadataStore,
    name: str,
    log_id: LogId,
    trimmed: Offset,
    *,
    nonce: str,
    start: Known | None = None,
) -> tuple[LogRecord, Version]:
    """Log servers may drop what lies below `trimmed`; the record as it is then.

    Before they are told so. Raises what `set_archived_end` raises, `InvalidArgument` if not all of
    that is in the archive.

    **Cancellation:** it may or may not be done.
    """
    return await _change(
        store,
        name,
        log_id,
        lambda record: raise_trimmed(record, trimmed),
        nonce=nonce,
        start=start,
    )


async def set_purged(
    store: MetadataStore,
    name: str,
    log_id: LogId,
    below: Offset,
    *,
    nonce: str,
    committed: Committed | None = None,
    start: Known | None = None,
) -> tuple[LogRecord, Version]:
    """Nothing below `below` can be read any more; the record as it is then.

    Before anything is deleted. Raises what `set_archived_end` raises.

    **Cancellation:** it may or may not be done.
    """
    return await _change(
        store,
        name,
        log_id,
        lambda record: purge_below(record, below, known=committed),
        nonce=nonce,
        start=start,
    )


async def set_retention(
    store: MetadataStore,
    name: str,
    change: Retention,
    *,
    nonce: str,
    log_id: LogId | None = None,
) -> tuple[LogRecord, Version]:
    """Set what `change` says of how long the log keeps its records; the record as it is then.

    `log_id` None: of whichever log has the name.

    Raises:
        InvalidArgument: an amount, or the ages together, can't be.
        LogNotFound, MetadataCorrupt. MetadataUnavailable: it may or may not be done.

    **Cancellation:** it may or may not be done.
    """
    return await _change(
        store,
        name,
        log_id,
        lambda record: change_retention(record, change),
        nonce=nonce,
    )


async def _change(
    store: MetadataStore,
    name: str,
    log_id: LogId | None,
    rule: Callable[[LogRecord], LogRecord],
    *,
    nonce: str,
    start: Known | None = None,
) -> tuple[LogRecord, Version]:
    def build(record: LogRecord) -> LogRecord | None:
        if log_id is not None and record.log_id != log_id:
            raise LogNotFound(name=name)
        changed = rule(record)
        return None if changed is record else changed

    if start is not None:
        try:
            build(start[0])
        except (InvalidArgument, LogNotFound):
            start = None  # what it refuses may be in order by now
    record, version, _ = await commit_change(store, name, build, nonce, start=start)
    return record, version
