"""The core against a model that knows nothing of groups, look-ups or tails: sets of offsets."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from helpers.log_servers import LOGLET, ME, OTHER, RIVAL, STORAGE, placed, request
from hypothesis import given, settings
from hypothesis import strategies as st

from loglet.core import LogServerCore
from loglet.group import Request
from loglet.messages import CommittedTail, OpenLoglet, SealRequest, SealResponse, StoreResponse
from loglet.store import HeldBatch, LogletState, PutBatch, PutLoglet, Write
from sharedlog.batch import PLACEMENT_BYTES, parse_placement
from sharedlog.ids import LogletId, Offset, SequencerId

BATCHES = {
    loglet: [placed(first, 1 + first % 2, loglet=loglet) for first in (0, 1, 3, 5, 7, 9, 11)]
    for loglet in (LOGLET, OTHER)
}
"""Ranges [0, 1) [1, 3) [3, 5) …: one batch for each offset, as a correct sequencer gives them."""

LOGLETS = st.sampled_from([LOGLET, OTHER])
OPENS = st.builds(lambda it, who: ("open", it, who), LOGLETS, st.sampled_from([ME, ME, RIVAL]))
STORES = st.builds(
    lambda it, start, count: ("store", it, BATCHES[it][start : start + count]),
    LOGLETS,
    st.integers(0, 6),
    st.integers(1, 3),
)
LEARNS = st.builds(lambda it, tail: ("learn", it, tail), LOGLETS, st.sampled_from([0, 1, 3, 7, 9]))
SEALS = st.builds(lambda it: ("seal", it, None), LOGLETS)
EVENTS = st.one_of(OPENS, STORES, STORES, STORES, LEARNS, SEALS)
GROUPS = st.lists(st.tuples(st.lists(EVENTS, min_size=1, max_size=5), st.booleans()), max_size=12)


@dataclass
class Model:
    """One loglet, by the words of the protocol."""

    opener: SequencerId | None = None
    known: bool = False
    sealed: bool = False
    committed: int = 0
    held: set[int] = field(default_factory=set)

    @property
    def tail(self) -> int:
        return max(self.held, default=-1) + 1

    def store(self, batches: list[bytes]) -> set[int]:
        """Offsets that are acknowledged."""
        acknowledged: set[int] = set()
        if not self.known or self.sealed or self.opener != ME:
            return acknowledged
        for batch in batches:
            placement = parse_placement(batch)
            first = placement.first
            offsets = set(range(first, placement.end))
            if not offsets <= self.held and not (
                first == 0 or first - 1 in self.held or self.committed >= first
            ):
                break
            self.held |= offsets
            acknowledged |= offsets
        return acknowledged


class Harness:
    """Feeds the same groups to the core and to the model, and keeps what was committed."""

    def __init__(self) -> None:
        self.core = LogServerCore(STORAGE, [])
        self.models = {LOGLET: Model(), OTHER: Model()}
        self.disk: dict[LogletId, dict[int, bytes]] = {LOGLET: {}, OTHER: {}}
        self.records: dict[LogletId, PutLoglet] = {}

    def run(self, events: list[tuple[str, LogletId, object]], *, full: bool) -> None:
        requests = [_request(event) for event in events]
        plan = self.core.plan(requests)
        held = {
            it.loglet: [
                HeldBatch(Offset(first), parse_placement(raw).end, raw[:PLACEMENT_BYTES])
                for first, raw in self.disk[it.loglet].items()
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
        for loglet, model in self.models.items():
            state = self.core.loglet(loglet)
            assert (state is not None) == model.known
            if state is not None:
                assert (state.local_tail, state.sealed) == (model.tail, model.sealed)
                assert state.committed_tail == model.committed
                on_disk = {
                    offset
                    for first, raw in self.disk[loglet].items()
                    for offset in range(first, parse_placement(raw).end)
                }
                assert on_disk == model.held

    def learn_early(self, events: list[tuple[str, LogletId, object]]) -> None:
        """A reload keeps committed tails, so the group's own are known from its start."""
        for kind, loglet, detail in events:
            model = self.models[loglet]
            if kind == "learn" and model.known and model.opener == ME:
                assert isinstance(detail, int)
                model.committed = max(model.committed, detail)

    def write(self, write: Write) -> None:
        if isinstance(write, PutBatch):
            assert write.first not in self.disk[write.loglet], "nothing is written twice"
            self.disk[write.loglet][write.first] = write.placed
        elif isinstance(write, PutLoglet):
            self.records[write.loglet] = write

    def states(self) -> list[LogletState]:
        return [
            LogletState(
                it.loglet,
                it.base,
                it.opened_by,
                it.sealed,
                it.local_start,
                Offset(
                    max(
                        (parse_placement(raw).end for raw in self.disk[it.loglet].values()),
                        default=0,
                    )
                ),
                Offset(0),
            )
            for it in self.records.values()
        ]

    def compare(self, event: tuple[str, LogletId, object], answer: object) -> None:
        kind, loglet, detail = event
        model = self.models[loglet]
        if kind == "seal":
            model.known = model.sealed = True
            assert isinstance(answer, SealResponse)
            assert (answer.local_tail, answer.committed_tail) == (model.tail, model.committed)
            return
        assert isinstance(answer, StoreResponse)
        if kind == "open":
            assert isinstance(detail, SequencerId)
            if not model.known:
                model.known, model.opener = True, detail
            assert bool(answer.stored) == (not model.sealed and model.opener == detail)
        elif kind == "learn":
            assert isinstance(detail, int)
            if model.known and model.opener == ME:
                model.committed = max(model.committed, detail)
        else:
            assert isinstance(detail, list)
            acknowledged = model.store(detail)
            said = {offset for it in answer.stored for offset in range(it.first, it.end)}
            assert said == acknowledged
            wanted = {
                o
                for raw in detail
                for o in range(parse_placement(raw).first, parse_placement(raw).end)
            }
            assert bool(answer.refused) == (said != wanted)


def _request(event: tuple[str, LogletId, object]) -> Request:
    kind, loglet, detail = event
    if kind == "seal":
        return SealRequest(STORAGE, loglet, Offset(0))
    if kind == "open":
        assert isinstance(detail, SequencerId)
        return request(opens=[OpenLoglet(loglet, Offset(0))], sequencer=detail)
    if kind == "learn":
        assert isinstance(detail, int)
        message = request()
        message.committed = [CommittedTail(loglet, Offset(detail))]
        return message
    assert isinstance(detail, list)
    return request(detail)


@pytest.mark.slow
@given(GROUPS)
@settings(deadline=None, max_examples=60)
def test_the_core_agrees_with_the_model(
    groups: list[tuple[list[tuple[str, LogletId, object]], bool]],
) -> None:
    """Field notes 1, 3 and 20: acks, refusals, tails and what is on disk are the model's.

    However the requests fall into groups, and also when a commit fails and its group comes again.
    """
    harness = Harness()
    for events, full in groups:
        harness.run(events, full=full)
