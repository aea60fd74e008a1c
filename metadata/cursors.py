"""Cursors: who may move a cursor, and how. The rules, without I/O.

A cursor is a place in a log, kept under one key and changed by compare-and-swap alone. It has one
**owner**: whoever opened it last, named by a random id, in an **epoch** that each opening raises by
one. An owner counts its **changes** from 1.

Theory of operation. `open_cursor` and `move_cursor` are given what is there and what is asked, and
return what is to be written, or None if nothing is. The caller swaps it in by the version that it
read, and on a lost race reads again and asks again: so every decision is made on the value that it
replaces. Requests may come late, twice and out of order, for a caller whose answer was lost sends
them again through another node.

Invariants (checked by a model over all of this in `tests/metadata/test_cursors_property.py`):

1. **Two owners never both move it.** A move is made only in the epoch and by the owner that the
   record names. Owners are random ids and not epochs alone, since a cursor that is deleted and made
   anew counts its epochs from 1 again.
2. **The position is monotone in an epoch**, but for moves that are allowed to run back.
3. **A change is made once.** Within an epoch change numbers rise; one that is not above the last is
   passed over: it was made, or its owner has given it up and gone on. So a late repeat of a move
   back never undoes what came after it.
4. **An opening is made once.** It names the epoch that it takes over from. A repeat finds itself as
   the owner; one that comes after yet another owner finds another epoch.

Deliberately not here: whether the position exists in the log. A cursor may be ahead of the tail
after a loss that was accepted; the reader says so.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Final

from metadata.records import CursorRecord
from sharedlog.errors import CursorLost, InvalidArgument
from sharedlog.ids import LogId, Offset
from sharedlog.limits import CURSOR_NAME_CHARS_MAX, CURSOR_OWNER_CHARS_MAX, NONCE_CHARS_MAX

_NAME: Final = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{CURSOR_NAME_CHARS_MAX - 1}}}")
_OFFSET_END: Final = 1 << 63


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """Somebody wants to be the owner from now on."""

    log_id: LogId
    name: str
    owner: str  # random
    owner_name: str
    expected_epoch: int  # the present one; 0: there is no such cursor
    start: Offset  # of a cursor that is made now
    position: Offset | None = None  # to be set, whatever it was


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """The owner sets the position."""

    name: str
    owner: str
    epoch: int
    change: int
    position: Offset
    may_run_back: bool = False


def check_cursor_name(name: str) -> None:
    """Raises `InvalidArgument`."""
    if not _NAME.fullmatch(name):
        raise InvalidArgument(
            f"{name!r} is no cursor's name: 1 to {CURSOR_NAME_CHARS_MAX} of a-z A-Z 0-9 . _ -, "
            "starting with a letter or digit"
        )


def check_opening(opening: Opening) -> None:
    """Raises `InvalidArgument` for what can't be, whatever is there."""
    check_cursor_name(opening.name)
    _check_owner(opening.owner)
    if len(opening.owner_name) > CURSOR_OWNER_CHARS_MAX:
        raise InvalidArgument(f"an owner's name has at most {CURSOR_OWNER_CHARS_MAX} characters")
    for position in (opening.start, opening.position or 0):
        _check_position(position)


def check_move(move: Move) -> None:
    """Raises `InvalidArgument` for what can't be, whatever is there."""
    check_cursor_name(move.name)
    _check_owner(move.owner)
    _check_position(move.position)
    if move.change < 1 or move.epoch < 1:
        raise InvalidArgument("epochs and changes count from 1")


def open_cursor(
    present: CursorRecord | None, opening: Opening, *, now_ms: int
) -> CursorRecord | None:
    """What is to be written so that the caller is the owner; None: it is already.

    Raises:
        CursorLost: the cursor is in another epoch than the caller thought.
    """
    if present is not None and present.owner == opening.owner:
        return None
    epoch = 0 if present is None else present.epoch
    if epoch != opening.expected_epoch:
        raise _lost(opening.name, present)
    position = opening.start if present is None else present.position
    return CursorRecord(
        log_id=opening.log_id,
        name=opening.name,
        position=position if opening.position is None else opening.position,
        epoch=epoch + 1,
        owner=opening.owner,
        owner_name=opening.owner_name,
        changed_ms=now_ms,
    )


def move_cursor(present: CursorRecord | None, move: Move, *, now_ms: int) -> CursorRecord | None:
    """What is to be written so that the cursor is moved; None: nothing, `present` is the answer.

    Raises:
        CursorLost: the caller is not the owner any more, or the cursor was deleted.
        InvalidArgument: the position would run back.
    """
    if present is None or (present.owner, present.epoch) != (move.owner, move.epoch):
        raise _lost(move.name, present)
    if move.change <= present.change:
        return None
    if move.position < present.position and not move.may_run_back:
        raise InvalidArgument(
            f"cursor {move.name!r} is at {present.position}: a commit of {move.position} would "
            "make it run back; seek does that"
        )
    return replace(present, position=move.position, change=move.change, changed_ms=now_ms)


def _lost(name: str, present: CursorRecord | None) -> CursorLost:
    if present is None:
        return CursorLost(name=name, position=None, epoch=0, owner="")
    return CursorLost(
        name=name, position=present.position, epoch=present.epoch, owner=present.owner_name
    )


def _check_owner(owner: str) -> None:
    if not (0 < len(owner) <= NONCE_CHARS_MAX and owner.isascii() and owner.isprintable()):
        raise InvalidArgument(f"an owner's id is 1 to {NONCE_CHARS_MAX} characters of ASCII")


def _check_position(position: int) -> None:
    if not 0 <= position < _OFFSET_END:
        raise InvalidArgument(f"{position} is no offset")
