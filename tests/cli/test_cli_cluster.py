"""`sharedlog cluster` and what `describe` says of settings, against real processes."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from helpers.command import Cli
from helpers.metadata_process import MetadataProcess
from helpers.processes import NodeProcess

from sharedlog.cli.cluster_config import parse_assignments
from sharedlog.dev_cluster import DevCluster


@pytest.mark.cluster
@pytest.mark.slow
async def test_a_cluster_is_made_waited_for_and_kept_apart(alone: Cli, tmp_path: Path) -> None:
    """A node that is told a name waits until the cluster is made, and says so; to make it again is
    nothing, to make it otherwise is refused with what differs; a node that is told another name,
    and one that belongs to another cluster, end with one plain line."""
    first, second = MetadataProcess(tmp_path / "m1"), MetadataProcess(tmp_path / "m2")
    async with first, second:
        url, other_url = f"embedded://{first.address}", f"embedded://{second.address}"
        settings = {"SHAREDLOG_CLUSTER": "prod"}
        with NodeProcess(tmp_path / "n1", "n1", metadata=url, settings=settings) as node:
            waiting = node.wait_event("node.waiting_for_metadata")
            assert "`sharedlog cluster init --name prod` makes it" in str(waiting["error"])
            _make(alone, url, tmp_path / "node.toml")
            node.wait_ready()
            _look(alone, node)
            assert node.terminate() == 0
            node.settings["SHAREDLOG_CLUSTER"] = "test"
            node.settings |= {"SHAREDLOG_LOG_FORMAT": "text", "SHAREDLOG_LOG_LEVEL": "info"}
            assert f"is that of cluster prod ({_id(node)})" in _last_words(node)
            alone.ok("cluster", "init", "--metadata", other_url, "--name", "test")
            node.settings["SHAREDLOG_METADATA"] = other_url
            assert f"this node belongs to cluster {_id(node)}, but" in _last_words(node)


def _make(cli: Cli, url: str, config: Path) -> None:
    wanted = ("cluster", "init", "--metadata", url, "--name", "prod", "--replicas", "1")
    config.write_text(f'node_id = "n1"\nmetadata = "{url}"\n')
    told = cli.ok(*wanted[:2], *wanted[4:], f"--config={config}", "--dry-run").text.splitlines()
    assert told == [
        "cluster prod: would be made",
        "  name: not set -> prod",
        "  replicas: not set -> 1",
    ]
    made = cli.ok(*wanted, "--json").json
    assert (made["made"], made["dry_run"], len(made["cluster_id"])) == (True, False, 32)
    again = cli.ok(*wanted).text
    assert again == f"cluster prod ({made['cluster_id']}): nothing to do\n"
    other = cli(*wanted[:-3], "test", "--replicas", "3")
    assert other.code == 3
    (line,) = other.err.splitlines()
    assert line.endswith(
        "name is prod, not test, replicas is 1, not 3; to change it: sharedlog cluster config set "
        "name=test replicas=3"
    )


def _look(cli: Cli, node: NodeProcess) -> None:
    cli.environment["SHAREDLOG_ADDRESS"] = node.address
    found = cli.ok("cluster", "describe", "--json").json
    assert (found["name"], found["cluster_id"]) == ("prod", _id(node))
    assert [it["node_id"] for it in found["nodes"]] == ["n1"]


def _id(node: NodeProcess) -> str:
    return (node.data / "cluster").read_text().strip()


def _last_words(node: NodeProcess) -> str:
    """The last line of a node that must refuse to start."""
    assert node.start().wait_exit() == 1
    assert "Traceback" not in node.log_text()
    return node.log_text().strip().splitlines()[-1]


@pytest.mark.cluster
@pytest.mark.slow
def test_config_is_shown_before_it_is_changed(own_cluster: DevCluster, alone: Cli) -> None:
    """The diff, what stays as it is, and no change without a yes; what somebody else has changed
    since is exit code 3."""
    cli = alone
    cli.environment["SHAREDLOG_ADDRESS"] = ",".join(own_cluster.addresses)
    cli.ok("log", "create", "old")
    wanted = ("cluster", "config", "set", "replicas=1", "local-age=7d")
    asked = cli(*wanted)
    assert asked.code == 2
    assert "--yes" in asked.err
    dry = cli.ok(*wanted, "--dry-run").text.splitlines()
    assert [line.split() for line in dry[1:3]] == [
        ["replicas", "3", "(default)", "->", "1"],
        ["local_age", "none", "(default)", "->", "7d"],
    ]
    assert dry[3] == "1 existing log stays as it is; 1 of them differ from the new default"
    done = cli.ok(*wanted, "--yes", "--json").json
    assert done["applied"] is True
    again = cli.ok(*wanted, "--yes", "--json").json
    assert (again["applied"], again["changes"]) == (False, [])
    assert cli(*wanted, "--yes", "--expect-version", "0").code == 3
    found = cli.ok("cluster", "config", "get", "--json").json["settings"]
    assert {it["name"]: (it["value"], it["source"]) for it in found} == {
        "name": ("", "default"),
        "replicas": ("1", "cluster"),
        "write_quorum": ("1", "default"),
        "spread": ("", "default"),
        "near": ("", "default"),
        "local_bytes": ("", "default"),
        "local_age": ("7d", "cluster"),
        "total_age": ("", "default"),
    }
    _check_describe(cli, own_cluster)


def _check_describe(cli: Cli, cluster: DevCluster) -> None:
    """Field note 53: each effective value and where it came from; so are a node's settings."""
    cli.ok("log", "create", "new")
    new = cli.ok("log", "describe", "new").text
    assert "replicas:     1 (cluster)" in new
    assert "local age 7d (cluster)" in new
    cli.ok("log", "reconfigure", "old", "--replicas", "1")
    old = cli.ok("log", "describe", "old", "--json").json
    changed = {"replicas": "log", "write_quorum": "log"}
    assert old["sources"] == changed | {"spread": "default", "near": "default"}
    assert (old["nodeset"]["wanted"], old["nodeset"]["actual"]) == (1, 1)
    told = cli.ok("node", "describe", "n1", "--json").json["settings"]
    found = {it["name"]: (it["value"], it["source"]) for it in told}
    assert found["node_id"] == ("n1", "file")
    assert found["metadata"] == (f"embedded://{cluster.metadata.address}", "file")
    assert "replicas" not in found


@pytest.mark.parametrize(
    ("assignments", "words"),
    [
        (["colour=red"], "colour=red"),
        (["replicas"], "no SETTING=VALUE"),
        (["replicas=x"], "no number of copies"),
        (["spread=zone"], "LEVEL:N"),
        (["name=default"], "not taken away"),
        (["replicas=1", "replicas=2"], "given twice"),
    ],
)
def test_what_is_no_setting_is_refused(assignments: list[str], words: str) -> None:
    """As usage, before anybody is asked."""
    with pytest.raises(click.UsageError, match=words):
        parse_assignments(assignments)


def test_assignments_are_read_as_typed() -> None:
    assert parse_assignments(
        ["replicas=5", "spread=none", "local-age=7d", "total_age=default"]
    ) == {
        "replicas": 5,
        "spread": {},
        "local_age": 7 * 86_400,
        "total_age": None,
    }
