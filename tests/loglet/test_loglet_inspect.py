"""`python -m loglet inspect`: what is in a store, and is it sound."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path

import pytest
from helpers.log_servers import LOGLET, ME, OTHER, STORAGE, damage_file, open_store, placed

from loglet.__main__ import main
from loglet.inspect import OfflineStore
from loglet.store import PutBatch, PutLoglet
from sharedlog.batch import parse_placement
from sharedlog.errors import StoreFailed
from sharedlog.ids import Offset


def put(batch: bytes) -> PutBatch:
    placement = parse_placement(batch)
    return PutBatch(placement.loglet, placement.first, placement.end, batch)


@pytest.fixture
async def directory(tmp_path: Path) -> Path:
    """A closed store: LOGLET with a hole, OTHER created by a seal."""
    store = open_store(tmp_path)
    await store.commit(
        [
            PutLoglet(LOGLET, Offset(0), ME, sealed=False, local_start=Offset(0)),
            PutLoglet(OTHER, Offset(9), None, True, local_start=Offset(9), told_end=Offset(9)),
            *map(put, (placed(0, 2), placed(2, text="needle"), placed(8, 2, committed=8))),
        ]
    )
    await store.close()
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(["inspect", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_sound_store(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One JSON object with identity, tails, ranges and counts; exit code 0."""
    code, out, _ = run(capsys, str(directory), "--json")
    report = json.loads(out)
    assert code == 0
    assert report["sound"]
    assert (report["node_id"], report["storage_id"]) == ("n1", STORAGE)
    first, second = report["loglets"]
    assert first["loglet"] == str(LOGLET)
    assert (first["base"], first["local_tail"], first["committed_tail"]) == (0, 10, 8)
    assert (first["batches"], first["records"], first["damaged_batches"]) == (3, 5, 0)
    assert (first["held"], first["holes"]) == ([[0, 3], [8, 10]], [[3, 8]])
    assert (first["sealed"], first["opened_by"]) == (False, "n1.4")
    assert (second["sealed"], second["opened_by"], second["batches"]) == (True, None, 0)
    assert (first["told_end"], second["told_end"]) == (None, 9)
    code, out, _ = run(capsys, str(directory), "--ranges")
    assert code == 0
    assert "hole [3, 8)" in out
    assert "held [8, 10)" in out
    assert f"loglet {OTHER}   sealed, ended at 9, never opened" in out
    assert out.endswith("2 loglets: sound\n")


def test_damage_is_found_and_counted(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Field note 24: a flipped bit in a batch is a problem with its place; exit code 1."""
    damage_file(directory, b"needle")
    code, out, _ = run(capsys, str(directory), "--json")
    report = json.loads(out)
    assert (code, report["sound"], report["problem_count"]) == (1, False, 1)
    assert "the batch at 2 is damaged" in report["problems"][0]
    assert report["loglets"][0]["local_tail"] == 10
    code, out, _ = run(capsys, str(directory))
    assert code == 1
    assert "PROBLEM" in out


def test_a_broken_tree_is_found(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Damage of LMDB's own pages is reported before anything walks into it."""
    path = directory / "data.mdb"
    data = bytearray(path.read_bytes())
    page = len(data) // 4096 - 1
    for index in range(2, page + 1):
        data[index * 4096 + 10] ^= 0xFF  # the flags of every page but the two roots
    path.write_bytes(data)
    code, out, err = run(capsys, str(directory), "--json")
    assert (code, out) == (1, "")
    assert err.startswith("error: the store's structure is damaged")


def test_the_records_can_be_dumped(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each record with offset, value and hash: a test can look for what was acknowledged."""
    code, out, _ = run(capsys, str(directory), "--dump", str(LOGLET))
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [row["offset"] for row in rows] == [0, 1, 2, 8, 9]
    value = base64.b64decode(rows[1]["value"])
    assert value == f"{LOGLET}/1".encode()
    assert rows[1]["sha256"] == hashlib.sha256(value).hexdigest()
    damage_file(directory, b"needle")
    code, out, _ = run(capsys, str(directory), "--dump", str(LOGLET))
    damaged = [json.loads(line) for line in out.splitlines() if "damaged" in line]
    assert (code, damaged[0]["first"], damaged[0]["end"]) == (1, 2, 3)


async def test_orphans_overlaps_and_strangers_are_problems(tmp_path: Path) -> None:
    """What no correct server writes is found: a batch without a loglet, two in one place."""
    store = open_store(tmp_path)
    await store.commit(
        [
            PutLoglet(LOGLET, Offset(0), ME, sealed=False, local_start=Offset(0)),
            put(placed(0, 3)),
            put(placed(2, 3)),
            put(placed(0, loglet=OTHER)),
            PutBatch(LOGLET, Offset(7), Offset(8), placed(6)),
        ]
    )
    await store.close()
    with OfflineStore(tmp_path) as offline:
        problems = " ".join(offline.report().problems)
    for words in ("overlap at 2", "a batch at 0, and no record", "another batch than its key"):
        assert words in problems


def test_what_is_no_store_is_an_error_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No traceback, and nothing is created in a folder that was only looked at."""
    code, out, err = run(capsys, str(tmp_path))
    assert (code, out) == (1, "")
    assert err == f"error: there is no store in {tmp_path}\n"
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(StoreFailed):
        OfflineStore(tmp_path / "missing")
    with pytest.raises(SystemExit):
        main(["inspect", str(tmp_path), "--dump", "nonsense"])
    capsys.readouterr()
    (tmp_path / "data.mdb").write_bytes(b"garbage" * 5_000)
    code, _, err = run(capsys, str(tmp_path))
    assert code == 1
    assert len(err.splitlines()) == 1


async def test_what_was_trimmed_and_is_there_still_is_no_problem(tmp_path: Path) -> None:
    """Batches below the local start are counted; one across it is held, and is no overlap."""
    store = open_store(tmp_path)
    batches = [placed(0, 3, text="needle"), placed(3, 4), placed(7)]
    await store.commit(
        [
            PutLoglet(LOGLET, Offset(0), ME, sealed=False, local_start=Offset(0)),
            *map(put, batches),
        ]
    )
    await store.commit([PutLoglet(LOGLET, Offset(0), ME, False, Offset(5), last_timestamp_ms=9)])
    await store.close()
    damage_file(tmp_path, b"needle")
    with OfflineStore(tmp_path) as offline:
        report = offline.report()
        rows = [it["offset"] for it in offline.records(LOGLET)]
    (found,) = report.loglets
    assert (report.problems, found.holes, found.held) == ([], [], [(3, 8)])
    assert (found.trimmed_batches, found.batches, rows) == (1, 2, [3, 4, 5, 6, 7])
