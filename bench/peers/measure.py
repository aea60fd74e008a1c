"""The runs: every system does the same work in turn, alone on the machine.

First one append at a time, each system in turn; then pipelined, each in turn; then both again in
the opposite order, so that a machine that grows slower or faster favours nobody. A system is
started afresh for each turn and stopped after it, for idle servers still use the processor.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench.peers.base import Peer
from bench.peers.etcd import EtcdPeer
from bench.peers.nats import NatsPeer
from bench.peers.processes import PeerFailed
from bench.peers.redis import RedisPeer
from bench.peers.sharedlog import SharedlogPeer
from sharedlog.benchmark.histogram import Histogram

OURS = SharedlogPeer.name
PEERS: Mapping[str, Callable[[], Peer]] = {
    SharedlogPeer.name: SharedlogPeer,
    EtcdPeer.name: EtcdPeer,
    NatsPeer.name: NatsPeer,
    RedisPeer.name: RedisPeer,
}
IN_FLIGHT = {EtcdPeer.name: 256, NatsPeer.name: 256, RedisPeer.name: 64}
"""Records not acknowledged, where each was fastest of 64, 256, 1024 and 4096 on two cores. Ours
bounds bytes by itself."""
WARM_UP_S = 0.5
_MB = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to run."""

    systems: Sequence[str]
    seconds: float = 5.0
    """Of each turn, after the warm-up."""
    rounds: int = 2
    record_bytes: int = 1024
    in_flight: int | None = None
    """Instead of each system's own best."""
    directory: Path | None = None
    """Where the data lies, so that it is on the right disk; the system's temporary directory."""

    def turns(self) -> Iterator[tuple[str, str]]:
        """(phase, system), in the order in which they are run."""
        for index in range(self.rounds):
            order = self.systems if index % 2 == 0 else list(reversed(self.systems))
            for phase in ("serial", "pipelined"):
                for system in order:
                    yield phase, system


@dataclass(slots=True)
class Measured:
    """What one system has done so far, over all rounds."""

    version: str = ""
    ack: str = ""
    serial: Histogram = field(default_factory=Histogram)
    pipelined_records: int = 0
    pipelined_s: float = 0.0
    batched_records: int = 0
    batched_s: float = 0.0

    @property
    def pipelined_records_per_s(self) -> float:
        """Acknowledged records over the time until the last acknowledgement."""
        return self.pipelined_records / self.pipelined_s if self.pipelined_s else 0.0


@dataclass(slots=True, kw_only=True)
class PeerResult:
    """One object of the output."""

    system: str
    version: str
    ack: str
    record_bytes: int
    serial_p50_ms: float
    serial_p99_ms: float
    pipelined_records_per_s: float
    pipelined_mb_per_s: float
    serial_appends: int
    batched_records_per_s: float | None = None
    """etcd only: puts packed into transactions by hand."""
    sharedlog_ratio: dict[str, float] = field(default_factory=dict)
    """sharedlog's figure over this system's: latency is better below 1, throughput above."""

    def to_json(self) -> dict[str, Any]:
        """Without what does not apply."""
        return {key: value for key, value in asdict(self).items() if value not in (None, {})}


async def measure(plan: Plan, tell: Callable[[str], None]) -> list[PeerResult]:
    """Run the plan; `tell` gets a line before each turn.

    Raises:
        PeerFailed: a system did not start or refused an append; all are stopped.
    """
    measured = {system: Measured() for system in plan.systems}
    turns = list(plan.turns())
    value = os.urandom(plan.record_bytes)
    for number, (phase, system) in enumerate(turns, start=1):
        tell(f"[{number}/{len(turns)}] {system}: {phase}, {plan.seconds:g} s")
        with TemporaryDirectory(prefix="sharedlog-peers-", dir=plan.directory) as directory:
            await _take_turn(
                PEERS[system](),
                phase=phase,
                plan=plan,
                value=value,
                directory=Path(directory),
                into=measured[system],
            )
        # What one system left in the page cache is not the next one's to write out.
        await asyncio.to_thread(os.sync)
    return make_results(plan, measured)


async def _take_turn(
    peer: Peer, *, phase: str, plan: Plan, value: bytes, directory: Path, into: Measured
) -> None:
    try:
        await peer.start(directory)
        into.version, into.ack = peer.version, peer.ack
        if phase == "serial":
            await _run_serial(peer, value, WARM_UP_S, Histogram())
            await _run_serial(peer, value, plan.seconds, into.serial)
            return
        in_flight = plan.in_flight or IN_FLIGHT.get(peer.name, 256)
        await _run_pipelined(peer, value, WARM_UP_S, in_flight)
        records, seconds = await _run_pipelined(peer, value, plan.seconds, in_flight)
        into.pipelined_records += records
        into.pipelined_s += seconds
        if isinstance(peer, EtcdPeer):
            began_s = time.monotonic()
            into.batched_records += await peer.append_batched(value, until_s=began_s + plan.seconds)
            into.batched_s += time.monotonic() - began_s
    finally:
        await peer.stop()


async def _run_serial(peer: Peer, value: bytes, seconds: float, into: Histogram) -> None:
    before_s = time.monotonic()
    until_s = before_s + seconds
    while before_s < until_s:
        await peer.append(value)
        after_s = time.monotonic()
        into.record(after_s - before_s)
        before_s = after_s


async def _run_pipelined(
    peer: Peer, value: bytes, seconds: float, in_flight: int
) -> tuple[int, float]:
    began_s = time.monotonic()
    records = await peer.append_pipelined(value, until_s=began_s + seconds, in_flight=in_flight)
    if not records:
        raise PeerFailed(f"{peer.name} acknowledged nothing in {seconds:g} s")
    return records, time.monotonic() - began_s


def make_results(plan: Plan, measured: Mapping[str, Measured]) -> list[PeerResult]:
    """The output: one object per system, with the ratio of ours to it."""
    results = [_make_result(system, plan, measured[system]) for system in plan.systems]
    ours = next((result for result in results if result.system == OURS), None)
    if ours is not None:
        for result in results:
            if result is not ours:
                result.sharedlog_ratio = _ratios(ours, result)
    return results


def _make_result(system: str, plan: Plan, found: Measured) -> PeerResult:
    p50, p99 = found.serial.percentiles_s([50.0, 99.0])
    per_s = found.pipelined_records_per_s
    batched = round(found.batched_records / found.batched_s, 1) if found.batched_s else None
    return PeerResult(
        system=system,
        version=found.version,
        ack=found.ack,
        record_bytes=plan.record_bytes,
        serial_p50_ms=round(p50 * 1e3, 3),
        serial_p99_ms=round(p99 * 1e3, 3),
        pipelined_records_per_s=round(per_s, 1),
        pipelined_mb_per_s=round(per_s * plan.record_bytes / _MB, 3),
        serial_appends=found.serial.count,
        batched_records_per_s=batched,
    )


def _ratios(ours: PeerResult, other: PeerResult) -> dict[str, float]:
    pairs = {
        "serial_p50": (ours.serial_p50_ms, other.serial_p50_ms),
        "serial_p99": (ours.serial_p99_ms, other.serial_p99_ms),
        "pipelined": (ours.pipelined_records_per_s, other.pipelined_records_per_s),
        "batched": (ours.pipelined_records_per_s, other.batched_records_per_s or 0.0),
    }
    return {name: round(left / right, 2) for name, (left, right) in pairs.items() if right}
