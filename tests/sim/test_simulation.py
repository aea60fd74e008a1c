"""The whole cluster and its clients under the simulator: a fixed set of seeds, and determinism.

`make sim SEEDS=n FROM=m` runs many more. A seed that fails here fails there, with the same trace.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from helpers.history import Append
from helpers.history_check import report
from helpers.sim.nemesis import USUAL, Profile
from helpers.sim.run import main
from helpers.sim.scenario import CHECKPOINT_BATCHES, Plan, run

TESTS = Path(__file__).resolve().parent.parent

SHORT = Plan(duration_s=20.0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 13))
def test_the_promises_hold_whatever_goes_wrong(seed: int) -> None:
    """Linearizable, nothing lost, nothing twice, nothing changed, and the log goes on (DESIGN §1).

    Field notes 1 to 17, 25, 28, 29, 31 to 36, 38, 39, 43 and 52 in one: each seed has its own
    cluster and its own faults, and the history and the disks are judged after it.
    """
    result = run(seed)
    assert not result.violations, f"{result.line()}\n{report(result.violations)}"


@pytest.mark.slow
def test_a_calm_run_does_everything_and_fails_nothing() -> None:
    """Without faults every append is acknowledged, and no read or tail fails: the checks judge
    something, and what errors there are elsewhere come of the faults."""
    result = run(3, Plan(profile=Profile(weights={"jump_clock": 1.0}), archive=False))
    assert not result.violations, report(result.violations)
    history, counts = result.history, result.history.counts()
    asked_for = [it for it in history.appends if it.error]
    assert not _errors_of_faults(asked_for)
    assert counts["acked"] + len(asked_for) == len(history.appends) > 300
    assert counts["indefinite"] < 20
    assert counts["tails"] == len(history.tails) > 100
    assert counts["reads"] > 10
    assert counts["lives"] == len(history.lives) > 3
    assert all(not read.error for read in history.reads)
    assert counts["moves"] > 5
    assert all(owner.responded is not None for owner in history.owners)
    assert sum(read.key is not None and bool(read.records) for read in history.reads) > 2
    checkpoints_max = result.tail // CHECKPOINT_BATCHES
    certain = counts["acked"] + counts["lives"]
    assert certain <= result.tail <= certain + counts["indefinite"] + checkpoints_max
    assert sum(it.told_tail is not None for it in asked_for) > 10
    assert sum(it.told_token is not None for it in asked_for) > 1
    assert sum(it.sets is not None and it.offset is not None for it in history.appends) > 2


@pytest.mark.slow
def test_a_calm_run_reads_two_logs_as_one() -> None:
    """Some seeds have a second log, and merge the two."""
    calm = Plan(profile=Profile(weights={"jump_clock": 1.0}), archive=False, duration_s=40.0)
    result = next(it for seed in range(1, 20) if (it := run(seed, calm)).second is not None)
    assert not result.violations, report(result.violations)
    for history in result.histories:
        assert history.counts()["acked"] > 15
        merged = [read for read in history.reads if read.reader.startswith("merge")]
        assert len(merged) > 1
        assert any(read.follow and len(read.records) > 10 for read in merged)
        assert any(not read.follow and read.records for read in merged)
        assert all(not read.error for read in merged)


def _errors_of_faults(appends: Iterable[Append]) -> list[str]:
    """Those that no client has brought about: by a condition, another life, an appender dropped."""
    own = ("OffsetMismatch", "FencingTokenMismatch", "ProducerFenced", "SequenceGap")
    return [
        it.error
        for it in appends
        if it.error
        and not it.error.startswith(own)
        and not any(words in it.error for words in ("was closed", "has begun"))
    ]


@pytest.mark.slow
@pytest.mark.parametrize("faults", [("reconfigure", "reconfigure_at_once"), ("stop",)])
def test_planned_changes_show_no_error(faults: tuple[str, ...]) -> None:
    """Sequencer, nodeset, replicas and quorum change, and nodes are stopped and started, and all
    that is appended is acknowledged, all reads and tails succeed."""
    profile = Profile(weights=dict.fromkeys(faults, 1.0), mean_pause_s=1.0, at_once_max=1)
    for seed in range(1, 4):
        result = run(seed, Plan(profile=profile))
        assert not result.violations, f"{result.line()}\n{report(result.violations)}"
        assert sum(result.faults.values()) > 10
        assert result.segments > 5
        for history in result.histories:
            errors = _errors_of_faults(history.appends)
            errors += [it.error for it in history.reads if it.error]
            errors += [it.error for it in history.tails if it.error]
            assert not errors, errors[:3]


@pytest.mark.slow
def test_every_fault_is_met() -> None:
    """A mix of all faults: each of them finds something to break, so none is dead code."""
    met: set[str] = set()
    profile = Profile(weights=dict.fromkeys(USUAL, 1.0), mean_pause_s=0.6, wait_max_s=3.0)
    for seed in range(1, 6):
        result = run(seed, Plan(profile=profile))
        assert not result.violations, f"{result.line()}\n{report(result.violations)}"
        met |= set(result.faults)
    assert met - {"offload", "trim", "purge", "sweep"} == set(USUAL), "besides what operators do"


@pytest.mark.slow
def test_the_same_seed_gives_the_same_trace() -> None:
    """One seed decides everything; another seed decides otherwise."""
    first, second = run(7, SHORT, keep_lines=True), run(7, SHORT, keep_lines=True)
    assert first.trace.lines == second.trace.lines
    assert first.trace.digest() == second.trace.digest()
    assert first.trace.digest() != run(8, SHORT).trace.digest()
    assert first.trace.count > 1000


@pytest.mark.slow
def test_another_process_gives_the_same_trace() -> None:
    """Neither the hashes of strings nor the addresses of objects decide anything."""
    expected = run(7, SHORT).trace.digest()[:8]
    for hash_seed in ("1", "2"):
        environment = os.environ | {
            "PYTHONHASHSEED": hash_seed,
            "PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}",
        }
        command = "-m helpers.sim.run --seeds 1 --from 7 --duration 20"
        done = subprocess.run(
            [sys.executable, *command.split()],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert f"trace {expected}" in done.stdout, done.stdout


@pytest.mark.slow
def test_the_runner_tells_how_to_run_a_failing_seed_again(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stops at the first failure, says what is wrong and how to see it again; exit code 1."""
    from helpers.sim import scenario

    monkeypatch.setattr(scenario, "REST_S", 0.5)  # nothing is well so soon
    assert main(["--seeds", "3", "--from", "5", "--duration", "5"]) == 1
    told = capsys.readouterr().out
    assert "FAILED seed 5" in told
    assert "stuck:" in told
    assert "python -m helpers.sim.run --from 5 --seeds 1 --duration 5" in told
    assert "seed 6" not in told
