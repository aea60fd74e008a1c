"""The comparison: the order of its turns, what it prints, and each system's client against the
real server where that is installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.peers.base import Peer, drive_pipeline
from bench.peers.etcd import TXN_PUTS_MAX, EtcdPeer
from bench.peers.measure import Measured, Plan, make_results
from bench.peers.nats import NatsPeer, check_publish_ack
from bench.peers.processes import PeerFailed, free_ports
from bench.peers.redis import RedisPeer

ROOT = Path(__file__).parents[2]


def test_turns_are_interleaved_and_the_second_round_runs_backwards() -> None:
    turns = list(Plan(systems=["a", "b"], rounds=2).turns())
    assert turns == [
        *[("serial", "a"), ("serial", "b"), ("pipelined", "a"), ("pipelined", "b")],
        *[("serial", "b"), ("serial", "a"), ("pipelined", "b"), ("pipelined", "a")],
    ]


def test_results_have_the_promised_names_and_the_ratio_of_ours_to_theirs() -> None:
    plan = Plan(systems=["sharedlog", "etcd"], record_bytes=1000)
    ours, theirs = Measured(version="1"), Measured(version="2", ack="fsynced")
    for found, latency_s, records in ((ours, 0.001, 80_000), (theirs, 0.002, 4_000)):
        found.serial.record(latency_s, 10)
        found.pipelined_records, found.pipelined_s = records, 2.0
    theirs.batched_records, theirs.batched_s = 16_000, 2.0
    first, second = make_results(plan, {"sharedlog": ours, "etcd": theirs})
    promised = ("system", "ack", "serial_p50_ms", "serial_p99_ms")
    for name in (*promised, "pipelined_records_per_s", "pipelined_mb_per_s"):
        assert name in first.to_json()
        assert name in second.to_json()
    assert first.pipelined_mb_per_s == 40.0
    assert first.sharedlog_ratio == {}
    assert second.sharedlog_ratio == pytest.approx(
        {"serial_p50": 0.5, "serial_p99": 0.5, "pipelined": 20.0, "batched": 5.0}, abs=0.01
    )


async def test_a_pipeline_stays_within_its_window_and_drains() -> None:
    outstanding, most, sent = 0, 0, 0

    async def send(count: int) -> None:
        nonlocal outstanding, most, sent
        outstanding += count
        sent += count
        most = max(most, outstanding)

    async def read_acks() -> int:
        nonlocal outstanding
        acked = min(outstanding, 7)
        outstanding -= acked
        return acked

    acked = await drive_pipeline(20, time.monotonic() + 0.02, send, read_acks)
    assert acked == sent > 0
    assert outstanding == 0
    assert most <= 20


def test_free_ports_are_all_different() -> None:
    assert len(set(free_ports(20))) == 20


def test_a_refused_publish_is_an_error() -> None:
    check_publish_ack(b'{"stream":"BENCH", "seq":5}')
    for bad in (b"", b'{"error":{"code":503},"stream":"BENCH"}'):
        with pytest.raises(PeerFailed, match="refused"):
            check_publish_ack(bad)


PEERS: list[type[Peer]] = [EtcdPeer, NatsPeer, RedisPeer]


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.parametrize("kind", PEERS, ids=lambda kind: str(kind.name))
async def test_a_peer_starts_takes_records_and_stops(kind: type[Peer], tmp_path: Path) -> None:
    peer = kind()
    if reason := peer.missing():
        pytest.skip(reason)
    servers = []
    try:
        await peer.start(tmp_path)
        servers = list(getattr(peer, "_servers"))  # noqa: B009  each has it; `Peer` need not say so
        assert peer.version[0].isdecimal()
        await peer.append(b"one")
        until_s = time.monotonic() + 0.1
        assert await peer.append_pipelined(os.urandom(1024), until_s=until_s, in_flight=8) >= 8
        if isinstance(peer, EtcdPeer):
            packed = await peer.append_batched(b"x", until_s=time.monotonic() + 0.05)
            assert packed >= TXN_PUTS_MAX
    finally:
        await peer.stop()
    assert servers
    assert all(server.process.returncode is not None for server in servers)


def run_peers(*arguments: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = os.environ if path is None else os.environ | {"PATH": path}
    return subprocess.run(
        [sys.executable, "-m", "bench.peers", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.mark.slow
def test_an_unknown_system_is_refused() -> None:
    done = run_peers("--only", "kafka")
    assert done.returncode == 2
    assert "no such system: kafka" in done.stderr


@pytest.mark.slow
@pytest.mark.cluster
def test_the_comparison_prints_one_object_per_system(tmp_path: Path) -> None:
    if reason := RedisPeer().missing():
        pytest.skip(reason)
    options = ("--only", "redis", "--seconds", "0.3", "--rounds", "1", "--dir", str(tmp_path))
    done = run_peers("--json", *options)
    assert done.returncode == 0, done.stderr
    ours, redis = (json.loads(line) for line in done.stdout.splitlines())
    assert (ours["system"], redis["system"]) == ("sharedlog", "redis")
    assert ours["pipelined_records_per_s"] > 0
    assert redis["sharedlog_ratio"]["pipelined"] > 0
    assert list(tmp_path.iterdir()) == []
