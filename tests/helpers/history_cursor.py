"""Judges what the owners of cursors did and were told (ADR 9): see `history_check.py`.

The kind of every violation is `cursor`. What must hold:

- No two owners have one epoch, and who asked after another one was told has a higher one.
- An owner begins where the one before left the cursor: at the last move that was told to be made,
  or at one that came after it and of which nobody was told; so does whoever looks in the end.
- An owner that moves the cursor has it still: no move that was told to be made began after the next
  owner was told that it has the cursor.
- Who was told that the cursor is lost lost it to somebody who asked for it before that.
- Every record below the end's position was handed to some owner, but for what was purged.

Owners of whom nobody knows whether they got the cursor have moved nothing.

Pure: no I/O, no clock.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise

from helpers.history import CursorEnd, History, Owner
from helpers.history_log import LogView, Violation


def check_cursors(history: History, log: LogView) -> Iterator[Violation]:
    """Every cursor by itself."""
    by_name: dict[str, list[Owner]] = defaultdict(list)
    for owner in history.owners:
        by_name[owner.cursor].append(owner)
    ends = {end.cursor: end for end in history.cursors}
    for name, owners in by_name.items():
        told = sorted((it for it in owners if it.epoch is not None), key=lambda it: it.epoch or 0)
        yield from _check_owners(told)
        yield from _check_losses(owners)
        if name in ends:
            yield from _check_end(ends[name], told, log)


def _check_owners(told: Sequence[Owner]) -> Iterator[Violation]:
    if told and told[0].position != 0:
        yield _wrong(f"{_named(told[0])} is the first and begins at {told[0].position}")
    for before, after in pairwise(told):
        assert before.responded is not None
        assert after.responded is not None
        who = f"{_named(after)} after {_named(before)}"
        if before.epoch == after.epoch:
            yield _wrong(f"{who}: one epoch for two")
        if after.responded < before.invoked:
            yield _wrong(f"{who}: it was told before that one asked")
        if after.position not in _may_be_at(before):
            where = f"it begins at {after.position}"
            yield _wrong(f"{who}: {where}, that one left it at one of {_may_be_at(before)}")
        for move in before.moves:
            if move.responded is not None and move.invoked > after.responded:
                yield _wrong(f"{who}: that one has moved to {move.position} since")


def _check_losses(owners: Sequence[Owner]) -> Iterator[Violation]:
    for owner in owners:
        if owner.lost is None:
            continue
        rivals = [it for it in owners if it is not owner and it.invoked < owner.lost]
        if not any(it.epoch is None or it.epoch > (owner.epoch or 0) for it in rivals):
            yield _wrong(f"{_named(owner)} was told that it has lost it: nobody had asked for it")


def _check_end(end: CursorEnd, told: Sequence[Owner], log: LogView) -> Iterator[Violation]:
    if not told:
        return  # by whomever it was made, nobody was told
    last = told[-1]
    if end.epoch < (last.epoch or 0):
        yield _wrong(f"it has epoch {end.epoch} in the end, {_named(last)} had a higher one")
    if end.position not in _may_be_at(last):
        message = f"it is at {end.position} in the end"
        yield _wrong(f"{message}; {_named(last)} left it at one of {_may_be_at(last)}")
    handled = {offset for owner in told for offset in owner.handled}
    for it in log.final.records:
        is_passed = log.final.start <= it.offset < end.position
        if it.control is None and is_passed and it.offset not in handled:
            yield _wrong(
                f"it is at {end.position} in the end, and {it.offset} was handed to nobody"
            )
            return


def _may_be_at(owner: Owner) -> list[int]:
    """Where an owner may have left the cursor."""
    assert owner.position is not None
    found = [owner.position]
    for move in owner.moves:
        if move.responded is not None:
            found = []
        found.append(move.position)
    return found


def _wrong(message: str) -> Violation:
    return Violation("cursor", message)


def _named(owner: Owner) -> str:
    return f"{owner.caller}, owner {owner.epoch} of {owner.cursor}"
