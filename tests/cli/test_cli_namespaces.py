"""`sharedlog namespace`, `log ls` and `append --create` on a real cluster."""

from __future__ import annotations

import pytest
from helpers.command import Cli, wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


def test_a_namespace_is_set_shown_and_deleted(cli: Cli) -> None:
    """In JSON and in words; what was deleted is told by exit code 3."""
    made = cli.ok("namespace", "set", "ns/", "--replicas", "3", "--spread", "node:2", "--json").json
    assert (made["replicas"], made["write_quorum"], made["spread"]) == (3, None, {"node": 2})
    assert made["effective"] == [
        {"name": "replicas", "value": "3", "source": "namespace:ns/"},
        {"name": "write_quorum", "value": "2", "source": "default"},
        {"name": "spread", "value": "node:2", "source": "namespace:ns/"},
        {"name": "near", "value": "", "source": "default"},
        {"name": "local_bytes", "value": "", "source": "default"},
        {"name": "local_age", "value": "", "source": "default"},
        {"name": "total_age", "value": "", "source": "default"},
    ]
    shown = cli.ok("namespace", "get", "ns/below/").text
    assert "namespace:ns/" in shown
    (listed,) = cli.ok("namespace", "ls", "ns/", "--json").json["namespaces"]
    assert listed == made | {"effective": []}
    assert "node:2" in cli.ok("namespace", "ls").text
    version = str(made["version"])
    assert cli("namespace", "set", "ns/", "--replicas", "1", "--if-version", "0").code == 3
    changed = cli.ok(
        *("namespace", "set", "ns/", "--inherit", "spread", "--if-version", version, "--json")
    ).json
    assert changed["spread"] is None
    assert cli.ok("namespace", "rm", "ns/").text == "namespace ns/: deleted\n"
    assert cli("namespace", "rm", "ns/").code == 3


def test_a_log_tells_what_it_was_created_with(cli: Cli) -> None:
    """And from where, in words and in JSON."""
    cli.ok("namespace", "set", "with/", "--replicas", "1")
    cli.ok("log", "create", "with/a")
    assert "replicas 1 (namespace:with/)" in cli.ok("log", "describe", "with/a").text
    settings = cli.ok("log", "describe", "with/a", "--json").json["created_with"]
    assert settings[0] == {"name": "replicas", "value": "1", "source": "namespace:with/"}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["namespace", "set", "a"], "nothing is to be set"),
        (["namespace", "set", "a", "--replicas", "3"], "no namespace"),
        (["namespace", "set", "a/", "--replicas", "3", "--write-quorum", "1"], "majority"),
        (["namespace", "set", "a/", "--spread", "town:2"], "no level"),
        (["namespace", "set", "a/", "--spread", "x"], "LEVEL:N"),
    ],
)
def test_what_cannot_be_is_one_line(cli: Cli, arguments: list[str], expected: str) -> None:
    """With exit code 2."""
    done = cli(*arguments)
    assert (done.code, done.out) == (2, b"")
    assert expected in done.err
    assert done.err.count("\n") == 1


def test_logs_are_listed_by_page(cli: Cli) -> None:
    """`--limit` and `--after`; what is left is said."""
    for index in range(3):
        cli.ok("append", f"page/{index}", "--create", stdin=b"x\n")
    assert wait_until(lambda: len(cli.ok("log", "ls", "page/", "--json").json["logs"]) == 3)
    first = cli.ok("log", "ls", "page/", "--limit", "2", "--json").json
    assert [it["name"] for it in first["logs"]] == ["page/0", "page/1"]
    assert first["next_after"] == "page/1"
    done = cli.ok("log", "ls", "page/", "--limit", "2")
    assert "there are more: --after page/1" in done.err
    rest = cli.ok("log", "ls", "page/", "--after", "page/1", "--json").json
    assert ([it["name"] for it in rest["logs"]], rest["next_after"]) == (["page/2"], None)


def test_append_creates_only_if_it_is_told_to(cli: Cli) -> None:
    """With the first record; without any there is no log."""
    assert cli("append", "by-append/a", stdin=b"x\n").code == 3
    cli.ok("append", "by-append/a", "--create", stdin=b"")
    assert cli("log", "describe", "by-append/a").code == 3
    done = cli.ok("append", "by-append/a", "--create", stdin=b"a\nb\n")
    assert done.text == "appended 2 records at offsets 0..1\n"
    assert cli.ok("append", "by-append/a", stdin=b"c\n").text.endswith("offset 2\n")
