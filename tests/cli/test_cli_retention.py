"""How long records are kept: set, inherited and shown by the command, on a real cluster."""

from __future__ import annotations

import pytest
from helpers.command import Cli

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

WEEK = 7 * 86_400


def test_a_log_tells_what_it_keeps_and_who_said_so(cli: Cli) -> None:
    """In JSON in bytes and seconds, in words as they are typed; `log set` changes one by one."""
    cli.ok("namespace", "set", "keep/", "--local-age", "7d", "--total-age", "90d")
    made = cli.ok("log", "create", "keep/a", "--local-bytes", "10GiB", "--json").json
    assert made["retention"] == {
        "local_bytes": {"value": 10 << 30, "source": "create"},
        "local_age_s": {"value": WEEK, "source": "namespace:keep/"},
        "total_age_s": {"value": 90 * 86_400, "source": "namespace:keep/"},
    }
    assert (made["start"], made["trimmed"], made["archived_end"]) == (0, 0, 0)
    done = cli.ok("log", "set", "keep/a", "--local-bytes", "none", "--total-age", "365d")
    words = "local bytes none (log), local age 7d (namespace:keep/), total age 365d (log)"
    assert done.text == f"log keep/a: {words}\n"
    shown = cli.ok("log", "describe", "keep/a").text
    assert f"retention:    {words}\n" in shown
    assert "local bytes 10GiB (create)" in shown
    again = cli.ok("log", "set", "keep/a", "--total-age", "365d", "--json").json
    assert set(again) == {"name", "log_id", "retention"}
    assert again["retention"]["local_bytes"] == {"value": None, "source": "log"}
    assert cli.ok("log", "describe", "keep/a", "--json").json["retention"] == again["retention"]


def test_a_log_without_limits_has_none_by_default(cli: Cli, log: str) -> None:
    """In words and in JSON."""
    found = cli.ok("log", "describe", log, "--json").json
    assert found["retention"] == {
        name: {"value": None, "source": "default"}
        for name in ("local_bytes", "local_age_s", "total_age_s")
    }
    assert "total age none (default)" in cli.ok("log", "describe", log).text


def test_a_namespace_sets_ends_and_inherits_limits(cli: Cli) -> None:
    """0 in JSON is no limit, null is inherited."""
    cli.ok("namespace", "set", "lim/", "--local-bytes", "500MB", "--local-age", "12h")
    made = cli.ok(
        *("namespace", "set", "lim/tmp/", "--local-age", "none", "--total-age", "30m", "--json")
    ).json
    assert (made["local_bytes"], made["local_age_s"], made["total_age_s"]) == (None, 0, 1_800)
    assert made["effective"][4:] == [
        {"name": "local_bytes", "value": "500MB", "source": "namespace:lim/"},
        {"name": "local_age", "value": "", "source": "namespace:lim/tmp/"},
        {"name": "total_age", "value": "30m", "source": "namespace:lim/tmp/"},
    ]
    head, *rows = cli.ok("namespace", "ls", "lim/").text.splitlines()
    assert "LOCAL BYTES  LOCAL AGE  TOTAL AGE" in head
    assert [row.split()[5:8] for row in rows] == [["500MB", "12h", "-"], ["-", "none", "30m"]]
    assert cli("namespace", "set", "lim/tmp/", "--inherit", "local-age").code == 2
    cli.ok("namespace", "set", "lim/tmp/", "--inherit", "total-age", "--inherit", "local-age")
    found = cli.ok("namespace", "get", "lim/tmp/", "--json").json
    assert (found["local_age_s"], found["total_age_s"]) == (None, None)


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["log", "set", "x"], 2, "nothing is to be set"),
        (["log", "set", "x", "--local-age", "7"], 2, "'7' is no duration"),
        (["log", "set", "x", "--local-age", "0d"], 2, "would keep nothing"),
        (["log", "set", "x", "--local-bytes", "10GIB"], 2, "'10GIB' is no size"),
        (["log", "set", "x", "--local-age", "2d", "--total-age", "1d"], 2, "is less than"),
        (["log", "create", "x", "--local-age", "2d", "--total-age", "1d"], 2, "is less than"),
        (["namespace", "set", "x/", "--total-age", "1w"], 2, "'1w' is no duration"),
        (["log", "set", "nope", "--local-age", "1d"], 3, "there is no log 'nope'"),
    ],
)
def test_what_cannot_be_is_one_line(
    cli: Cli, arguments: list[str], code: int, expected: str
) -> None:
    """With the reason, and the exit code for its kind."""
    done = cli(*arguments)
    assert (done.code, done.out) == (code, b"")
    assert expected in done.err
    assert done.err.count("\n") == 1
