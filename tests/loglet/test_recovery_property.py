"""Random histories of attempts, sequencers and log servers (`helpers/recovery_histories.py`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from helpers.memory_log_server import MemoryLogServer
from helpers.recovery_histories import World, run

from loglet.messages import (
    SealResponse,
)
from loglet.recovery import SegmentRecovery
from metadata.quorum import QuorumRule
from sharedlog.errors import (
    SharedLogError,
    Unreachable,
    Unrepairable,
)
from sharedlog.ids import LogletId, Offset


@pytest.mark.slow
@pytest.mark.parametrize("part", range(6))
def test_no_history_loses_what_was_acknowledged(part: int) -> None:
    """DESIGN.md §6 over real cores. Field notes 1, 2, 5, 7, 10, 14 and 17.

    Nothing acknowledged lies at or above an end, every offset below it is on a write quorum but for
    disks that failed, no loser moves an end, and the log can always go on.
    """
    ends = acked = 0
    for seed in range(1_000 * part, 1_000 * part + 48):
        world = run(seed)
        ends += len(world.chain.ends)
        acked += sum(len(it.acked) for it in world.writers.values())
    assert ends > 60, "the histories must be about something"
    assert acked > 60


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_no_history_with_trims_does_either(part: int) -> None:
    """Field notes 44 to 46: what was trimmed anywhere is committed, and kept elsewhere.

    So it is no reason why a segment could not end, or replacements not take lost ones' places; and
    all above it is on a write quorum, as ever.
    """
    ends = trimmed = 0
    for seed in range(1_000 * part, 1_000 * part + 48):
        world = run(seed, trims=True)
        ends += len(world.chain.ends)
        states = [it for server in world.servers.values() for it in server.core.loglets()]
        trimmed += sum(it.local_start > it.base for it in states)
    assert ends > 60, "the histories must be about something"
    assert trimmed > 60


def test_histories_that_once_went_wrong() -> None:
    """A survivor's hole beside a replacement in another zone: too few copies for the spread."""
    for seed in (308_679,):
        run(seed)


def test_attempts_with_the_same_answers_agree() -> None:
    """Two that see the same servers find the same end, so it does not matter who wins."""
    for seed in range(40):
        world = World(seed, replicas=3, write_quorum=2)
        world.run(60)
        for server in world.servers.values():
            if not server.up:
                server.crash()
        segment = world.chain.open_segment
        pair = [world._attempt(segment) for _ in range(2)]
        for attempt in pair:
            while attempt.seals():
                attempt.seal(attempt.seals()[0])
        for attempt in pair:
            attempt.finish()
        first, second = (it.ending for it in pair)
        assert first is not None
        assert second is not None
        assert first.end == second.end
        assert [it.won for it in pair] == [True, False]


# The harness must be able to fail.


def _counts_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    def on_seal_failed(self: SegmentRecovery, server: int, error: SharedLogError) -> None:
        if isinstance(error, Unreachable):
            self.on_sealed(server, SealResponse(self.segment.base, self.segment.base))
        else:
            self._failures[server] = error

    monkeypatch.setattr(SegmentRecovery, "on_seal_failed", on_seal_failed)


def _lets_the_wiped_vote(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask_anybody(self: MemoryLogServer, *args: object) -> SealResponse:
        _, loglet, base = args
        assert isinstance(loglet, LogletId)
        return seal(self, self.replica, loglet, Offset(int(str(base))))

    seal = MemoryLogServer.seal
    monkeypatch.setattr(MemoryLogServer, "seal", ask_anybody)


def _copies_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SegmentRecovery, "_uncovered", lambda *_, **__: [])


def _needs_one_seal_less(monkeypatch: pytest.MonkeyPatch) -> None:
    is_seal_quorum = QuorumRule.is_seal_quorum

    def fewer(self: QuorumRule, members: list[int]) -> bool:
        others = [it for it in range(self.replicas) if it not in members]
        return is_seal_quorum(self, [*members, *others[:1]])

    monkeypatch.setattr(QuorumRule, "is_seal_quorum", fewer)


def _forgets_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    def undamaged(self: MemoryLogServer, *_: object) -> list[object]:
        return []

    monkeypatch.setattr(MemoryLogServer, "damaged", undamaged)


def _leaves_anybody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def dispensable(self: SegmentRecovery, offset: Offset) -> frozenset[int]:
        voters = self._voters()
        return frozenset(it for it in voters if self._answers[it].local_tail > offset)

    monkeypatch.setattr(SegmentRecovery, "_dispensable", dispensable)
    monkeypatch.setattr(QuorumRule, "is_seal_quorum", lambda self, members: bool(members))


def _counts_a_replacement_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SegmentRecovery, "_is_filled", lambda *_: True)


def _takes_the_lowest_tail(monkeypatch: pytest.MonkeyPatch) -> None:
    on_sealed = SegmentRecovery.on_sealed

    def lowered(self: SegmentRecovery, server: int, answer: SealResponse) -> None:
        known = [it.local_tail for it in self._answers.values()]
        on_sealed(self, server, replace(answer, local_tail=min([answer.local_tail, *known])))

    monkeypatch.setattr(SegmentRecovery, "on_sealed", lowered)


def _fails(seed: int) -> bool:
    try:
        run(seed)
    except AssertionError:
        return True
    return False


@pytest.mark.slow
@pytest.mark.parametrize(
    "defect",
    [
        _counts_silence,
        _lets_the_wiped_vote,
        _copies_nothing,
        _needs_one_seal_less,
        _forgets_damage,
        _leaves_anybody_out,
        _counts_a_replacement_at_once,
        _takes_the_lowest_tail,
    ],
)
def test_the_histories_find_each_defect(
    defect: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a guard taken out, one of 400 histories shows it."""
    defect(monkeypatch)
    assert any(_fails(seed) for seed in range(400))


def test_unrepairable_is_never_said_while_it_can_be_repaired() -> None:
    """Field note 18: up to a write quorum less one of lost disks an attempt goes on by itself."""
    for seed in range(60):
        world = World(seed, replicas=3, write_quorum=3)
        world.run(40)
        for server in list(world.servers.values())[:2]:
            if world._may_fail(server):
                server.wipe()
        world.finish()
        assert not any(isinstance(it.error, Unrepairable) for it in world.attempts)
