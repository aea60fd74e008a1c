"""deploy/local.sh: the whole topology without containers, from its start to its end."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from helpers.deploy_tools import DEPLOY, ROOT

SCRIPT = DEPLOY / "local.sh"
pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(300)]


def free_base() -> int:
    """A port above which all that the script uses are free."""
    random = Random()  # another worker looks for some too
    while True:
        base = random.randrange(20_000, 32_000, 50)
        try:
            for port in (tens + ones for tens in range(0, 50, 10) for ones in (1, 2, 3)):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", base + port))
        except OSError:
            continue
        return base


class Local:
    """The script, with a folder and ports of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = free_base()

    def run(self, verb: str) -> subprocess.CompletedProcess[str]:
        environ = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("SHAREDLOG_", "AWS_", "S3"))
        }
        return subprocess.run(
            [str(SCRIPT), verb, "--dir", str(self.directory)],
            env=environ | {"PYTHON": sys.executable, "PORT": str(self.port)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    def ok(self, verb: str) -> str:
        done = self.run(verb)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def cli(self, *arguments: str, given: str = "", node: int = 1) -> str:
        done = subprocess.run(
            [
                *(sys.executable, "-P", "-m", "sharedlog.cli"),
                *("--address", f"127.0.0.1:{self.port + node}", *arguments),
            ],
            input=given,
            env={"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"], "HOME": str(self.directory)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def pids(self) -> dict[str, int]:
        files = (self.directory / "run").glob("*.pid")
        return {it.stem: int(it.read_text().split()[0]) for it in files}


def lives(pid: int) -> bool:
    """There is such a process, and it has not ended; whoever is to reap it may take his time."""
    try:
        return Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Local]:
    if shutil.which("etcd") is None:
        pytest.skip("no etcd; `make test-deps` installs it")
    found = Local(tmp_path / "cluster")
    try:
        yield found
    finally:
        found.run("stop")


def test_a_cluster_is_started_loses_a_node_gets_it_back_and_is_stopped(local: Local) -> None:
    """Three nodes over three etcd members, history in S3: what was appended is read, archived, and
    read again with a node killed; `status` says who is missing, `start` brings it back, and `stop`
    leaves no process."""
    local.ok("start")
    nodes = {"n1", "n2", "n3", "etcd1", "etcd2", "etcd3"}
    assert set(local.pids()) > nodes, "and an S3 server"
    local.cli("log", "create", "orders")
    values = "".join(f"{number}\n" for number in range(100))
    local.cli("append", "orders", given=values)
    assert "up to 100" in local.cli("log", "offload", "orders")

    os.kill(local.pids()["n1"], signal.SIGKILL)
    local.cli("append", "orders", given="more\n", node=2)
    assert local.cli("read", "orders", node=2) == f"{values}more\n"
    told = local.run("status")
    assert told.returncode == 1
    assert "down  n1" in told.stdout
    assert "node-down" in told.stdout

    local.ok("start")
    assert "down  " not in local.run("status").stdout
    assert local.cli("read", "orders") == f"{values}more\n"
    pids = local.pids()
    assert set(pids) > nodes

    local.ok("stop")
    assert not local.pids()
    assert not [name for name, pid in pids.items() if lives(pid)]
    assert local.run("status").stdout == "nothing runs\n"


def test_it_says_how_it_is_used() -> None:
    """Exit code 2 for anything else than its verbs."""
    done = subprocess.run([str(SCRIPT), "restart"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "start|stop|status" in done.stderr
