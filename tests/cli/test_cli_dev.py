"""`sharedlog dev` and `sharedlog store`, as processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.command import COMMAND, Cli, is_running, wait_until
from helpers.etcd_server import shared_etcd

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


class Dev:
    """A running `sharedlog dev --json`."""

    def __init__(self, cli: Cli, *arguments: str) -> None:
        self.process = cli.start("dev", "--json", "--port", "0", *arguments)
        self.ready = self.next_event()

    def next_event(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            assert self.process.stderr is not None
            pytest.fail(f"it ended: {self.process.stderr.read().decode()}")
        return json.loads(line)

    @property
    def pids(self) -> list[int]:
        metadata = self.ready["metadata"]
        return [node["pid"] for node in (*self.ready["nodes"], *([metadata] if metadata else []))]

    def is_gone(self) -> bool:
        return not any(map(is_running, self.pids))

    def end(self, signal_number: int = signal.SIGINT) -> str:
        """Signal it, wait for its end; returns what it said on stderr."""
        self.process.send_signal(signal_number)
        _, err = self.process.communicate(timeout=20)
        return err.decode()


@pytest.fixture
def devs(alone: Cli) -> Iterator[list[Dev]]:
    """Clusters that a test starts; whatever is left of them is killed."""
    started: list[Dev] = []
    yield started
    for dev in started:
        if dev.process.poll() is None:
            dev.process.kill()
        dev.process.communicate(timeout=20)
        assert wait_until(dev.is_gone)


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_dev_serves_until_it_is_told_to_stop(
    alone: Cli, devs: list[Dev], signal_number: int
) -> None:
    """Ready, usable, gone when told to: exit code 0, no process and no data left."""
    devs.append(dev := Dev(alone, "--nodes", "2"))
    assert dev.ready["event"] == "ready"
    assert dev.ready["kept"] is False
    assert [node["node_id"] for node in dev.ready["nodes"]] == ["n1", "n2"]
    assert dev.ready["address"] == dev.ready["nodes"][0]["address"]
    assert all(map(is_running, dev.pids))
    alone.environment["SHAREDLOG_ADDRESS"] = dev.ready["address"]
    alone.ok("log", "create", "orders", "--replicas", "2")
    alone.ok("append", "orders", stdin=b"a\n")
    assert Path(dev.ready["directory"]).is_dir()
    dev.end(signal_number)
    assert dev.process.returncode == 0
    assert dev.is_gone()
    assert not Path(dev.ready["directory"]).exists()


def test_no_node_outlives_a_killed_parent(alone: Cli, devs: list[Dev], tmp_path: Path) -> None:
    """SIGKILL the command: all its processes end by themselves, one that is stopped included."""
    devs.append(dev := Dev(alone, "--nodes", "2", "--dir", str(tmp_path / "data")))
    os.kill(dev.pids[1], signal.SIGSTOP)
    dev.process.kill()
    assert wait_until(dev.is_gone)


def test_a_node_that_dies_is_reported_and_the_others_go_on(
    alone: Cli, devs: list[Dev], tmp_path: Path
) -> None:
    """Kill one: it is said, with how to start it again, and two of three go on."""
    devs.append(dev := Dev(alone, "--dir", str(tmp_path / "data")))
    alone.environment["SHAREDLOG_ADDRESS"] = dev.ready["address"]
    chain = alone.ok("log", "create", "orders", "--json").json["chain"]
    victim = next(
        node
        for node in dev.ready["nodes"][1:]
        if node["node_id"] != chain[0]["sequencer"]["node_id"]
    )
    os.kill(victim["pid"], signal.SIGKILL)
    died = dev.next_event()
    assert died == {"event": "died", "node_id": victim["node_id"], "exit_code": -9}
    alone.ok("append", "orders", stdin=b"still\n")
    said = dev.end()
    assert f"{victim['node_id']} ended by SIGKILL; the others go on" in said
    assert f"sharedlogd --config {tmp_path}/data/{victim['node_id']}.toml" in said


def test_restart_brings_a_dead_node_back(alone: Cli, devs: list[Dev]) -> None:
    """--restart: the node is up again at its address, in its next life."""
    devs.append(dev := Dev(alone, "--nodes", "2", "--restart"))
    os.kill(dev.ready["nodes"][1]["pid"], signal.SIGKILL)
    assert dev.next_event()["event"] == "died"
    restarted = dev.next_event()
    assert (restarted["event"], restarted["node_id"]) == ("restarted", "n2")
    assert is_running(restarted["pid"])
    alone.environment["SHAREDLOG_ADDRESS"] = dev.ready["nodes"][1]["address"]
    assert alone.ok("node", "ls", "--json").json["nodes"][1]["generation"] == 2
    dev.end()
    assert not is_running(restarted["pid"])


def test_kept_data_are_served_again_and_appended_to(
    alone: Cli, devs: list[Dev], tmp_path: Path
) -> None:
    """A second run in one folder: the records are there, and the old log goes on behind them,
    although every process is a new one and none resumes what an earlier one ordered."""
    directory = str(tmp_path / "data")
    devs.append(first := Dev(alone, "--dir", directory))
    alone.environment["SHAREDLOG_ADDRESS"] = first.ready["address"]
    alone.ok("log", "create", "orders")
    alone.ok("append", "orders", stdin=b"a\nb\n")
    assert "kept" in first.end()
    for node in first.ready["nodes"]:
        ended = Path(node["log_file"]).read_text()
        assert '"node.stopped"' in ended, "by itself, not killed in the end"
        assert "handover.out_of_time" not in ended, "nobody waits for others that stop as well"

    devs.append(second := Dev(alone, "--dir", directory))
    alone.environment["SHAREDLOG_ADDRESS"] = second.ready["address"]
    assert len(second.ready["nodes"]) == 3  # as many as before
    assert alone.ok("read", "orders").out == b"a\nb\n"
    alone.ok("append", "orders", stdin=b"c\n")
    assert alone.ok("tail", "orders", "-n", "2").out == b"b\nc\n"
    assert "warning" not in second.end()


def test_a_folder_in_use_is_one_line(alone: Cli, devs: list[Dev], tmp_path: Path) -> None:
    """Two clusters never share data."""
    devs.append(dev := Dev(alone, "--nodes", "1", "--dir", str(tmp_path)))
    refused = alone("dev", "--dir", str(tmp_path), "--port", "0")
    assert refused.code == 1
    assert refused.err == (
        f"error: {tmp_path} is in use by another development cluster (pid {dev.process.pid})\n"
    )


def test_a_port_in_use_is_one_line_that_names_it(alone: Cli, tmp_path: Path) -> None:
    """Nothing is started, nothing is left."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = alone("dev", "--nodes", "1", "--dir", str(tmp_path), "--port", str(port))
    assert refused.code == 1
    assert refused.err.startswith(f"error: port {port} can't be used: address already in use")
    assert refused.err.count("\n") == 1


def test_a_table_for_people(alone: Cli, devs: list[Dev], tmp_path: Path) -> None:
    """Without --json: addresses on stdout, advice on stderr, with the address that fits."""
    process = alone.start("dev", "--nodes", "1", "--port", "0", "--dir", str(tmp_path))
    assert process.stdout is not None
    head = [process.stdout.readline().decode() for _ in range(3)]
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert head[0].split() == ["NODE", "ADDRESS", "HTTP", "PID"]
    assert [line.split()[0] for line in head[1:]] == ["n1", "metadata"]
    address = head[1].split()[1]
    assert f"try: sharedlog log create orders -a {address}" in err.decode()
    assert process.returncode == 0


def test_an_archive_beside_the_data_elsewhere_or_nowhere(
    alone: Cli, devs: list[Dev], tmp_path: Path
) -> None:
    """Nodes have it in their configuration, so that a node can be started again by hand."""
    own, other = tmp_path / "own data", tmp_path / "other"
    devs.append(Dev(alone, "--nodes", "1", "--dir", str(own)))
    assert devs[-1].ready["archive"] == (own / "archive").as_uri()
    assert (own / "archive").as_uri() in (own / "n1.toml").read_text()
    (node,) = devs[-1].ready["nodes"]
    at = ("--address", node["address"])
    described = alone.ok("archive", "describe", "--json", *at).json
    assert (described["url"], described["problem"]) == (f"file://{own}/archive", None)
    devs[-1].end()
    (tmp_path / "elsewhere").mkdir()
    elsewhere = (tmp_path / "elsewhere").as_uri()
    for arguments, expected in (
        (("--archive", elsewhere), elsewhere),
        (("--archive", "none"), None),
    ):
        devs.append(Dev(alone, "--nodes", "1", "--dir", str(other), *arguments))
        assert devs[-1].ready["archive"] == expected
        devs[-1].end()
        assert ("[archive]" in (other / "n1.toml").read_text()) == (expected is not None)


def test_a_store_is_inspected_offline(alone: Cli, devs: list[Dev], tmp_path: Path) -> None:
    """`store inspect` takes a node's folder, and agrees with what was acknowledged."""
    devs.append(dev := Dev(alone, "--nodes", "1", "--dir", str(tmp_path)))
    alone.environment["SHAREDLOG_ADDRESS"] = dev.ready["address"]
    log_id = alone.ok("log", "create", "orders", "--json").json["log_id"]
    alone.ok("append", "orders", stdin=b"a\nb\nc\n")
    dev.end()
    found = alone.ok("store", "inspect", str(tmp_path / "n1"), "--json").json
    (loglet,) = found["loglets"]
    assert loglet["loglet"] == f"{log_id}.0"
    assert loglet["local_tail"] == 3
    assert found["node_id"] == "n1"
    table = alone.ok("store", "inspect", str(tmp_path / "n1" / "store"))
    assert f"{log_id}.0" in table.text
    dump = alone.ok("store", "inspect", str(tmp_path / "n1"), "--dump", f"{log_id}.0")
    assert len(dump.json_lines) == 3


def test_a_folder_that_is_no_store_is_one_line(alone: Cli, tmp_path: Path) -> None:
    """And nothing is created in it."""
    refused = alone("store", "inspect", str(tmp_path))
    assert refused.code != 0
    assert refused.out == b""
    assert refused.err.startswith("error: ")
    assert refused.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_command_started_in_a_folder_with_our_names_finds_our_packages(
    alone: Cli, devs: list[Dev], tmp_path: Path
) -> None:
    """A user's own `node` folder does not get in the way of ours."""
    (tmp_path / "node").mkdir()
    (tmp_path / "node" / "__init__.py").write_text("raise SystemExit('the wrong one')")
    process = subprocess.Popen(
        [*COMMAND, "dev", "--nodes", "1", "--port", "0", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        env=alone.environment,
    )
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["event"] == "ready"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 0


def test_the_metadata_can_lie_elsewhere(devs: list[Dev], alone: Cli) -> None:
    """`--metadata` names a store that runs already: there is no process for it then."""
    url = shared_etcd().url(f"test/{uuid.uuid4().hex}")
    dev = Dev(alone, "--nodes", "1", "--metadata", url)
    devs.append(dev)
    assert dev.ready["metadata"] is None
    assert dev.ready["metadata_url"] == url
    status = alone.ok("status", "--json", "-a", dev.ready["address"])
    assert status.json["metadata"] == url
    assert url in dev.end()
