"""Cursors under any course of openings, moves, deletions, lost answers and late repeats.

The model: some clients, each with the requests that it has sent and not forgotten. A request is
carried out in two steps as the node does it: read and decide, then compare-and-swap, retried on a
lost race; any others may come between. Any request may be carried out again at any later time, for
its sender may have sent it twice through two nodes. The invariants are those of the module.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from metadata.cursors import Move, Opening, move_cursor, open_cursor
from metadata.records import CursorRecord
from sharedlog.errors import CursorLost, InvalidArgument
from sharedlog.ids import LogId, Offset

CLIENTS = st.integers(0, 2)
POSITIONS = st.integers(0, 20).map(Offset)


@dataclass(slots=True)
class Client:
    """An owner as it sees itself: made anew for each opening."""

    owner: str
    epoch: int = 0  # 0: its opening was not answered, or it lost the cursor
    changes: int = 0
    reached: int = 0  # the highest position that it committed and that was answered
    sought: bool = False  # since then it moved back


@dataclass(slots=True)
class Request:
    """What travels, for ever."""

    client: Client
    what: Opening | Move
    answered: bool = False
    read: tuple[int, CursorRecord | None] | None = None  # decided on this, not swapped yet
    write: CursorRecord | None = None


@dataclass(slots=True)
class World:
    version: int = 1
    record: CursorRecord | None = None
    history: list[CursorRecord | None] = field(default_factory=lambda: [None])


class CursorMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.clients = [Client(f"c{index}.0") for index in range(3)]
        self.requests: list[Request] = []
        self.made = 0

    # What clients send.

    @rule(index=CLIENTS, guess=st.integers(0, 1), seek=st.none() | POSITIONS)
    def opens(self, index: int, guess: int, seek: Offset | None) -> None:
        """Anew, taking over from what it knows to be there, or from something older."""
        self.made += 1
        client = self.clients[index] = Client(f"c{index}.{self.made}")
        known = 0 if self.world.record is None else self.world.record.epoch
        opening = Opening(
            log_id=LogId(1),
            name="x",
            owner=client.owner,
            owner_name="",
            expected_epoch=max(0, known - guess),
            start=Offset(3),
            position=seek,
        )
        self.requests.append(Request(client, opening))

    @rule(index=CLIENTS, step=st.integers(0, 5))
    def commits(self, index: int, step: int) -> None:
        """At or above what it committed before."""
        self._move(self.clients[index], self.clients[index].reached + step, back=False)

    @rule(index=CLIENTS, position=POSITIONS)
    def seeks(self, index: int, position: Offset) -> None:
        self._move(self.clients[index], position, back=True)

    def _move(self, client: Client, position: int, *, back: bool) -> None:
        if not client.epoch:
            return
        client.changes += 1
        move = Move(
            name="x",
            owner=client.owner,
            epoch=client.epoch,
            change=client.changes,
            position=Offset(position),
            may_run_back=back,
        )
        self.requests.append(Request(client, move))

    # What becomes of it.

    @rule(data=st.data())
    def is_decided(self, data: st.DataObject) -> None:
        """A node reads and decides."""
        if not self.requests:
            return
        request = data.draw(st.sampled_from(self.requests))
        present = self.world.record
        try:
            if isinstance(request.what, Opening):
                written = open_cursor(present, request.what, now_ms=1)
            else:
                written = move_cursor(present, request.what, now_ms=1)
        except (CursorLost, InvalidArgument) as error:
            self._refused(request, error)
            return
        if written is None:
            assert present is not None
            self._answer(request, present, data)
        else:
            request.read, request.write = (self.world.version, present), written

    @rule(data=st.data())
    def is_swapped(self, data: st.DataObject) -> None:
        """The compare-and-swap of what was decided; it loses if another came between."""
        waiting = [request for request in self.requests if request.write is not None]
        if not waiting:
            return
        request = data.draw(st.sampled_from(waiting))
        assert request.read is not None
        written, request.write = request.write, None
        assert written is not None
        version, before = request.read
        if version != self.world.version:
            return  # it is decided anew, by another step
        self._check_step(request, before, written)
        self._put(written)
        self._answer(request, written, data)

    @rule()
    def is_deleted(self) -> None:
        if self.world.record is not None:
            self._put(None)

    def _put(self, record: CursorRecord | None) -> None:
        self.world.version += 1
        self.world.record = record
        self.world.history.append(record)

    def _answer(self, request: Request, record: CursorRecord, data: st.DataObject) -> None:
        """Its sender learns of it, or the answer is lost."""
        client = request.client
        if not data.draw(st.booleans()):
            return
        if isinstance(request.what, Opening):
            if not request.answered:
                request.answered = True
                client.epoch, client.reached = record.epoch, record.position
        else:
            client.reached = max(client.reached, record.position)
            if request.what.may_run_back:
                client.reached = record.position

    def _refused(self, request: Request, error: CursorLost | InvalidArgument) -> None:
        """A refusal is true: the client is not the owner, or the move would have run back."""
        record = self.world.record
        if isinstance(error, CursorLost) and isinstance(request.what, Move):
            assert record is None or (record.owner, record.epoch) != (
                request.what.owner,
                request.what.epoch,
            )
        if isinstance(error, CursorLost):
            position = None if record is None else record.position
            assert error.position == position

    def _check_step(
        self, request: Request, before: CursorRecord | None, after: CursorRecord
    ) -> None:
        if isinstance(request.what, Opening):
            assert after.epoch == (0 if before is None else before.epoch) + 1
            assert before is None or before.owner != after.owner
            return
        assert before is not None
        assert (
            (before.owner, before.epoch)
            == (after.owner, after.epoch)
            == (
                request.client.owner,
                request.what.epoch,
            )
        ), "only the owner moves it"
        assert after.change > before.change, "a change is made once"
        assert after.position >= before.position or request.what.may_run_back

    @invariant()
    def openings_take_effect_once(self) -> None:
        """No owner comes back after another one, but for a cursor that was deleted meanwhile."""
        seen: list[str] = []
        for record in self.world.history:
            if record is None:
                seen.clear()
            elif not seen or seen[-1] != record.owner:
                assert record.owner not in seen
                seen.append(record.owner)


CursorMachine.TestCase.settings = settings(
    max_examples=100,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
test_cursors = pytest.mark.slow(CursorMachine.TestCase)
