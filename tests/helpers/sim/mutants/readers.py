"""Defects of what reads rest on beyond the log: key digests, cursors, the order of several logs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from helpers.sim.mutants.registry import Patch, mutant

from metadata import cursor_registry
from metadata.cursors import Move, move_cursor
from metadata.records import CursorRecord
from sharedlog import batch
from sharedlog.key_digest import make_extension
from sharedlog.merge import Merge


@mutant("a batch's digest is that of its first key alone", mix="calm", kinds="gap real-time short")
def digest_of_the_first_key(patch: Patch) -> None:
    def _make_extension(keys: Sequence[bytes | None]) -> bytes:
        return make_extension(keys[:1])

    patch.setattr(batch, "make_extension", _make_extension)


@mutant("an owner moves a cursor that another one has taken over", mix="calm", kinds="cursor")
def older_owner_moves_the_cursor(patch: Patch) -> None:
    def _move_cursor(present: CursorRecord | None, move: Move, **rest: Any) -> CursorRecord | None:
        assert present is not None
        return move_cursor(present, replace(move, owner=present.owner, epoch=present.epoch), **rest)

    patch.setattr(cursor_registry, "move_cursor", _move_cursor)


@mutant("a late repeat of a move is made once more", mix="late repeats", kinds="cursor", first=15)
def late_repeat_moves_the_cursor(patch: Patch) -> None:
    def _move_cursor(present: CursorRecord | None, move: Move, **rest: Any) -> CursorRecord | None:
        known = None if present is None else replace(present, change=move.change - 1)
        return move_cursor(known, move, **rest)

    patch.setattr(cursor_registry, "move_cursor", _move_cursor)


@mutant("of several logs, what has come goes first", mix="calm", kinds="merge")
def merge_does_not_wait(patch: Patch) -> None:
    patch.setattr(Merge, "_may_pass_over", lambda *_: True)
