"""The back-off between reconfigurations of one log."""

from __future__ import annotations

import pytest

from node.pacing import FAILED_WAIT_MAX_S, WAIT_MAX_S, Pacing


def fight(pacing: Pacing[str], *, succeeded: bool, attempts: int) -> list[float]:
    """Waits of somebody who tries again as soon as he is let."""
    now_s, waits = 100.0, []
    for _ in range(attempts):
        wait_s = pacing.wait_s("log", now_s)
        waits.append(wait_s)
        now_s += wait_s + 0.02
        pacing.attempted("log", now_s, succeeded=succeeded)
    return waits


def test_the_first_is_immediate_and_a_fight_slows_down() -> None:
    """Field note 35: 0, 0.1 s, then doubling up to five seconds."""
    waits = fight(Pacing(), succeeded=True, attempts=10)
    assert waits == pytest.approx([0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0])
    assert waits[-1] == WAIT_MAX_S


def test_what_can_not_be_done_is_tried_more_often() -> None:
    """A failed attempt fences nobody, so the wait stays short."""
    waits = fight(Pacing(), succeeded=False, attempts=8)
    assert waits == pytest.approx([0, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0])
    assert waits[-1] == FAILED_WAIT_MAX_S


def test_faults_now_and_then_are_mended_at_once() -> None:
    """A process killed every two seconds does not make the log wait."""
    pacing: Pacing[str] = Pacing()
    for second in range(0, 60, 2):
        assert pacing.wait_s("log", second) == 0
        pacing.attempted("log", second, succeeded=True)


def test_logs_do_not_wait_for_each_other_and_are_forgotten() -> None:
    """Each log has a row of its own; those that are over are dropped."""
    pacing: Pacing[str] = Pacing()
    for number in range(1_000):
        pacing.attempted(f"log{number}", number * 0.1, succeeded=True)
        assert pacing.wait_s("other", number * 0.1) == 0
    assert pacing.wait_s("log999", 99.9) == pytest.approx(0.1)
    assert len(pacing._rows) < 30
