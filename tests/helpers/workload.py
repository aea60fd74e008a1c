"""Load on a log through the public client, and what became of every record of it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from base64 import b64decode
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from sharedlog import AppendIndefinite, Log, SharedLogError
from sharedlog.appender import Appender
from sharedlog.clock import SystemClock
from sharedlog.pending import PendingAppend


@dataclass
class Outcome:
    """What a writer was told. Values are unique, so that each record can be traced."""

    acked: dict[int, bytes] = field(default_factory=dict)  # by offset
    indefinite: set[bytes] = field(default_factory=set)
    definite: dict[bytes, SharedLogError] = field(default_factory=dict)
    confirmed: int = 0  # records acknowledged so far, while the writer still runs

    async def until_confirmed(self, records: int) -> None:
        """Wait until the writer has so many acknowledgements, however long that takes."""
        while self.confirmed < records:  # noqa: ASYNC110  another process's progress
            await asyncio.sleep(0.02)


async def append_until(
    log: Log,
    stop: asyncio.Event,
    *,
    prefix: bytes,
    outcome: Outcome | None = None,
    value_bytes: int = 500,
    timeout_s: float = 5.0,
) -> Outcome:
    """Append unique records without pause, pipelined, until told to stop; bounded in any case."""
    outcome = outcome or Outcome()
    waiting: list[tuple[bytes, asyncio.Future[int]]] = []
    appender: Appender = log.appender(timeout_s=timeout_s)
    number = 0
    try:
        while not stop.is_set() and number < 400_000:
            value = prefix + b"-%d-" % number
            number += 1
            value = value.ljust(value_bytes, b".")
            pending = await appender.append(value)
            waiting.append((value, asyncio.ensure_future(_offset(outcome, pending))))
            if number % 200 == 0:
                await asyncio.sleep(0.002)
        for value, future in waiting:
            await _settle(outcome, value, future)
    finally:
        await appender.abort()
    return outcome


async def _offset(outcome: Outcome, pending: PendingAppend) -> int:
    offset = await pending
    outcome.confirmed += 1
    return offset


async def _settle(outcome: Outcome, value: bytes, future: asyncio.Future[int]) -> None:
    try:
        offset = await future
    except AppendIndefinite:
        outcome.indefinite.add(value)
    except SharedLogError as error:
        outcome.definite[value] = error
    else:
        assert offset not in outcome.acked, f"offset {offset} was acknowledged twice"
        outcome.acked[offset] = value


def check_history(outcome: Outcome, values: dict[int, bytes]) -> None:
    """What was read back against what the writer was told (DESIGN §1, promises 1, 2, 5)."""
    assert list(values) == list(range(len(values))), "offsets are dense, from 0"
    for offset, value in outcome.acked.items():
        assert values.get(offset) == value, f"acknowledged record {offset} is not there"
    counts = Counter(values.values())
    assert not [value for value, count in counts.items() if count > 1], "a record is there twice"
    unknown = set(values.values()) - set(outcome.acked.values()) - outcome.indefinite
    assert not unknown, "a record that definitely failed, or was never appended, is in the log"


async def read_all(log: Log) -> dict[int, bytes]:
    """Every record by offset, through the public client, to the tail."""
    return {record.offset: record.value async for record in log.read(start=0)}


def dump_store(directory: Path, loglet: str) -> dict[int, bytes]:
    """Records of a loglet in a store that no process uses, by the inspection command."""
    command = [sys.executable, "-m", "loglet", "inspect", str(directory), "--dump", loglet]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    return {row["offset"]: b64decode(row["value"]) for row in rows}


def inspect_store(directory: Path) -> dict[str, object]:
    """The inspection command's report on a store that no process uses."""
    command = [sys.executable, "-m", "loglet", "inspect", str(directory), "--json"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 0, result.stderr + result.stdout
    report: dict[str, object] = json.loads(result.stdout)
    return report


async def eventually(condition: Callable[[], bool], *, what: str, within_s: float = 10.0) -> None:
    """Wait until a condition of another process comes true."""
    clock = SystemClock()
    deadline_s = clock.monotonic_s() + within_s
    while not condition():
        assert clock.monotonic_s() < deadline_s, f"not within {within_s} s: {what}"
        await asyncio.sleep(0.02)
