"""The simulation is able to fail: it finds each of these defects, and nothing where there is none.

A defect is one guard taken out of the real code (`helpers/sim/mutants`). It is to be found in
a stated number of seeds under one mix of faults, by a violation of the kinds that it must lead to;
under the same mix, the first seeds and the same checks find nothing in the code as it is.
"""

from __future__ import annotations

import pytest
from helpers.history_check import report
from helpers.sim.mutants import MUTANTS
from helpers.sim.profiles import PROFILES
from helpers.sim.scenario import Plan, Result, run

DURATION_S = 40.0
CLEAN_SEEDS = 3  # CI runs fresh ones of every mix besides: docs/simulation.md

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def _run(seed: int, mix: str) -> Result:
    chosen = PROFILES[mix]
    return run(
        seed,
        Plan(
            profile=chosen.profile,
            shape=chosen.shape,
            archive=chosen.archive,
            duration_s=DURATION_S,
        ),
    )


@pytest.mark.parametrize("name", MUTANTS)
def test_a_defect_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within `Mutant.seeds` seeds, by a violation of one of `Mutant.kinds`."""
    mutant = MUTANTS[name]
    mutant.apply(monkeypatch)
    others: set[str] = set()
    for seed in range(mutant.first, mutant.first + mutant.seeds):
        kinds = {violation.kind for violation in _run(seed, mutant.mix).violations}
        if kinds & mutant.kinds:
            return
        others |= kinds
    pytest.fail(
        f"not found within {mutant.seeds} seeds from {mutant.first} of {mutant.mix!r}: "
        f"{mutant.breaks}; other violations: {sorted(others)}"
    )


@pytest.mark.parametrize("mix", sorted({mutant.mix for mutant in MUTANTS.values()}))
def test_nothing_is_found_where_no_defect_is(mix: str) -> None:
    """The same mixes, without a defect."""
    for seed in range(1, CLEAN_SEEDS + 1):
        result = _run(seed, mix)
        assert not result.violations, f"{result.line()}\n{report(result.violations)}"
