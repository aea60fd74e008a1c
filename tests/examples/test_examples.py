"""The programs in `examples/`: each runs to its end and says what it promised to say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from sharedlog.dev_cluster import DevCluster, module_environment

FOLDER: Final = Path(__file__).parents[2] / "examples"

LAST_LINES: Final = {
    "account.py": "never overdrawn; both clerks and the log agree on the balance: ",
    "kv_store.py": "both replicas are equal: {'counter': '20', 'shape': 'round'}",
    "leader_lock.py": "in the log: tickets 1 to 6, each once",
    "work_queue.py": "all 120 jobs are done",
}
"""By program: how the last line begins that it writes, after it has checked its own invariants."""


def test_every_example_is_run() -> None:
    """A program in the folder is in the table; `running.py` is what they share."""
    assert {path.name for path in FOLDER.glob("*.py")} == {*LAST_LINES, "running.py"}


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.parametrize("program", sorted(LAST_LINES))
def test_an_example_keeps_its_word(program: str, cluster: DevCluster) -> None:
    """On a cluster that runs: exit code 0 and the right last line, without a warning."""
    _run(program, "--address", cluster.address)


@pytest.mark.cluster
@pytest.mark.slow
def test_an_example_starts_a_cluster_if_it_is_given_none() -> None:
    """`python examples/account.py` is all there is to type."""
    _run("account.py")


def _run(program: str, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(FOLDER / program), *arguments],
        capture_output=True,
        check=False,
        env=module_environment(),
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=90,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith(LAST_LINES[program]), done.stdout
    assert not done.stderr
