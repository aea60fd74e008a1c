"""Dashboards and alerts name only what there is, and the alerts come when they should."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.deploy_tools import command
from helpers.metric_names import documented, named_in

ROOT = Path(__file__).parents[2]
DASHBOARDS = sorted((ROOT / "deploy" / "grafana").glob("*.json"))
RULES = ROOT / "deploy" / "prometheus" / "rules.yml"


def expressions(dashboard: Path) -> Iterator[tuple[str, str]]:
    """Each panel's title with each of its expressions, and the variables'."""
    read: dict[str, Any] = json.loads(dashboard.read_text())
    for panel in read["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]
    for variable in read["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["name"], variable["query"]["query"]


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda it: it.name)
def test_dashboards_name_metrics_that_there_are(dashboard: Path) -> None:
    """docs/metrics.md has them, and a node exposes what that has (test_metrics_page.py)."""
    known = set(documented())
    found = list(expressions(dashboard))
    assert len(found) > 30
    wrong = {title: named_in(text) - known for title, text in found if named_in(text) - known}
    assert not wrong
    assert all(named_in(text) for _, text in found)


def test_dashboards_show_each_part() -> None:
    """Appends, latency, lag, replication, disk, metadata, archive and controller."""
    named = {name for it in DASHBOARDS for _, text in expressions(it) for name in named_in(text)}
    for part in ("node", "sequencer", "log_server", "controller", "archive", "metadata"):
        assert any(name.startswith(f"sharedlog_{part}_") for name in named), part


def test_dashboards_lie_side_by_side() -> None:
    """No two panels overlap, and each has a number of its own."""
    for dashboard in DASHBOARDS:
        panels = json.loads(dashboard.read_text())["panels"]
        assert len({it["id"] for it in panels}) == len(panels)
        taken: set[tuple[int, int]] = set()
        for at in (it["gridPos"] for it in panels):
            cells = {
                (x, y)
                for x in range(at["x"], at["x"] + at["w"])
                for y in range(at["y"], at["y"] + at["h"])
            }
            assert not taken & cells
            assert at["x"] + at["w"] <= 24
            taken |= cells


def test_rules_name_metrics_that_there_are() -> None:
    """As for dashboards; comments and texts do not count."""
    text = re.sub(r"^\s*(#|summary:|runbook_url:).*$", "", RULES.read_text(), flags=re.MULTILINE)
    assert len(named_in(text)) > 10
    assert not named_in(text) - set(documented())


def test_every_alert_has_a_summary_a_severity_and_a_page_to_read() -> None:
    """The page has the section."""
    alerts = re.split(r"^ +- alert: ", RULES.read_text(), flags=re.MULTILINE)[1:]
    assert len(alerts) > 15
    page = (ROOT / "docs" / "operations.md").read_text()
    headings = re.findall(r"^#+ (.+)$", page, re.MULTILINE)
    sections = {re.sub(r"[^\w\- ]", "", it.lower()).replace(" ", "-") for it in headings}
    for alert in alerts:
        name = alert.split("\n", 1)[0]
        assert re.search(r"^ +severity: (page|ticket)$", alert, re.MULTILINE), name
        assert re.search(r"^ +summary: \S", alert, re.MULTILINE), name
        (anchor,) = re.findall(
            r"^ +runbook_url: docs/operations\.md#([\w-]+)$", alert, re.MULTILINE
        )
        assert anchor in sections, f"{name}: {anchor}"


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments", [("check", "rules", RULES.name), ("test", "rules", "rules_test.yml")]
)
def test_promtool_agrees(arguments: tuple[str, ...]) -> None:
    """The rules are right as rules, and each alert that rules_test.yml has comes in its time."""
    promtool(*arguments, cwd=RULES.parent)


@pytest.mark.slow
@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda it: it.name)
def test_promtool_can_read_the_dashboards(dashboard: Path, tmp_path: Path) -> None:
    """Each expression, with the variables filled in as Grafana does, is one of Prometheus's."""
    rules = []
    for number, (_, text) in enumerate(expressions(dashboard)):
        if not text.startswith("label_values("):
            filled = text.replace("$instance", ".*").replace("$__rate_interval", "1m")
            rules.append({"record": f"panel:{number}", "expr": filled})
    found = tmp_path / "rules.yml"
    # JSON is YAML.
    found.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))
    assert f"{len(rules)} rules found" in promtool("check", "rules", found.name, cwd=tmp_path)


def promtool(*arguments: str, cwd: Path) -> str:
    """What it says; the test is skipped where there is none."""
    done = subprocess.run(
        [command("promtool", of="test-deps"), *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
