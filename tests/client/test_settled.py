"""Waiting until a cluster has nothing left to mend."""

from __future__ import annotations

from typing import Any, cast

import pytest
from helpers.sim import SimClock, run_virtual

from sharedlog.benchmark.rolling import longest_gap_ms
from sharedlog.errors import DeadlineExceeded, InvalidArgument, SharedLogError, Unreachable
from sharedlog.settled import LOOK_EVERY_S, wait_settled
from sharedlog.v1 import cluster_pb2

WELL = cluster_pb2.GetStatusResponse(cluster_id="c")
DOWN = cluster_pb2.GetStatusResponse(
    problems=[cluster_pb2.Problem(subject="node n2", message="is down")] * 2
)
LEAVING = cluster_pb2.GetStatusResponse(
    work=[cluster_pb2.Work(kind="hand-over", subject="node n3")]
)
SCRUB = cluster_pb2.GetStatusResponse(work=[cluster_pb2.Work(kind="scrub", subject="node n3")])


class FakeCluster:
    """Answers with one after the other, and then with the last one for ever."""

    def __init__(self, *answers: cluster_pb2.GetStatusResponse | SharedLogError) -> None:
        self.answers = list(answers)
        self.looks = 0

    async def status(self) -> cluster_pb2.GetStatusResponse:
        self.looks += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, SharedLogError):
            raise answer
        return answer


async def waited(found: FakeCluster, **others: Any) -> list[str]:
    said: list[str] = []
    clock = SimClock()
    await wait_settled(cast("Any", found), timeout_s=30, say=said.append, clock=clock, **others)
    return said


def test_it_is_settled_when_two_looks_in_a_row_find_nothing() -> None:
    """Problems, a hand-over and a node that does not answer are waited for, and told once each; a
    scrub is no reason to wait."""

    async def main() -> None:
        away = Unreachable("no answer")
        found = FakeCluster(away, DOWN, DOWN, WELL, LEAVING, WELL, SCRUB)
        assert await waited(found) == [
            "no answer",
            "node n2 is down, and 1 more",
            "hand-over of node n3",
        ]
        assert found.looks == 7

    run_virtual(main)


def test_what_does_not_end_is_told_in_the_end() -> None:
    """Retryable, so that a script can tell it from a cluster that will never be well."""

    async def main() -> None:
        found = FakeCluster(DOWN)
        with pytest.raises(DeadlineExceeded, match="after 30 s: node n2 is down, and 1 more"):
            await waited(found)
        assert found.looks == pytest.approx(30 / LOOK_EVERY_S, abs=2)
        assert DeadlineExceeded.retryable
        with pytest.raises(InvalidArgument):
            await waited(FakeCluster(InvalidArgument("what?")))

    run_virtual(main)


def test_a_gap_is_that_between_moments_round_the_time_asked_for() -> None:
    """Also one that began before, or ends after it."""
    times = [0.0, 1.0, 1.5, 1.6, 3.0]
    assert longest_gap_ms(times, 1.1, 1.2) == 500.0
    assert longest_gap_ms(times, 1.55, 1.7) == 1400.0
    assert longest_gap_ms(times, 0.5, 1.1) == 1000.0
    assert longest_gap_ms([], 0.0, 1.0) == 0.0
