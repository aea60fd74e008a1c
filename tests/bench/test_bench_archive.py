"""`sharedlog bench archive`: its figures, and a short run on real processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from sharedlog.benchmark.archive import ArchivePlan, lag_figures, run_archive


def test_the_lag_is_told_by_halves() -> None:
    """One that grows shows in the second half."""
    found = lag_figures([[1.0, 40.0, 30.0, 60.0, 50.0], [3.0]], 33.55)
    assert found == {
        "object_mb": 33.5,
        "first_half_mb": [40.0, 3.0],
        "second_half_mb": [60.0, 3.0],
        "end_mb": [50.0, 3.0],
    }


@pytest.mark.slow
async def test_a_short_run_measures_everything(tmp_path: Path) -> None:
    """Two clusters of one node each, objects of a MiB."""
    plan = ArchivePlan(
        mb_per_s=2.0,
        seconds=1.5,
        warm_up_s=0.5,
        rounds=1,
        object_mib=1,
        reads=3,
        passes=1,
        nodes=1,
        directory=tmp_path,
    )
    said: list[str] = []
    found = await run_archive(plan, said.append)
    assert found["append"]["p99_ratio"] > 0
    assert found["append"]["p99_ratio_of_medians"] > 0
    assert all(0 <= it <= 100 for it in found["append"]["archived"]["stolen_percent"])
    assert found["first_record_ms"]["n"] == 3
    assert found["catch_up"]["mb"] >= 1
    assert found["catch_up"]["ratio"] > 0
    assert found["memory"]["most_mb"]["archived"] > 0
    assert len(said) == 4
