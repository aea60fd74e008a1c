"""`log reconfigure|seal|chain|digest|check|accept-loss` and `node describe|drain`, for real."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from helpers.command import Cli, wait_until

from sharedlog.dev_cluster import DevCluster

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


def fill(cli: Cli, log: str, count: int) -> None:
    """Append so many records."""
    cli.ok("append", log, stdin=b"".join(b"line %d\n" % number for number in range(count)))


def test_reconfigure_moves_the_sequencer_and_the_records_stay(cli: Cli, log: str) -> None:
    """The segment ends at the tail, the next one begins there, and a read crosses the boundary."""
    fill(cli, log, 10)
    before = cli.ok("log", "describe", log, "--json").json["chain"][0]["sequencer"]["node_id"]
    target = next(name for name in ("n1", "n2", "n3") if name != before)
    planned = cli.ok("log", "reconfigure", log, "--sequencer", target, "--dry-run", "--json").json
    assert planned["dry_run"] is True
    assert planned["opened"]["sequencer"]["node_id"] == target
    assert len(cli.ok("log", "chain", log, "--json").json["chain"]) == 1, "a dry run does nothing"
    done = cli.ok("log", "reconfigure", log, "--sequencer", target, "--json").json
    assert (done["ended"]["base"], done["ended"]["end"]) == (0, 10)
    assert (done["opened"]["base"], done["opened"]["end"]) == (10, None)
    assert done["opened"]["sequencer"]["node_id"] == target
    fill(cli, log, 5)
    assert len(cli.ok("read", log, "--from", "0").out.splitlines()) == 15


def test_seal_and_chain_show_segments(cli: Cli, log: str) -> None:
    """An empty segment is replaced in place: its successor has the same base and another index."""
    fill(cli, log, 3)
    cli.ok("log", "seal", log)
    assert "was empty" in cli.ok("log", "seal", log).text
    chain = cli.ok("log", "chain", log, "--json").json["chain"]
    assert [(part["index"], part["base"], part["end"]) for part in chain] == [
        (0, 0, 3),
        (2, 3, None),
    ]
    table = cli.ok("log", "chain", log).text.splitlines()
    columns = "SEGMENT BASE END STATE SEQUENCER QUORUM SPREAD NODESET"
    assert table[0].split() == columns.split()
    assert len(cli.ok("log", "chain", log, "--last", "1").text.splitlines()) == 2


def test_bad_changes_are_refused_in_one_line(cli: Cli, log: str) -> None:
    """Exit code 2 and the reason: what was typed can't be."""
    for arguments, words in (
        (["--sequencer", "n9"], "n9"),
        (["--nodeset", "n1,n2"], "names 2 nodes for 3 replicas"),
        (["--replicas", "3", "--write-quorum", "1"], "majority"),
        (["--spread", "planet:2"], "planet"),
        (["--spread", "zone"], "LEVEL:N"),
        (["--replicas", "9"], "at most 7"),
    ):
        refused = cli("log", "reconfigure", log, *arguments)
        assert refused.code in {2, 4}, (arguments, refused.err)
        assert refused.err.startswith("error: ")
        assert words in refused.err
        assert len(refused.err.splitlines()) == 1
    assert cli("log", "reconfigure", "no-such-log").code == 3
    assert len(cli.ok("log", "chain", log, "--json").json["chain"]) == 1


def test_digest_and_check_of_a_healthy_log(cli: Cli, log: str) -> None:
    """Three log servers hold everything, whole and in agreement."""
    fill(cli, log, 100)
    cli.ok("log", "seal", log)

    def complete() -> bool:
        segments = cli.ok("log", "digest", log, "--json").json["segments"]
        return not any(part["under_replicated"] for it in segments for part in it["ranges"])

    assert wait_until(complete, timeout_s=20)
    first = cli.ok("log", "digest", log, "--segment", "0", "--json").json["segments"][0]
    assert [(part["first"], part["end"]) for part in first["ranges"]] == [(0, 100)]
    assert first["ranges"][0]["holdings"] == ["holds"] * 3
    assert "holds" in cli.ok("log", "digest", log).text
    checked = cli.ok("log", "check", log, "--json").json
    assert checked["ok"] is True
    assert checked["findings"] == []
    assert checked["bytes"] > 0
    assert "whole and in agreement" in cli.ok("log", "check", log).text


def test_check_names_a_server_that_is_away(own_cluster: DevCluster, alone: Cli) -> None:
    """A dead node is no answer, not an absence; the exit code says that something is wrong."""
    alone.environment["SHAREDLOG_ADDRESS"] = ",".join(own_cluster.addresses)
    alone.ok("log", "create", "orders")
    fill(alone, "orders", 10)
    own_cluster.kill("n3")
    found = alone("log", "check", "orders", "--json")
    assert found.code == 1
    assert {(it["node_id"], it["kind"]) for it in found.json["findings"]} == {("n3", "no answer")}


def test_accept_loss_is_refused_where_nothing_is_lost(cli: Cli, log: str) -> None:
    """A healthy segment can't be given up, and a reason is needed."""
    fill(cli, log, 3)
    refused = cli("log", "accept-loss", log, "--segment", "0", "--reason", "test", "--yes")
    assert refused.code == 2
    assert refused.err.startswith("error: ")
    assert cli("log", "accept-loss", log, "--segment", "0").code == 2


def test_node_describe_and_an_unknown_node(cli: Cli, log: str) -> None:
    """One node in full; one that does not exist is exit code 3."""
    fill(cli, log, 1)
    found = cli.ok("node", "describe", "n1", "--json").json
    assert found["state"] == "read-write"
    assert found["segments"] >= 1
    assert "storage id" in cli.ok("node", "describe", "n1").text
    assert cli("node", "describe", "n9").code == 3


def test_drain_moves_everything_to_a_fourth_node(alone: Cli, tmp_path: Path) -> None:
    """With a node to spare a drain ends with the state gone, and the log goes on without it."""
    cluster = DevCluster(tmp_path / "four", nodes=4)
    asyncio.run(cluster.start())
    try:
        alone.environment["SHAREDLOG_ADDRESS"] = ",".join(cluster.addresses)
        alone.ok("log", "create", "orders", "--replicas", "3")
        fill(alone, "orders", 20)
        chain = alone.ok("log", "chain", "orders", "--json").json["chain"]
        victim = chain[-1]["nodeset"][0]["node_id"]
        assert "safe" in alone.ok("node", "drain", victim, "--dry-run").text
        drained = alone("node", "drain", victim, "--wait", "--json", timeout_s=90)
        assert drained.code == 0, drained.err
        assert drained.json["segments"] == 0
        chain = alone.ok("log", "chain", "orders", "--json").json["chain"]
        named = {replica["node_id"] for part in chain for replica in part["nodeset"]}
        assert victim not in named
        assert victim != chain[-1]["sequencer"]["node_id"]
        assert len(alone.ok("read", "orders", "--from", "0").out.splitlines()) == 20
    finally:
        asyncio.run(cluster.stop())


def test_drain_says_what_stands_in_the_way(cli: Cli, log: str) -> None:
    """Three nodes and three replicas: there is nowhere to go, and that is said beforehand."""
    fill(cli, log, 1)
    found = cli("node", "drain", "n2", "--dry-run", "--json")
    assert found.code == 1
    assert found.json["safe"] is False
    blocked = next(use for use in found.json["logs"] if use["log"] == log)
    assert blocked["obstacle"]
    refused = cli("node", "remove", "n2", "--dry-run")
    assert refused.code == 3
    lines = refused.text.splitlines()
    assert lines[0] == "node n2 is read-write and can't be removed:"
    assert f"  log {log}: 1 segment names its store; a drain can't move it:" in refused.text
    assert lines[-1].startswith("  its process runs, at ")
    unknown = cli("node", "remove", "n9")
    assert (unknown.code, unknown.err) == (3, "error: there is no node 'n9'\n")
    assert cli.ok("node", "describe", "n2", "--json").json["state"] == "read-write"
