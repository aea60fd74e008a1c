"""`read`, `tail` and `log find-offset` by moments and limits, and of several logs."""

from __future__ import annotations

import re
import signal

import pytest
from click.testing import CliRunner
from helpers.command import Cli

from sharedlog.cli.moments import parse_moment
from sharedlog.cli.root import cli as root

NOW_MS = 1_795_773_600_000  # 2026-11-27T10:00:00Z


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("2026-11-27T10:00:00Z", NOW_MS),
        ("2026-11-27T11:00:00.5+01:00", NOW_MS + 500),
        ("2026-11-27 10:00Z", NOW_MS),
        ("-90s", NOW_MS - 90_000),
        ("-1h30m", NOW_MS - 5_400_000),
        ("-2d", NOW_MS - 172_800_000),
        ("-99999d", 0),
        ("2026-11-27T10:00:00", None),
        ("2026-11-27", None),
        ("yesterday", None),
        ("-1", None),
        ("-h", None),
        ("1h", None),
        ("--1h", None),
        ("", None),
    ],
)
def test_moments_are_times_with_a_zone_or_ages(text: str, wanted: int | None) -> None:
    """What could be read in two ways is refused: a time without its zone, a bare number."""
    assert parse_moment(text, now_ms=NOW_MS) == wanted


def test_help_has_examples_of_moments() -> None:
    """What one would look for is there."""
    shown = CliRunner().invoke(root, ["read", "--help"]).stdout
    assert "--from -1h --until -30m" in shown
    assert "--from 2026-11-27T10:00:00Z" in shown
    assert "--time -1h30m" in CliRunner().invoke(root, ["log", "find-offset", "--help"]).stdout


def _time_of(cli: Cli, log: str, offset: int) -> int:
    (record,) = cli.ok("read", log, "--from", str(offset), "--limit", "1", "--json").json_lines
    found: int = record["timestamp_ms"]
    return found


@pytest.mark.cluster
@pytest.mark.slow
def test_from_a_moment_until_another(cli: Cli, log: str) -> None:
    """Three appends, each some time after the one before."""
    for text in (b"a\nb\n", b"c\n", b"d\ne\n"):
        cli.ok("append", log, stdin=text)
    second, third = _time_of(cli, log, 2), _time_of(cli, log, 3)

    def find(when: str) -> int:
        return int(cli.ok("log", "find-offset", log, "--time", when).text)

    assert find(str(second)) == 2
    assert find(str(second + 1)) == 3
    assert find("-1h") == 0
    assert find("2026-01-01T00:00:00Z") == 0
    assert find("2999-01-01T00:00:00+01:00") == 5
    described = cli.ok("log", "find-offset", log, "--time", str(third), "--json").json
    assert (described["log"], described["offset"], described["time_ms"]) == (log, 3, third)
    iso = cli.ok("read", log, "--show", "timestamp", "--from", "2", "--limit", "1").text
    when = iso.split("\t")[0]
    assert re.fullmatch(r"[\d-]+T[\d:.]+Z", when)
    assert cli.ok("read", log, "--from", when).out == b"c\nd\ne\n"
    assert cli.ok("read", log, "--from", when, "--until", str(third)).out == b"c\n"
    assert cli.ok("read", log, "--from", "-1h", "--limit", "2").out == b"a\nb\n"
    assert cli.ok("read", log, "--last", "2").out == b"d\ne\n"
    assert cli.ok("read", log, "--from", "1", "--limit-bytes", "3").out == b"b\nc\nd\n"
    assert cli.ok("read", log, "--from", "-1h", "--to", "9", "--limit-bytes", "1").err == ""
    missing = cli("log", "find-offset", "nope", "--time", "-1h")
    assert (missing.code, missing.err.count("\n")) == (3, 1)


@pytest.mark.cluster
@pytest.mark.slow
def test_several_logs_are_read_as_one(cli: Cli, log: str) -> None:
    """By time, with the log's name before each record; followed until Ctrl-C."""
    one, two = f"{log}-1", f"{log}-2"
    for name in (one, two):
        cli.ok("log", "create", name)
    for name, text in ((one, b"a\n"), (two, b"b\nc\n"), (one, b"d\n")):
        cli.ok("append", name, stdin=text)
    lines = [f"{one}\ta", f"{two}\tb", f"{two}\tc", f"{one}\td"]
    assert cli.ok("read", one, two).text.splitlines() == lines
    assert cli.ok("read", two, one, "--limit", "2").text.splitlines() == lines[:2]
    assert cli.ok("read", one, two, "--format", "raw").out == b"abcd"
    found = cli.ok("read", one, two, "--json").json_lines
    assert [(it["log"], it["value"]) for it in found] == [tuple(line.split("\t")) for line in lines]
    assert cli.ok("tail", one, two, "-n", "1").text.splitlines() == lines[2:]
    following = cli.start("tail", "-f", one, two, "-n", "1")
    assert following.stdout is not None
    assert [following.stdout.readline().decode() for _ in "cd"] == [f"{it}\n" for it in lines[2:]]
    for name, text in ((two, b"e\n"), (one, b"f\n")):
        cli.ok("append", name, stdin=text)
    assert following.stdout.readline().decode() == f"{two}\te\n"
    assert following.stdout.readline().decode() == f"{one}\tf\n"
    following.send_signal(signal.SIGINT)
    out, err = following.communicate(timeout=10)
    assert (following.returncode, out, err) == (130, b"", b"")
    beyond = cli("read", one, two, "--from", "9")
    assert beyond.code == 3
    assert beyond.err.endswith(f" (while log {one} was read)\n") or beyond.err.endswith(
        f" (while log {two} was read)\n"
    )
