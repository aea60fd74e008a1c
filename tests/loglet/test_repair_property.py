"""The core against a model with seals, repairs, ends, trims and damage: sets of batches, by rules.

The model knows nothing of groups, look-ups, room or tails; it is the words of
`loglet/repair_rules.py`, `loglet/trim_rules.py` and `loglet/core.py` written down a second time.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from typing import Literal

import pytest
from helpers.core_disk import repair, tell, trim
from helpers.log_servers import LOGLET, ME, OTHER, STORAGE, opened, placed, request
from hypothesis import given, settings
from hypothesis import strategies as st

from loglet.core import LogServerCore
from loglet.group import Request
from loglet.held import restored
from loglet.messages import (
    CommittedTail,
    RepairResponse,
    SealRequest,
    SealResponse,
    StoreResponse,
    TellEndsResponse,
    TrimmedLoglets,
)
from loglet.store import DropBatches, HeldBatch, LogletState, PutLoglet, PutRepaired, Write
from sharedlog.batch import HEADERS_BYTES, PLACEMENT_BYTES, Placement, parse_placement
from sharedlog.ids import LogletId, Offset

FIRSTS = (0, 1, 3, 5, 7, 9, 11)
BATCHES = {
    loglet: [
        placed(first, 1 + first % 2, loglet=loglet, committed=FIRSTS[max(index - 2, 0)])
        for index, first in enumerate(FIRSTS)
    ]
    for loglet in (LOGLET, OTHER)
}
"""Ranges [0, 1) [1, 3) [3, 5) …: one batch for each offset, as a correct sequencer gives them."""

Kind = Literal["open", "store", "learn", "seal", "repair", "tell", "trim"]


@dataclass(frozen=True)
class Event:
    kind: Kind
    loglet: LogletId
    number: int = 0  # a tail, an end, or a local start
    batches: tuple[bytes, ...] = ()

    def request(self) -> Request:
        if self.kind == "seal":
            return SealRequest(STORAGE, self.loglet, Offset(0))
        if self.kind == "repair":
            return repair(*self.batches, committed=self.number, loglet=self.loglet)
        if self.kind == "tell":
            return tell((self.loglet, self.number))
        if self.kind == "trim":
            return trim((self.loglet, self.number))
        message = request(self.batches)
        if self.kind == "open":
            message.opens = [opened(self.loglet)]
        elif self.kind == "learn":
            message.committed = [CommittedTail(self.loglet, Offset(self.number))]
        return message


@dataclass
class Model:
    """One loglet, by the words of the protocol."""

    known: bool = False
    by_sequencer: bool = False
    sealed: bool = False
    committed: int = 0
    told_end: int | None = None
    local_start: int = 0
    held: dict[int, Placement] = field(default_factory=dict)  # by first offset; none is trimmed
    damaged: set[int] = field(default_factory=set)

    @property
    def offsets(self) -> set[int]:
        return {offset for it in self.held.values() for offset in range(it.first, it.end)}

    @property
    def tail(self) -> int:
        return max([self.local_start - 1, *self.offsets]) + 1

    @property
    def hint(self) -> int:
        """The committed tail that a start finds on the disk: that of the last sound batch."""
        sound = [it for first, it in sorted(self.held.items()) if first not in self.damaged]
        found = max([self.local_start, *(it.committed_tail for it in sound[-1:])])
        return found if self.told_end is None else min(found, self.told_end)

    def run(self, event: Event) -> bool:
        """Whether all of it is answered well."""
        match event.kind:
            case "open":
                fresh = not self.known
                self.known, self.by_sequencer = True, self.by_sequencer or fresh
                return self.by_sequencer and not self.sealed and self.told_end is None
            case "seal":
                self.known = self.sealed = True
                return True
            case "learn":
                if self.by_sequencer:
                    self.learn(event.number)
                return True
            case "tell":
                return not self.known or self.tell(event.number)
            case "trim":
                self.trim(event.number)
                return self.known
            case "store":
                writes = self.by_sequencer and not self.sealed
                return all(writes and self.take(it, None) for it in event.batches)
            case "repair":
                return self.known and all(self.take(it, event.number) for it in event.batches)

    def learn(self, tail: int) -> None:
        if self.told_end is None or tail <= self.told_end:
            self.committed = max(self.committed, tail)

    def tell(self, end: int) -> bool:
        if self.told_end is None and end >= self.committed:
            self.told_end = end
        return self.told_end == end

    def trim(self, local_start: int) -> None:
        known = self.committed if self.told_end is None else self.told_end
        self.local_start = max(self.local_start, min(local_start, known) if self.known else 0)
        self.committed = max(self.committed, self.local_start)
        self.held = {it.first: it for it in self.held.values() if it.end > self.local_start}
        self.damaged &= self.held.keys()

    def take(self, batch: bytes, evidence: int | None) -> bool:
        """`evidence`: the committed tail of a repair; None for the sequencer's store."""
        it = parse_placement(batch)
        if self.told_end is not None and it.end > self.told_end:
            return False
        if evidence is None:
            self.learn(it.committed_tail)
        if it.end <= self.local_start:
            return True
        if it.first in self.damaged:
            if evidence is None:
                return False
            self.damaged.remove(it.first)
        elif it.first not in self.held:
            committed = max(self.committed, evidence or 0)
            if it.first and it.first - 1 not in self.offsets and committed < it.first:
                return False
            self.held[it.first] = it
        return True


class Harness:
    """Feeds the same groups to the core and to the model, and keeps what was committed."""

    def __init__(self) -> None:
        self.core = LogServerCore(STORAGE, [])
        self.models = {LOGLET: Model(), OTHER: Model()}
        self.disk: dict[LogletId, dict[int, HeldBatch]] = {LOGLET: {}, OTHER: {}}
        self.records: dict[LogletId, PutLoglet] = {}

    def run(self, events: list[Event], *, full: bool) -> None:
        plan = self.core.plan([event.request() for event in events])
        held = {
            it.loglet: [
                batch
                for batch in self.disk[it.loglet].values()
                if any(
                    batch.first < other.end and batch.end > other.start
                    for other in plan.look_ups
                    if other.loglet == it.loglet
                )
            ]
            for it in plan.look_ups
        }
        if full:
            # The commit fails for want of room: nothing was written, and the group comes again.
            self.core.decide(plan, held, room_bytes=1 << 40)
            self.core.reload(self.states())
            self.learn_early(events)
        decision = self.core.decide(plan, held, room_bytes=1 << 40)
        self.core.check_invariants()
        for write in decision.writes:
            self.write(write)
        for event, answer in zip(events, decision.answers, strict=True):
            self.compare(event, answer)
        for loglet in self.models:
            self.check(loglet)

    def learn_early(self, events: list[Event]) -> None:
        """A reload keeps committed tails, so those of the group are known from its start."""
        tried = deepcopy(self.models)
        for event in events:
            tried[event.loglet].run(event)
        for loglet, model in self.models.items():
            if model.known:
                model.committed = max(tried[loglet].committed, model.hint)

    def write(self, write: Write) -> None:
        if isinstance(write, PutLoglet):
            self.records[write.loglet] = write
            return
        assert not isinstance(write, DropBatches), "a core deletes nothing"
        disk = self.disk[write.loglet]
        old = disk.get(write.first)
        if isinstance(write, PutRepaired) and write.overwrites:
            assert old is not None
            assert old.placement_bytes is None, "only damage is overwritten"
            assert old.end == write.end
        else:
            assert old is None, "nothing is written twice"
        disk[write.first] = HeldBatch(write.first, write.end, write.placed[:PLACEMENT_BYTES])

    def damage(self, loglet: LogletId, index: int) -> None:
        """A bit of a held batch flips, if that batch is held."""
        batch = self.disk[loglet].get(FIRSTS[index])
        if batch is not None and batch.end > self.models[loglet].local_start:
            self.disk[loglet][batch.first] = HeldBatch(batch.first, batch.end, None)
            self.models[loglet].damaged.add(batch.first)

    def sweep(self, count: int) -> None:
        """So many batches that were trimmed are deleted, in order."""
        for loglet, record in self.records.items():
            gone = [it for it in self.disk[loglet].values() if it.end <= record.local_start]
            for batch in sorted(gone)[:count]:
                del self.disk[loglet][batch.first]

    def restart(self) -> None:
        """A new life: what is on disk counts, and committed tails fall back to what is there."""
        self.core = LogServerCore(STORAGE, self.states())
        for loglet, model in self.models.items():
            model.committed = model.hint
            self.check(loglet)

    def states(self) -> list[LogletState]:
        return [
            restored(
                record,
                (
                    # Its bytes do not matter beyond the placement.
                    (it.first, it.end, (it.placement_bytes or b"").ljust(HEADERS_BYTES, b"\0"))
                    for _, it in sorted(self.disk[loglet].items(), reverse=True)
                ),
            )
            for loglet, record in self.records.items()
        ]

    def compare(self, event: Event, answer: object) -> None:
        model = self.models[event.loglet]
        well = model.run(event)
        match event.kind:
            case "seal":
                assert isinstance(answer, SealResponse)
                assert (answer.local_tail, answer.committed_tail) == (model.tail, model.committed)
                assert answer.local_start == model.local_start
            case "trim":
                assert isinstance(answer, TrimmedLoglets)
                assert [it.local_start for it in answer.loglets] == [model.local_start] * well
                assert [it.local_tail for it in answer.loglets] == [model.tail] * well
            case "repair":
                assert isinstance(answer, RepairResponse) == well
            case "tell":
                assert isinstance(answer, TellEndsResponse) == well
            case _:
                assert isinstance(answer, StoreResponse)
                assert bool(answer.refused) == (not well)

    def check(self, loglet: LogletId) -> None:
        model, state = self.models[loglet], self.core.loglet(loglet)
        assert (state is not None) == model.known
        if state is None:
            return
        assert (state.local_tail, state.sealed) == (model.tail, model.sealed)
        assert (state.committed_tail, state.told_end) == (model.committed, model.told_end)
        assert state.opened_by == (ME if model.by_sequencer else None)
        assert state.local_start == model.local_start
        disk = {first: it for first, it in self.disk[loglet].items() if it.end > model.local_start}
        assert {it.first: it.end for it in disk.values()} == {
            it.first: it.end for it in model.held.values()
        }
        assert {it.first for it in disk.values() if it.placement_bytes is None} == model.damaged


def _store(loglet: LogletId, run: slice) -> Event:
    return Event("store", loglet, 0, tuple(BATCHES[loglet][run]))


def _repair(loglet: LogletId, tail: int, run: slice) -> Event:
    return Event("repair", loglet, tail, tuple(BATCHES[loglet][run]))


LOGLETS = st.sampled_from([LOGLET, OTHER])
TAILS = st.sampled_from([0, 1, 3, 5, 7, 9])
RUNS = st.builds(
    lambda start, count: slice(start, start + count), st.integers(0, 6), st.integers(1, 3)
)
EVENTS = st.one_of(
    st.builds(lambda it: Event("open", it), LOGLETS),
    st.builds(_store, LOGLETS, RUNS),
    st.builds(_store, LOGLETS, RUNS),
    st.builds(lambda it, tail: Event("learn", it, tail), LOGLETS, TAILS),
    st.builds(lambda it: Event("seal", it), LOGLETS),
    st.builds(_repair, LOGLETS, TAILS, RUNS),
    st.builds(lambda it, end: Event("tell", it, end), LOGLETS, st.sampled_from([3, 5, 9, 12])),
    st.builds(lambda it, start: Event("trim", it, start), LOGLETS, st.integers(0, 13)),
)
BETWEEN = st.one_of(
    st.none(),
    st.just("restart"),
    st.tuples(LOGLETS, st.integers(0, len(FIRSTS) - 1)),
    st.integers(1, len(FIRSTS)),
)
GROUPS = st.lists(
    st.tuples(st.lists(EVENTS, min_size=1, max_size=5), st.booleans(), BETWEEN), max_size=14
)


@pytest.mark.slow
@given(GROUPS)
@settings(deadline=None, max_examples=300)
def test_the_core_agrees_with_the_model(
    groups: list[tuple[list[Event], bool, str | tuple[LogletId, int] | int | None]],
) -> None:
    """Field notes 2, 3, 5, 7, 20, 44, 46: answers, tails, ends and what is on disk are the model's.

    However the requests fall into groups, whatever is damaged between them, however far what was
    trimmed is deleted, when a commit fails and its group comes again, and after a restart.
    """
    harness = Harness()
    for events, full, between in groups:
        harness.run(events, full=full)
        if between == "restart":
            harness.restart()
        elif isinstance(between, tuple):
            harness.damage(*between)
        elif isinstance(between, int):
            harness.sweep(between)
