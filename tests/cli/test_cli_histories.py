"""`sharedlog log fork` and `sharedlog archive restore`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.command import Cli

from sharedlog.dev_cluster import DevCluster


@pytest.fixture
def archiving(environment: dict[str, str], tmp_path: Path) -> Iterator[Cli]:
    """The command, for a cluster of its own with an archive."""
    archive = tmp_path / "archive"
    archive.mkdir()
    found = DevCluster(tmp_path / "nodes", settings={"SHAREDLOG_ARCHIVE__URL": f"file://{archive}"})
    asyncio.run(found.start())
    command = Cli(environment, found.address)
    try:
        yield command
    finally:
        command.close()
        asyncio.run(found.stop())


@pytest.mark.slow
@pytest.mark.cluster
def test_a_log_is_forked_and_restored_beside_itself(archiving: Cli) -> None:
    """What is said, on which stream, and with which exit code."""
    cli = archiving
    cli.ok("log", "create", "orders")
    cli.ok("append", "orders", stdin=b"".join(b"%d\n" % number for number in range(100)))
    forked = cli.ok("log", "fork", "orders", "copy", "--json").json
    assert (forked["at"], forked["log"]["name"]) == (100, "copy")
    assert cli.ok("read", "copy", "--from", "98").text == "98\n99\n"
    taken = cli("log", "fork", "orders", "copy")
    assert (taken.code, taken.out) == (3, b"")
    cut = cli.ok("log", "fork", "copy", "whole")
    assert cut.text == "log whole has what copy has in [0, 100)\n"

    chain = cli.ok("log", "chain", "copy").text.splitlines()
    assert chain[1].split() == ["0", "0", "100", "archived", "in", "the", "archive"]
    assert "in the archive" in cli.ok("log", "describe", "copy").text
    cli.ok("append", "copy", stdin=b"next\n")
    assert not cli.ok("log", "check", "copy").code

    (cluster,) = cli.ok("archive", "restore", "--json").json["clusters"]
    assert (cluster["logs"], cluster["is_own"]) == (3, True)
    assert cluster["cluster"] in cli.ok("archive", "restore").text
    restore = ("archive", "restore", "--cluster", cluster["cluster"])
    planned = cli.ok(*restore, "--log", "orders", "--prefix", "again/", "--dry-run")
    assert planned.text == "orders as again/orders: to restore, [0, 100)\n"
    done = cli.ok(*restore, "--log", "orders", "--prefix", "again/")
    assert done.text == "orders as again/orders: restored, [0, 100)\n"
    repeated = cli.ok(*restore, "--log", "orders", "--prefix", "again/", "--json").json["logs"]
    assert [it["outcome"] for it in repeated] == ["was restored before"]
    refused = cli(*restore, "--log", "orders", "--log", "none")
    assert refused.code == 1
    assert "orders: failed: " in refused.err
    assert "none: failed: the archive has no log of that name" in refused.err
    assert cli("archive", "restore", "--cluster", "x").code == 2
    assert cli("archive", "restore", "--cluster", "0" * 32).code == 2


def test_without_an_archive_the_answer_says_what_is_missing(cli: Cli, log: str) -> None:
    """And how to have one."""
    for arguments in (("log", "fork", log, "copy"), ("archive", "restore")):
        done = cli(*arguments)
        assert done.code == 2
        assert "set [archive] url on all nodes" in done.err
