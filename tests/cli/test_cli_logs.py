"""`sharedlog log`, `node` and `status` on a real cluster of three nodes."""

from __future__ import annotations

import json
import signal
from typing import Any

import pytest
from helpers.command import Cli, wait_until

from sharedlog.dev_cluster import DevCluster

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


def test_create_describe_and_list_show_the_same_log(cli: Cli) -> None:
    """One log through all three commands, in JSON: configuration, chain, nodes."""
    created = cli.ok("log", "create", "made/a", "--replicas", "3", "--write-quorum", "2", "--json")
    assert created.json["created"] is True
    described = cli.ok("log", "describe", "made/a", "--json").json
    assert described["name"] == "made/a"
    assert (described["replicas"], described["write_quorum"]) == (3, 2)
    assert (described["tail"], described["tail_is_exact"]) == (0, True)
    assert len(described["log_id"]) == 16
    (segment,) = described["chain"]
    assert (segment["index"], segment["base"], segment["end"]) == (0, 0, None)
    assert {replica["node_id"] for replica in segment["nodeset"]} == {"n1", "n2", "n3"}
    assert segment["sequencer"]["node_id"] in {"n1", "n2", "n3"}
    assert {node["node_id"] for node in described["nodes"]} == {"n1", "n2", "n3"}
    (listed,) = cli.ok("log", "ls", "made/", "--json").json["logs"]
    assert listed == {
        "segments": 1,
        "sequencer": segment["sequencer"]["node_id"],
        "nodeset": [replica["node_id"] for replica in segment["nodeset"]],
    } | {
        name: described[name]
        for name in ("name", "log_id", "replicas", "write_quorum", "spread", "created_ms")
    } | {"chain_version": described["chain_version"]}


def test_tables_are_plain_text_where_no_terminal_is(cli: Cli, log: str) -> None:
    """No escape sequences and no lines of boxes in a pipe."""
    for arguments in (["log", "ls"], ["log", "describe", log], ["node", "ls"], ["status"]):
        done = cli.ok(*arguments)
        assert "\x1b" not in done.text
        assert done.text.isascii()
        assert log in done.text or "n1" in done.text


def test_a_log_that_exists_is_exit_code_3_unless_that_is_well(cli: Cli, log: str) -> None:
    """`--if-not-exists` is for scripts that run twice."""
    refused = cli("log", "create", log)
    assert refused.code == 3
    assert refused.err == f"error: a log '{log}' exists already\n"
    found = cli.ok("log", "create", log, "--if-not-exists", "--json")
    assert found.json["created"] is False
    assert found.json["name"] == log


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["log", "create", "bad name"], 2, "is no log name"),
        (["log", "create", "-x"], 2, "no such option"),
        (["log", "create", "ok", "--replicas", "3", "--write-quorum", "4"], 2, "write quorum of 4"),
        (["log", "create", "ok", "--replicas", "3", "--write-quorum", "1"], 2, "quorum"),
        (["log", "create", "ok", "--replicas", "8"], 2, "7"),
        (["log", "describe", "nope"], 3, "there is no log 'nope'"),
        (["read", "nope"], 3, "there is no log 'nope'; see: sharedlog log ls"),
        (["tail", "nope"], 3, "there is no log 'nope'"),
        (["append", "nope"], 3, "there is no log 'nope'"),
    ],
)
def test_what_the_cluster_refuses_is_one_line(
    cli: Cli, arguments: list[str], code: int, expected: str
) -> None:
    """The server's reason reaches the user, with the exit code for its kind."""
    done = cli(*arguments, stdin=b"x\n")
    assert done.code == code
    assert done.out == b""
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert expected in done.err


def test_status_and_nodes_in_json(cli: Cli, log: str, cluster: DevCluster) -> None:
    """A healthy cluster: no problems, three nodes, the log takes appends."""
    told: list[Any] = []

    def all_answer() -> bool:
        # Each is given half a second, which one may have to wait for a core.
        told.append(cli.ok("status", "--json").json)
        return all(node["alive"] for node in told[-1]["nodes"])

    assert wait_until(all_answer)
    status = told[-1]
    keys = {"cluster_id", "metadata", "problems", "nodes", "logs", "controller", "work"}
    assert set(status) == keys
    assert "single point of failure" in status["metadata"]
    assert [node["address"] for node in status["nodes"]] == cluster.addresses
    for node in status["nodes"]:
        assert node["error"] is None
        assert node["rss_anon_bytes"] > 0
        assert node["roles"] == ["log-server", "sequencer"]
    found = next(entry for entry in status["logs"] if entry["name"] == log)
    assert found["accepts_appends"] is True
    assert (found["known_tail"], found["replicas_alive"]) == (0, 3)
    nodes = cli.ok("node", "ls", "--json").json
    assert nodes["cluster_id"] == status["cluster_id"]
    assert [node["node_id"] for node in nodes["nodes"]] == ["n1", "n2", "n3"]


def test_a_context_leads_to_the_cluster(alone: Cli, cluster: DevCluster) -> None:
    """Named once, then nothing needs to be typed."""
    alone.ok("context", "set", "here", "--address", cluster.address)
    assert len(alone.ok("node", "ls", "--json").json["nodes"]) == 3


def test_watch_prints_again_and_ends_with_ctrl_c(cli: Cli) -> None:
    """`status --watch --json` is a stream of objects; Ctrl-C is exit code 130 without a word."""
    watching = cli.start("status", "--watch", "--interval", "0.1", "--json")
    assert watching.stdout is not None
    first, second = watching.stdout.readline(), watching.stdout.readline()
    watching.send_signal(signal.SIGINT)
    _, err = watching.communicate(timeout=10)
    assert json.loads(first)["cluster_id"] == json.loads(second)["cluster_id"]
    assert watching.returncode == 130
    assert err == b""


def test_a_dead_node_is_the_first_thing_that_status_says(
    environment: dict[str, str], own_cluster: DevCluster
) -> None:
    """Problems first; --check turns them into exit code 1, without it the answer counts as one."""
    cli = Cli(environment, own_cluster.address)
    cli.ok("log", "create", "orders")

    def is_well() -> bool:
        return cli("status", "--check").text.startswith("no problems")

    assert cli("status", "--wait", "--timeout", "30").text.startswith("no problems")
    assert wait_until(is_well)  # a node that has to wait for a core is one for a moment
    own_cluster.kill("n3")

    def is_told() -> bool:
        told = cli.ok("status", "--json").json["problems"]
        return any(it["code"] == "node-down" for it in told)

    assert wait_until(is_told)
    shown = cli.ok("status")
    assert shown.text.startswith("PROBLEM")
    assert "n3" in shown.text.splitlines()[1]
    assert cli("status", "--check").code == 1
    waited = cli("status", "--wait", "--timeout", "0.7")
    assert waited.code == 4
    assert waited.err.splitlines()[-1].startswith("error: not settled after 0")
    down = cli.ok("node", "ls", "--json").json["nodes"][2]
    assert (down["alive"], down["uptime_s"]) == (False, None)
    assert down["error"]
