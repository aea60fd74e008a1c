"""Cursors over a real store: openings, moves, repeats, limits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from metadata.cursor_registry import (
    commit_cursor,
    delete_cursor,
    fetch_cursor,
    list_cursors,
    take_cursor,
)
from metadata.cursors import Move, Opening, check_cursor_name
from metadata.embedded import EmbeddedMetadataStore
from metadata.encoding import cursor_key, encode_cursor
from metadata.records import CursorRecord
from metadata.store import ABSENT
from sharedlog.clock import SystemClock
from sharedlog.errors import CursorLost, CursorNotFound, InvalidArgument
from sharedlog.ids import LogId, Offset
from sharedlog.limits import CURSOR_NAME_CHARS_MAX, CURSOR_OWNER_CHARS_MAX, CURSORS_PER_LOG_MAX

LOG = LogId(0xABC)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[EmbeddedMetadataStore]:
    opened = EmbeddedMetadataStore(tmp_path / "store", SystemClock())
    yield opened
    await opened.close()


def opening(
    owner: str, epoch: int = 0, *, name: str = "c", start: int = 0, position: int | None = None
) -> Opening:
    return Opening(
        log_id=LOG,
        name=name,
        owner=owner,
        owner_name=f"{owner}'s",
        expected_epoch=epoch,
        start=Offset(start),
        position=None if position is None else Offset(position),
    )


def move(owner: str, epoch: int, change: int, position: int, *, back: bool = False) -> Move:
    return Move(
        name="c",
        owner=owner,
        epoch=epoch,
        change=change,
        position=Offset(position),
        may_run_back=back,
    )


async def test_a_cursor_is_made_moved_and_taken_over(store: EmbeddedMetadataStore) -> None:
    """The new owner begins where the old one has got to; the old one is told where that is."""
    made = await take_cursor(store, opening("a", start=5), now_ms=1)
    assert (made.position, made.epoch, made.change) == (5, 1, 0)
    moved = await commit_cursor(store, LOG, move("a", 1, 1, 9), now_ms=2)
    assert (moved.position, moved.changed_ms) == (9, 2)
    taken = await take_cursor(store, opening("b", 1, start=0), now_ms=3)
    assert (taken.position, taken.epoch, taken.owner_name) == (9, 2, "b's")
    with pytest.raises(CursorLost) as lost:
        await commit_cursor(store, LOG, move("a", 1, 2, 11), now_ms=4)
    assert (lost.value.position, lost.value.epoch, lost.value.owner) == (9, 2, "b's")
    assert await fetch_cursor(store, LOG, "c") == taken


async def test_repeats_change_nothing(store: EmbeddedMetadataStore) -> None:
    """Of an opening, of a move, and of a move back that comes late."""
    first = await take_cursor(store, opening("a"), now_ms=1)
    assert await take_cursor(store, opening("a"), now_ms=2) == first
    await commit_cursor(store, LOG, move("a", 1, 1, 7), now_ms=3)
    again = await commit_cursor(store, LOG, move("a", 1, 1, 7), now_ms=4)
    assert again.changed_ms == 3
    await commit_cursor(store, LOG, move("a", 1, 2, 2, back=True), now_ms=5)
    await commit_cursor(store, LOG, move("a", 1, 3, 8), now_ms=6)
    late = await commit_cursor(store, LOG, move("a", 1, 2, 2, back=True), now_ms=7)
    assert late.position == 8


async def test_a_position_runs_back_only_if_that_is_said(store: EmbeddedMetadataStore) -> None:
    """A commit below the present position is refused and changes nothing."""
    await take_cursor(store, opening("a", start=5), now_ms=1)
    with pytest.raises(InvalidArgument, match="run back"):
        await commit_cursor(store, LOG, move("a", 1, 1, 4), now_ms=2)
    assert (await fetch_cursor(store, LOG, "c")).position == 5
    back = await commit_cursor(store, LOG, move("a", 1, 2, 4, back=True), now_ms=3)
    assert back.position == 4


async def test_an_opening_may_say_where_the_cursor_is_to_be(store: EmbeddedMetadataStore) -> None:
    """Backwards too: that is a seek by somebody who is not the owner, and fences the owner."""
    await take_cursor(store, opening("a", start=5), now_ms=1)
    assert (await take_cursor(store, opening("b", 1, position=2), now_ms=2)).position == 2
    with pytest.raises(CursorLost):
        await commit_cursor(store, LOG, move("a", 1, 1, 6), now_ms=3)


async def test_a_cursor_made_anew_is_not_the_one_that_was_deleted(
    store: EmbeddedMetadataStore,
) -> None:
    """Its epochs count from 1 again, and yet its old owner in epoch 1 has no part in it."""
    await take_cursor(store, opening("a"), now_ms=1)
    assert await delete_cursor(store, LOG, "c")
    assert not await delete_cursor(store, LOG, "c")
    with pytest.raises(CursorNotFound):
        await fetch_cursor(store, LOG, "c")
    with pytest.raises(CursorLost) as lost:
        await commit_cursor(store, LOG, move("a", 1, 1, 3), now_ms=2)
    assert lost.value.position is None
    await take_cursor(store, opening("b", start=1), now_ms=3)
    with pytest.raises(CursorLost):
        await commit_cursor(store, LOG, move("a", 1, 1, 3), now_ms=4)
    assert (await fetch_cursor(store, LOG, "c")).position == 1


async def test_of_two_openings_at_once_one_is_told_to_look_again(
    store: EmbeddedMetadataStore,
) -> None:
    """Both name the epoch that they take over from; only one can have it."""
    found = await asyncio.gather(
        *(take_cursor(store, opening(name), now_ms=1) for name in "abcd"), return_exceptions=True
    )
    assert sum(isinstance(it, CursorRecord) for it in found) == 1
    assert sum(isinstance(it, CursorLost) for it in found) == 3
    assert (await fetch_cursor(store, LOG, "c")).epoch == 1


@pytest.mark.parametrize(
    "name", ["", "a/b", "-a", "a b", "ä", "x" * (CURSOR_NAME_CHARS_MAX + 1), "a\n"]
)
def test_names_that_cannot_be(name: str) -> None:
    """No slash: a cursor's key is a path."""
    with pytest.raises(InvalidArgument):
        check_cursor_name(name)


async def test_what_is_asked_has_bounds(store: EmbeddedMetadataStore) -> None:
    """Owner, its name, positions, counts."""
    for wrong in (
        opening(""),
        opening("x" * 65),
        opening("a", start=-1),
        opening("a", position=1 << 63),
        opening("o" * 64)  # its name is longer still
        if CURSOR_OWNER_CHARS_MAX < 64
        else opening("ö"),
    ):
        with pytest.raises(InvalidArgument):
            await take_cursor(store, wrong, now_ms=1)
    for bad in (move("a", 0, 1, 1), move("a", 1, 0, 1), move("a", 1, 1, -1)):
        with pytest.raises(InvalidArgument):
            await commit_cursor(store, LOG, bad, now_ms=1)
    assert await list_cursors(store, LOG) == []


@pytest.mark.slow
async def test_a_log_has_so_many_cursors_and_no_more(store: EmbeddedMetadataStore) -> None:
    """One more is refused; those that exist can still be taken over."""
    async with asyncio.TaskGroup() as tasks:
        for index in range(CURSORS_PER_LOG_MAX):
            record = CursorRecord(
                log_id=LOG,
                name=f"c{index}",
                position=Offset(0),
                epoch=1,
                owner="a",
                owner_name="",
                changed_ms=1,
            )
            key = cursor_key(LOG, record.name)
            tasks.create_task(store.put(key, encode_cursor(record), expected=ABSENT))
    with pytest.raises(InvalidArgument, match="1,000 cursors"):
        await take_cursor(store, opening("b", name="one-more"), now_ms=1)
    assert (await take_cursor(store, opening("b", 1, name="c7"), now_ms=1)).epoch == 2
    assert len(await list_cursors(store, LOG)) == CURSORS_PER_LOG_MAX
