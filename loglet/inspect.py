"""Looks into a store that no process uses, and changes nothing: what is there, and is it sound?

Checks LMDB's own structure, the records' checksums, and every batch against its checksums, its key
and its neighbours. A damaged batch does not end the inspection: it keeps its place and is counted.
Batches below a local start, which were not deleted yet, are counted and not looked at.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import lmdb
from lmdb import verify as lmdb_verify

from loglet import keys
from loglet.lmdb_store import lock_store, open_env_read_only, read_identity
from loglet.store import PutLoglet
from sharedlog.batch import Placement, check_placed, decode_placed
from sharedlog.errors import CorruptBatch, StoreFailed
from sharedlog.ids import LogletId, Offset

_PROBLEMS_MAX = 100


@dataclass(slots=True)
class LogletReport:
    """One loglet. Ranges are [first, end)."""

    loglet: str
    base: int
    local_start: int
    local_tail: int
    committed_tail: int  # as kept with the batches; a hint
    told_end: int | None  # where the segment ends, if that was told
    sealed: bool
    opened_by: str | None
    batches: int = 0
    records: int = 0
    bytes: int = 0
    damaged_batches: int = 0
    trimmed_batches: int = 0  # of those that were trimmed, and are yet to be deleted
    held: list[tuple[int, int]] = field(default_factory=list)
    holes: list[tuple[int, int]] = field(default_factory=list)


@dataclass(slots=True)
class StoreReport:
    """One store. It is sound if there are no problems."""

    node_id: str
    cluster_id: str
    storage_id: str
    format: int
    loglets: list[LogletReport] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)  # the first of them
    problem_count: int = 0

    def add_problem(self, problem: str) -> None:
        """Count a problem; keep its words if it is among the first."""
        self.problem_count += 1
        if len(self.problems) < _PROBLEMS_MAX:
            self.problems.append(problem)

    def as_json(self) -> str:
        """The whole report as one JSON object."""
        return json.dumps({**asdict(self), "sound": not self.problem_count})


class OfflineStore:
    """A store opened for reading while its lock is held. A context manager."""

    def __init__(self, directory: Path) -> None:
        """Open it.

        Raises:
            StoreFailed: there is none, it is in use, or it can't be opened.
        """
        self.directory = directory
        self._env: Any = None
        if not (directory / "data.mdb").is_file():
            raise StoreFailed(f"there is no store in {directory}")
        self._lock = lock_store(directory)
        try:
            self._env = open_env_read_only(directory)
        except BaseException:
            os.close(self._lock)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._env.close()
        os.close(self._lock)

    def report(self) -> StoreReport:
        """Check everything.

        Raises:
            StoreFailed: it can't even be read: LMDB's pages or the identity record are damaged.
        """
        findings = _structure(self.directory)
        if findings:
            # Walking a broken tree could go anywhere.
            more = f", and {len(findings) - 1} more problems" if len(findings) > 1 else ""
            raise StoreFailed(f"the store's structure is damaged: {findings[0]}{more}")
        identity = read_identity(self._env)
        report = StoreReport(
            identity.node_id, identity.cluster_id, identity.storage_id, keys.FORMAT_VERSION
        )
        loglets = {record.loglet: _new_report(record) for record in self._records(report)}
        for loglet, first, end, placed in self._batches(report):
            found = loglets.get(loglet)
            if found is None:
                report.add_problem(f"loglet {loglet}: a batch at {first}, and no record of it")
                continue
            _add_batch(found, report, (loglet, first, end), placed)
        for found in loglets.values():
            _close(found)
        report.loglets = sorted(loglets.values(), key=lambda it: it.loglet)
        return report

    def records(self, loglet: LogletId) -> Iterator[dict[str, object]]:
        """The records of a loglet that are kept, as JSON values; for a damaged batch its range.

        Raises:
            StoreFailed: LMDB's pages or a key are damaged.
        """
        if findings := _structure(self.directory):
            raise StoreFailed(f"the store's structure is damaged: {findings[0]}")
        with self._env.begin() as txn:
            key = keys.loglet_key(loglet)
            value = txn.get(key)
        local_start = keys.decode_loglet(key, value).local_start if value is not None else 0
        for owner, first, end, placed in self._batches(None):
            if owner != loglet or end <= local_start:
                continue
            try:
                rows = decode_placed(placed)
            except CorruptBatch as error:
                yield {"first": first, "end": end, "damaged": str(error)}
                continue
            for row in rows:
                yield {
                    "offset": row.offset,
                    "timestamp_ms": row.timestamp_ms,
                    "key": None if row.key is None else base64.b64encode(row.key).decode(),
                    "value": base64.b64encode(row.value).decode(),
                    "sha256": hashlib.sha256(row.value).hexdigest(),
                }

    def _records(self, report: StoreReport) -> Iterator[PutLoglet]:
        with self._env.begin() as txn, txn.cursor() as cursor:
            more = cursor.set_range(keys.LOGLET_PREFIX)
            while more and cursor.key()[:1] == keys.LOGLET_PREFIX:
                try:
                    yield keys.decode_loglet(cursor.key(), cursor.value())
                except StoreFailed as error:
                    report.add_problem(str(error))
                more = cursor.next()

    def _batches(
        self, report: StoreReport | None
    ) -> Iterator[tuple[LogletId, Offset, Offset, bytes]]:
        """Loglet, first, end, bytes of every batch; a damaged key is a problem, or raises."""
        with self._env.begin() as txn, txn.cursor() as cursor:
            more = cursor.set_range(keys.BATCH_PREFIX)
            while more and cursor.key()[:1] == keys.BATCH_PREFIX:
                try:
                    yield (*keys.decode_batch_key(cursor.key()), cursor.value())
                except StoreFailed as error:
                    if report is None:
                        raise
                    report.add_problem(str(error))
                more = cursor.next()


def _structure(directory: Path) -> list[str]:
    """What LMDB's offline verifier finds wrong with the file."""
    try:
        findings: list[str] = lmdb_verify.verify(  # type: ignore[no-untyped-call] # lmdb does not type it
            str(directory)
        )
    except (lmdb_verify.VerifyError, lmdb.Error, OSError) as error:
        return [str(error)]
    return findings


def _new_report(record: PutLoglet) -> LogletReport:
    return LogletReport(
        loglet=str(record.loglet),
        base=record.base,
        local_start=record.local_start,
        local_tail=record.local_start,
        committed_tail=record.local_start,
        told_end=record.told_end,
        sealed=record.sealed,
        opened_by=None if record.opened_by is None else str(record.opened_by),
    )


def _add_batch(
    found: LogletReport,
    report: StoreReport,
    place: tuple[LogletId, Offset, Offset],
    placed: bytes,
) -> None:
    loglet, first, end = place
    if end <= found.local_start:
        found.trimmed_batches += 1
        return
    found.batches += 1
    found.records += end - first
    found.bytes += len(placed)
    if found.held and first < found.held[-1][1]:
        report.add_problem(f"loglet {loglet}: batches overlap at {first}")
    placement = _verified(placed, place)
    if isinstance(placement, str):
        found.damaged_batches += 1
        report.add_problem(f"loglet {loglet}: the batch at {first} is damaged: {placement}")
    else:
        found.committed_tail = max(found.committed_tail, placement.committed_tail)
    if found.held and found.held[-1][1] == first:
        found.held[-1] = (found.held[-1][0], end)
    else:
        found.held.append((first, end))
    found.local_tail = max(found.local_tail, end)


def _verified(placed: bytes, place: tuple[LogletId, Offset, Offset]) -> Placement | str:
    """The placement of a sound batch, or what is wrong with it."""
    try:
        placement = check_placed(placed)
    except CorruptBatch as error:
        return str(error)
    if (placement.loglet, placement.first, placement.end) != place:
        return "it is another batch than its key says"
    return placement


def _close(found: LogletReport) -> None:
    """Holes lie between what is held, and between it and the committed tail."""
    position = found.local_start
    for first, end in found.held:
        if first > position:
            found.holes.append((position, first))
        position = end
    if found.committed_tail > position:
        found.holes.append((position, found.committed_tail))
