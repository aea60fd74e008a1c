"""Metrics by name: as docs/metrics.md has them, as a node exposes them, as PromQL names them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "metrics.md"
_ROW = re.compile(
    r"^\| `(?P<name>sharedlog_\w+)` \| (?P<kind>\w+) \|(?P<labels>[^|]*)\|(?P<unit>[^|]*)\|"
    r"(?P<meaning>[^|]+)\|[^|]*\|$",
    re.MULTILINE,
)
_NAME = re.compile(r"\bsharedlog_\w+")


@dataclass(frozen=True, slots=True)
class Family:
    """A metric: its type, and the names of its labels."""

    kind: str
    labels: frozenset[str]
    unit: str = ""


def documented() -> dict[str, Family]:
    """What the page has a row for."""
    text = PAGE.read_text()
    found = {
        row["name"]: Family(
            row["kind"], frozenset(re.findall(r"`(\w+)`", row["labels"])), row["unit"].strip()
        )
        for row in _ROW.finditer(text)
    }
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert len(rows) == len(found), "a row is malformed, or is there twice"
    return found


def exposed(text: str) -> dict[str, str]:
    """Names and types in what /metrics answered; only ours."""
    families = re.findall(r"^# TYPE (sharedlog_\w+) (\w+)$", text, re.MULTILINE)
    return {name: kind for name, kind in families if not name.endswith("_created")}


def named_in(expression: str) -> set[str]:
    """Our metrics that a PromQL expression names, without what a histogram adds to its name.

    Recording rules of our own have colons in their names, and are none.
    """
    plain = re.sub(r"\b\w+:[\w:]+", "", expression)
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in _NAME.findall(plain)}
