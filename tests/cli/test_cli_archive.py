"""`log offload|trim|purge` and `archive ...`: what operators do to a log's beginning, for real."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from helpers.command import Cli

from sharedlog.dev_cluster import DevCluster

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

VALUE = "x" * 10_000
RECORDS = 300


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive's folder."""
    return tmp_path_factory.mktemp("archive")


@pytest.fixture(scope="module")
def archiving(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevCluster]:
    """Three nodes that archive what they are asked to."""
    found = DevCluster(
        tmp_path_factory.mktemp("archiving"),
        settings={
            "SHAREDLOG_ARCHIVE__URL": f"file://{archive}",
            "SHAREDLOG_OFFLOAD__OBJECT_BYTES": str(64 << 20),
            "SHAREDLOG_OFFLOAD__OFFLOAD_AFTER_S": "3600",
        },
    )
    asyncio.run(found.start())
    try:
        yield found
    finally:
        asyncio.run(found.stop())


@pytest.fixture
def cli(environment: dict[str, str], archiving: DevCluster) -> Iterator[Cli]:
    """The command, for a cluster that has an archive."""
    found = Cli(environment, archiving.address)
    yield found
    found.close()


@pytest.fixture
def log(cli: Cli) -> str:
    """A log with some objects' worth of records."""
    name = f"orders-{os.urandom(4).hex()}"
    cli.ok("log", "create", name)
    lines = b"".join(f"{number} {VALUE}\n".encode() for number in range(RECORDS))
    cli.ok("append", name, stdin=lines)
    return name


def folder_of(cli: Cli, archive: Path, log: str) -> Path:
    """Where the log's objects lie."""
    found = cli.ok("archive", "describe", log, "--json").json
    assert (found["url"], found["usable"], found["problem"]) == (f"file://{archive}", True, None)
    folder: Path = (archive / found["log"]["manifest_key"]).parent
    return folder


def test_a_log_is_offloaded_trimmed_and_purged(cli: Cli, archive: Path, log: str) -> None:
    """Field note 44: every answer states how far it went."""
    assert "nothing of it is archived" in cli.ok("archive", "describe", log).text
    planned = cli.ok("log", "trim", log, "--before", "100", "--dry-run", "--json").json
    assert (planned["dry_run"], planned["wanted"], planned["trimmed"]) == (True, 100, 100)
    assert (planned["archived_end"], planned["objects"]) == (0, 0)
    done = cli.ok("log", "trim", log, "--before", "100", "--json").json
    assert (done["trimmed"], done["start"], done["waiting"]) == (100, 0, [])
    assert done["archived_end"] >= 100
    assert done["objects"] == len(list(folder_of(cli, archive, log).glob("*.slog")))
    beyond = cli.ok("log", "trim", log, "--before", "9999")
    assert "keep nothing below" in beyond.text
    assert "not up to 9999" in beyond.err
    made = cli.ok("log", "offload", log, "--json").json
    assert (made["log"], made["archived_end"]) == (log, RECORDS)
    assert f"is archived up to {RECORDS}" in cli.ok("log", "offload", log).text
    assert cli.ok("read", log, "--from", "0").out.count(b"\n") == RECORDS

    refused = cli("log", "purge", log, "--before", "150")
    assert (refused.code, refused.out) == (1, b"")
    assert "--yes" in refused.err
    planned = cli.ok("log", "purge", log, "--before", "150", "--dry-run", "--json").json
    assert (planned["start"], planned["start_before"]) == (150, 0)
    assert planned["objects"] >= 1
    purged = cli.ok("log", "purge", log, "--before", "150", "--yes", "--json").json
    assert purged == {**planned, "dry_run": False}
    assert cli.ok("read", log, "--from", "150").out.count(b"\n") == RECORDS - 150
    below = cli("read", log, "--from", "149")
    assert (below.code, below.out) == (3, b"")
    assert "it begins at 150" in below.err
    again = cli.ok("log", "purge", log, "--older-than", "30d", "--yes").text
    assert again == f"log {log} starts at 150: there is nothing below\n"
    beyond = cli("log", "purge", log, "--before", "9999", "--yes")
    assert (beyond.code, f"its tail is {RECORDS}" in beyond.err) == (2, True)
    assert cli("log", "trim", "nope", "--before", "1").code == 3


def test_verify_finds_what_is_gone_and_what_is_damaged(cli: Cli, archive: Path, log: str) -> None:
    """Exit code 1, a line for each finding, an object for each in JSON."""
    cli.ok("log", "offload", log)
    cli.ok("append", log, stdin=b"more\n")
    cli.ok("log", "offload", log)
    objects = sorted(folder_of(cli, archive, log).glob("*.slog"))
    assert "is sound" in cli.ok("archive", "verify", log).text
    whole = cli.ok("archive", "verify", log, "--full", "--json").json
    assert whole["bytes"] >= sum(it.stat().st_size for it in objects)
    assert (whole["log"], whole["checked"], whole["ok"]) == (log, len(objects), True)
    damaged = bytearray(objects[0].read_bytes())
    damaged[500] ^= 1
    objects[0].write_bytes(damaged)
    cli.ok("archive", "verify", log)
    found = cli("archive", "verify", log, "--full", "--json")
    finding, whole = found.json_lines
    assert (found.code, whole["ok"], whole["findings"]) == (1, False, 1)
    assert (finding["kind"], finding["first"]) == ("damaged", 0)
    assert finding["key"].endswith(objects[0].name)
    objects[1].unlink()
    told = cli("archive", "verify", log)
    assert told.code == 1
    assert told.text.startswith("missing: ")
    assert "1 finding" in told.err


def test_sweep_deletes_orphans_that_are_old(cli: Cli, archive: Path, log: str) -> None:
    """Ids are told; what is named stays, and so does what is young."""
    cli.ok("log", "offload", log)
    folder = folder_of(cli, archive, log)
    named = sorted(folder.glob("*.slog"))
    old, young = (folder / f"{0:020d}-{letter * 32}.slog" for letter in "ab")
    for orphan in (old, young):
        shutil.copy(named[0], orphan)
    two_days = old.stat().st_mtime - 2 * 86_400
    os.utime(old, (two_days, two_days))
    planned = cli.ok("archive", "sweep", log, "--dry-run", "--json").json_lines
    assert planned[0]["key"].endswith(old.name)
    assert (planned[1]["swept"], planned[1]["young"], planned[1]["dry_run"]) == (1, 1, True)
    assert old.exists()
    done = cli.ok("archive", "sweep", log)
    assert done.text == f"{old.relative_to(archive)}\n"
    assert "1 object" in done.err
    assert sorted(folder.glob("*.slog")) == sorted([*named, young])
    cli.ok("archive", "sweep", "--all", "--grace", "none")
    assert sorted(folder.glob("*.slog")) == named
    cli.ok("archive", "verify", log, "--full")


def test_objects_are_inspected_without_a_cluster(
    cli: Cli, alone: Cli, archive: Path, log: str, tmp_path: Path
) -> None:
    """Where they lie, and copies elsewhere; the manifest with all that it names."""
    cli.ok("log", "offload", log)
    folder = folder_of(cli, archive, log)
    objects = sorted(folder.glob("*.slog"))
    alone.environment.pop("SHAREDLOG_ADDRESS", None)
    said = alone.ok("archive", "inspect", f"file://{objects[0]}", "-v", "--verify", "--json").json
    assert (said["kind"], said["first"], said["problems"]) == ("object", 0, [])
    assert said["bytes"] == objects[0].stat().st_size
    assert len(said["blocks"]) == said["block_count"]
    assert (
        "all checksums are right"
        in alone.ok("archive", "inspect", str(objects[0]), "--verify").text
    )
    copy = tmp_path / "copy.slog"
    damaged = bytearray(objects[0].read_bytes())
    damaged[500] ^= 1
    copy.write_bytes(damaged)
    assert alone("archive", "inspect", str(copy)).code == 0
    found = alone("archive", "inspect", str(copy), "--verify")
    assert (found.code, "PROBLEM" in found.text) == (1, True)
    copy.write_bytes(damaged[:-1])
    cut = alone("archive", "inspect", str(copy))
    assert (cut.code, cut.out) == (1, b"")
    assert cut.err.startswith("error: ")
    whole = alone.ok(
        "archive", "inspect", str(folder / "manifest"), "-v", "--verify", "--json"
    ).json
    assert (whole["log"], whole["end"], whole["problems"]) == (log, RECORDS, [])
    assert [it["key"].rpartition("/")[2] for it in whole["objects"]] == [it.name for it in objects]
    shutil.move(objects[-1], tmp_path)
    lacking = alone("archive", "inspect", str(folder / "manifest"), "--verify", "--json")
    assert (lacking.code, len(lacking.json["problems"])) == (1, 1)
    assert alone("archive", "inspect", str(folder / "nothing.slog")).code == 1
    assert alone("archive", "inspect", "ftp://x/y.slog").code == 2


def test_records_are_exported_as_they_are_read(
    cli: Cli, alone: Cli, archive: Path, log: str, tmp_path: Path
) -> None:
    """NDJSON like `read --format json`; a range; nothing half when something is damaged."""
    cli.ok("log", "offload", log)
    folder = folder_of(cli, archive, log)
    manifest = str(folder / "manifest")
    out = tmp_path / "out.ndjson"
    done = alone.ok("archive", "export", manifest, "-o", str(out))
    assert f"{RECORDS} records written" in done.err
    assert out.read_bytes() == cli.ok("read", log, "--from", "0", "--format", "json").out
    part = alone.ok("archive", "export", manifest, "--start", "120", "--end", "125")
    assert [it["offset"] for it in part.json_lines] == list(range(120, 125))
    (*_, last) = sorted(folder.glob("*.slog"))
    first = int(last.name[:20])
    one = alone.ok("archive", "export", str(last)).json_lines
    assert [it["offset"] for it in one] == list(range(first, RECORDS))
    damaged = bytearray(last.read_bytes())
    damaged[500] ^= 1
    last.write_bytes(damaged)
    failed = alone("archive", "export", manifest, "-o", str(tmp_path / "damaged"))
    assert (failed.code, list(tmp_path.glob("damaged*"))) == (1, [])


def test_parquet_needs_its_library_or_has_all_columns(
    cli: Cli, alone: Cli, archive: Path, log: str, tmp_path: Path
) -> None:
    """Read back by the library itself; without it, one line that says what to install."""
    cli.ok("log", "offload", log)
    manifest = str(folder_of(cli, archive, log) / "manifest")
    assert alone("archive", "export", manifest, "--format", "parquet").code == 2
    out = tmp_path / "orders.parquet"
    done = alone("archive", "export", manifest, "--format", "parquet", "-o", str(out))
    if find_spec("pyarrow") is None:
        assert (done.code, out.exists()) == (2, False)
        assert "pip install 'sharedlog[parquet]'" in done.err
        return
    assert done.code == 0, done.err
    from importlib import import_module

    table = import_module("pyarrow.parquet").read_table(out)
    assert table["offset"].to_pylist() == list(range(RECORDS))
    assert table["value"][7].as_py() == f"7 {VALUE}".encode()
    assert table["key"].null_count == RECORDS
