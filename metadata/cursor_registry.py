"""Procedures over a metadata store: cursors are taken over, moved, listed, deleted.

Each is a short loop of read, decide (`cursors.py`) and compare-and-swap, as in `registry.py`.
"""

from __future__ import annotations

from collections.abc import Callable

from metadata.cursors import (
    Move,
    Opening,
    check_cursor_name,
    check_move,
    check_opening,
    move_cursor,
    open_cursor,
)
from metadata.encoding import cursor_key, cursors_prefix, decode_cursor, encode_cursor
from metadata.moved import where_moved
from metadata.records import CursorRecord
from metadata.registry import RACES_MAX
from metadata.store import ABSENT, MetadataStore
from sharedlog.errors import (
    CursorNotFound,
    InvalidArgument,
    MetadataUnavailable,
    VersionMismatch,
)
from sharedlog.ids import LogId
from sharedlog.limits import CURSORS_PER_LOG_MAX


async def take_cursor(store: MetadataStore, opening: Opening, *, now_ms: int) -> CursorRecord:
    """Take a cursor over, or make it; a repeat with the same owner finds it done.

    Raises:
        CursorLost: it is in another epoch than was expected. InvalidArgument: name, owner,
        position, or the log has as many cursors as it can.
        MetadataUnavailable: it may or may not be done. MetadataCorrupt.

    **Cancellation:** it may or may not be done.
    """
    check_opening(opening)

    def decide(present: CursorRecord | None) -> CursorRecord | None:
        return open_cursor(present, opening, now_ms=now_ms)

    if not opening.expected_epoch:
        await _check_room(store, opening)
    return await _change(store, opening.log_id, opening.name, decide)


async def commit_cursor(
    store: MetadataStore, log_id: LogId, move: Move, *, now_ms: int
) -> CursorRecord:
    """Move a cursor for its owner; a repeat with the same change finds it done.

    Raises:
        CursorLost: the caller is not the owner any more. InvalidArgument: it would run back.
        MetadataUnavailable: it may or may not be done. MetadataCorrupt.

    **Cancellation:** it may or may not be done.
    """
    check_move(move)

    def decide(present: CursorRecord | None) -> CursorRecord | None:
        return move_cursor(present, move, now_ms=now_ms)

    return await _change(store, log_id, move.name, decide)


async def fetch_cursor(store: MetadataStore, log_id: LogId, name: str) -> CursorRecord:
    """The cursor as it is now.

    Raises:
        CursorNotFound, InvalidArgument, MetadataUnavailable, MetadataCorrupt.
    """
    check_cursor_name(name)
    entry = await store.get(cursor_key(log_id, name))
    if entry is None:
        raise CursorNotFound(name=name)
    return decode_cursor(entry)


async def list_cursors(store: MetadataStore, log_id: LogId) -> list[CursorRecord]:
    """The cursors of a log, in order of their names.

    Raises:
        MetadataUnavailable, MetadataCorrupt.
    """
    return [decode_cursor(entry) for entry in await store.list(cursors_prefix(log_id))]


async def delete_cursor(store: MetadataStore, log_id: LogId, name: str) -> bool:
    """Delete a cursor, whoever owns it: its owner's next commit fails. Whether there was one.

    Raises:
        InvalidArgument. MetadataUnavailable: it may or may not be done.
    """
    check_cursor_name(name)
    key = cursor_key(log_id, name)
    for _ in range(RACES_MAX):
        entry = await store.get(key)
        if entry is None:
            return False
        if marked := where_moved(entry.value):
            raise MetadataUnavailable(
                f"cursor {name!r} was moved to {marked.url}, and is kept there"
            )
        try:
            await store.delete(key, expected=entry.version)
        except VersionMismatch:
            continue  # it was moved meanwhile
        return True
    raise _lost_races(name)


async def _change(
    store: MetadataStore,
    log_id: LogId,
    name: str,
    decide: Callable[[CursorRecord | None], CursorRecord | None],
) -> CursorRecord:
    key = cursor_key(log_id, name)
    for _ in range(RACES_MAX):
        entry = await store.get(key)
        present = None if entry is None else decode_cursor(entry)
        record = decide(present)
        if record is None:
            assert present is not None
            return present
        expected = ABSENT if entry is None else entry.version
        try:
            await store.put(key, encode_cursor(record), expected=expected)
        except VersionMismatch:
            continue  # somebody else was faster; what that means is decided anew
        return record
    raise _lost_races(name)


async def _check_room(store: MetadataStore, opening: Opening) -> None:
    """Openings at once may exceed the bound by their number: it bounds a listing, no more."""
    found = await store.list(cursors_prefix(opening.log_id))
    if len(found) >= CURSORS_PER_LOG_MAX and all(
        entry.key != cursor_key(opening.log_id, opening.name) for entry in found
    ):
        raise InvalidArgument(
            f"the log has {len(found):,} cursors; {CURSORS_PER_LOG_MAX:,} are the most: "
            "delete some first"
        )


def _lost_races(name: str) -> MetadataUnavailable:
    return MetadataUnavailable(f"cursor {name!r}: lost {RACES_MAX} races to change it; giving up")
