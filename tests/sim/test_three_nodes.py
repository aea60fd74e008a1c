"""Three nodes and a client under the simulator: the real code, everything around it simulated."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from helpers.sim.scenario import Nemesis, Outcome, crash_one, run, trouble

TESTS = Path(__file__).resolve().parent.parent
WRITE_QUORUM = 2


def check(outcome: Outcome, *, appends: int = 60) -> None:
    """What the promises say of a finished run."""
    answered = len(outcome.acknowledged) + outcome.indefinite + len(outcome.refused)
    assert answered == appends
    offsets = [offset for offset, _ in outcome.read]
    assert offsets == list(range(outcome.tail)), "offsets are dense from 0 to the tail"
    found = dict(outcome.read)
    for offset, value in outcome.acknowledged.items():
        assert found[offset] == value, f"offset {offset} was acknowledged as {value!r}"
        assert outcome.copies[offset] >= WRITE_QUORUM, f"offset {offset} lacks copies"
    repeated = [value for value, count in Counter(found.values()).items() if count > 1]
    assert not repeated, "no append is in the log twice"
    assert not set(outcome.refused) & set(found.values()), "a definite failure is definite"
    assert outcome.followed == outcome.read, "a follower sees what a reader sees"


@pytest.mark.parametrize("seed", range(1, 6))
def test_a_crashed_log_server_costs_nothing(seed: int) -> None:
    """With two of three log servers up every append is acknowledged and read back at its offset."""
    outcome = run(seed, crash_one)
    check(outcome)
    assert outcome.indefinite == 0
    assert not outcome.refused


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 21))
def test_acknowledged_records_survive_trouble(seed: int) -> None:
    """Crashes, cuts, broken connections, no write quorum for a while: nothing acknowledged is lost.

    Field notes 25, 28, 29, 38, 39 and 52 in one: acks mean fsynced copies, a black-holed or slow
    replica holds nobody up for good, followers get the last record without a further write, and
    the metadata store is not on the way.
    """
    check(run(seed, trouble))


@pytest.mark.parametrize("nemesis", [crash_one, trouble], ids=lambda found: found.__name__)
def test_the_same_seed_gives_the_same_trace(nemesis: Nemesis) -> None:
    """One seed decides everything; another seed decides otherwise."""
    first, second, other = run(7, nemesis), run(7, nemesis), run(8, nemesis)
    assert first.trace.lines == second.trace.lines
    assert first.trace.digest() != other.trace.digest()
    assert len(first.trace.lines) > 300


@pytest.mark.slow
def test_another_process_gives_the_same_trace() -> None:
    """Neither the hashes of strings nor the addresses of objects decide anything."""
    expected = run(7, trouble).trace.digest()
    for hash_seed in ("1", "2"):
        environment = os.environ | {
            "PYTHONHASHSEED": hash_seed,
            "PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}",
        }
        done = subprocess.run(
            [sys.executable, "-m", "helpers.sim.scenario", "7"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert done.stdout.strip() == expected
