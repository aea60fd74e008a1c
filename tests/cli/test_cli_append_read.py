"""`sharedlog append`, `read` and `tail` on a real cluster of three nodes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
from helpers.command import COMMAND, Cli

from sharedlog.dev_cluster import DevCluster

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


def test_lines_go_in_and_come_out(cli: Cli, log: str) -> None:
    """Every line is a record, the empty one and the one without a newline too; bytes survive."""
    done = cli.ok("append", log, stdin=b"one\n\n\xff\x00\nlast")
    assert done.text == "appended 4 records at offsets 0..3\n"
    assert cli.ok("read", log).out == b"one\n\n\xff\x00\nlast\n"
    assert cli.ok("append", log, stdin=b"5th\n").text == "appended 1 record at offset 4\n"
    assert cli.ok("read", log, "--from", "3", "--show", "offset").out == b"3\tlast\n4\t5th\n"


def test_append_in_json_says_where_and_how_much(cli: Cli, log: str) -> None:
    """One object with stable keys."""
    done = cli.ok("append", log, "--json", "--key", "k", "--header", "h=1", stdin=b"a\nbb\n")
    seconds = done.json.pop("seconds")
    assert seconds > 0
    assert {**done.json, "seconds": 0} == {
        "log": log,
        "first_offset": 0,
        "last_offset": 1,
        "contiguous": True,
        "records": 2,
        "bytes": 5,
        "seconds": 0,
        "indefinite_records": 0,
        "refused_records": 0,
        "passed_records": 0,
        "error": None,
    }
    first, second = cli.ok("read", log, "--json").json_lines
    assert set(first) == {"offset", "timestamp_ms", "key", "value", "headers"}
    assert (first["offset"], first["key"], first["value"]) == (0, "k", "a")
    assert second["headers"] == {"h": "1"}


def test_no_input_is_no_record(cli: Cli, log: str) -> None:
    """Nothing in, nothing appended, no failure."""
    assert cli.ok("append", log).text == "appended 0 records\n"
    found = cli.ok("append", log, "--json").json
    assert (found["first_offset"], found["last_offset"], found["records"]) == (None, None, 0)


def test_offsets_are_printed_one_a_line(cli: Cli, log: str) -> None:
    """`--offsets`, for who wants to keep them."""
    assert cli.ok("append", log, "--offsets", stdin=b"a\nb\nc\n").text == "0\n1\n2\n"


def test_files_are_appended_in_order_and_raw_makes_each_one_record(
    cli: Cli, log: str, tmp_path: Path
) -> None:
    """Lines do not run on from one file into the next."""
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"a\nb")
    two.write_bytes(b"c\n")
    cli.ok("append", log, str(one), str(two))
    cli.ok("append", log, "--format", "raw", str(one), str(two))
    values = [entry["value"] for entry in cli.ok("read", log, "--json").json_lines]
    assert values == ["a", "b", "c", "a\nb", "c\n"]


def test_ndjson_round_trip_of_two_logs(cli: Cli, log: str) -> None:
    """`read --format json | append --format ndjson` copies values, keys and headers."""
    cli.ok("append", log, "--key", "k", "--header", "h=\u00e9", stdin=b"\xff\nplain\n")
    cli.ok("append", log, stdin=b"no key\n")
    dump = cli.ok("read", log, "--format", "json")
    cli.ok("log", "create", f"{log}-copy")
    cli.ok("append", f"{log}-copy", "--format", "ndjson", stdin=dump.out)
    copied = cli.ok("read", f"{log}-copy", "--format", "json").json_lines
    for entry in (*copied, *dump.json_lines):
        del entry["timestamp_ms"]
    copies, originals = copied, dump.json_lines
    for entry in originals:
        del entry["timestamp_ms"]
    assert copies == originals


def test_a_bad_line_of_ndjson_says_what_is_already_in_the_log(cli: Cli, log: str) -> None:
    """The good lines before it are in the log, and the message counts them."""
    lines = b'{"value": "a"}\n{"value": "b"}\n{"vale": "c"}\n{"value": "d"}\n'
    done = cli("append", log, "--format", "ndjson", "--json", stdin=lines)
    assert done.code == 1
    assert "line 3 of the input: unknown field 'vale'" in done.err
    assert "appended 2 records at offsets 0..1" in done.err
    assert (done.json["records"], done.json["last_offset"]) == (2, 1)
    assert "line 3" in done.json["error"]
    assert cli.ok("read", log).text == "a\nb\n"


def test_a_record_that_is_too_large_is_refused_by_name(cli: Cli, log: str) -> None:
    """Field note 37: a typed answer at admission; the log goes on."""
    done = cli("append", log, "--format", "raw", stdin=b"x" * (9 << 20))
    assert done.code == 1
    assert "at most 8,323,072 are taken" in done.err
    assert "appended 0 records" in done.err
    cli.ok("append", log, stdin=b"small\n")


def test_many_large_records_need_several_batches(cli: Cli, log: str) -> None:
    """More than a batch holds, some near the limit of a record: all there, in order."""
    lines = [b"a" * 7_000_000, b"b", b"c" * 7_000_000, *(b"%d" % n for n in range(40_000))]
    whole = b"\n".join(lines) + b"\n"
    assert cli.ok("append", log, "--json", stdin=whole).json["records"] == len(lines)
    assert cli.ok("read", log).out == whole


def test_ranges_limits_and_the_ends_of_the_log(cli: Cli, log: str) -> None:
    """--from, --to, --limit, alone and together, and what lies beyond the tail."""
    cli.ok("append", log, stdin=b"".join(b"%d\n" % n for n in range(10)))

    def read(*arguments: str) -> list[int]:
        return [int(line) for line in cli.ok("read", log, *arguments).out.split()]

    assert read() == list(range(10))
    assert read("--from", "8") == [8, 9]
    assert read("--from", "2", "--to", "5") == [2, 3, 4]
    assert read("--from", "2", "--limit", "2") == [2, 3]
    assert read("--from", "2", "--to", "3", "--limit", "2") == [2]
    assert read("--from", "10") == []
    beyond = cli("read", log, "--from", "11")
    assert (beyond.code, beyond.out) == (3, b"")
    assert beyond.err == "error: offset 11 is out of range: the tail is 10\n"
    clipped = cli.ok("read", log, "--from", "8", "--to", "20")
    assert clipped.out == b"8\n9\n"
    assert "--to 20 lies beyond the tail 10" in clipped.err
    assert cli.ok("read", log, "--to", "3", "--limit", "5").err == ""


def test_tail_shows_the_last_ones(cli: Cli, log: str) -> None:
    """Ten unless told otherwise; a log with fewer shows all."""
    assert cli.ok("tail", log).out == b""
    cli.ok("append", log, stdin=b"".join(b"%d\n" % n for n in range(30)))
    assert cli.ok("tail", log).out.split() == [b"%d" % n for n in range(20, 30)]
    assert cli.ok("tail", log, "-n", "2", "--format", "hex").out == b"3238\n3239\n"
    assert cli.ok("tail", log, "-n", "0").out == b""
    assert len(cli.ok("tail", log, "-n", "100", "--json").json_lines) == 30
    assert cli.ok("tail", log, "-n", "3", "--format", "raw").out == b"272829"


@pytest.mark.parametrize("command", [["tail", "-n", "1", "-f"], ["read", "--from", "1", "-f"]])
def test_following_shows_what_comes_until_ctrl_c(cli: Cli, log: str, command: list[str]) -> None:
    """Each record as soon as it is committed; Ctrl-C is exit code 130 without a word."""
    cli.ok("append", log, stdin=b"0\n1\n")
    following = cli.start(command[0], log, *command[1:])
    assert following.stdout is not None
    assert following.stdout.readline() == b"1\n"
    cli.ok("append", log, stdin=b"2\n3\n")
    assert following.stdout.readline() == b"2\n"
    assert following.stdout.readline() == b"3\n"
    following.send_signal(signal.SIGINT)
    out, err = following.communicate(timeout=10)
    assert (following.returncode, out, err) == (130, b"", b"")


def test_following_ends_at_its_limit(cli: Cli, log: str) -> None:
    """`--follow --limit N` waits for N records and ends."""
    following = cli.start("read", log, "--follow", "--limit", "3")
    cli.ok("append", log, stdin=b"a\nb\n")
    cli.ok("append", log, stdin=b"c\nd\n")
    out, err = following.communicate(timeout=20)
    assert (following.returncode, out, err) == (0, b"a\nb\nc\n", b"")


def test_a_reader_that_has_had_enough_is_no_error(cli: Cli, log: str) -> None:
    """`| head -1`: exit code 0, nothing on stderr."""
    cli.ok("append", log, stdin=b"0123456789\n" * 200_000)
    reading = cli.start("read", log)
    assert reading.stdout is not None
    assert reading.stderr is not None
    assert reading.stdout.readline() == b"0123456789\n"
    reading.stdout.close()
    assert reading.stderr.read() == b""
    assert reading.wait(10) == 0


def test_records_are_appended_while_the_input_goes_on(cli: Cli, log: str) -> None:
    """A pipe that stays open holds nothing back; Ctrl-C then says what is in the log."""
    appending = cli.start("append", log)
    assert appending.stdin is not None
    appending.stdin.write(b"first\nsec")
    appending.stdin.flush()
    assert cli.ok("read", log, "--follow", "--limit", "1").out == b"first\n"
    appending.send_signal(signal.SIGINT)
    out, err = appending.communicate(timeout=10)
    assert appending.returncode == 130
    assert out == b""
    assert err == b"error: interrupted; appended 1 record at offset 0\n"


def test_an_interrupted_append_ends_with_its_object_in_json(cli: Cli, log: str) -> None:
    """A script gets the counts of a run that was cut short, too."""
    appending = cli.start("append", log, "--json")
    assert appending.stdin is not None
    appending.stdin.write(b"first\n")
    appending.stdin.flush()
    assert cli.ok("read", log, "--follow", "--limit", "1").out == b"first\n"
    appending.send_signal(signal.SIGINT)
    out, _ = appending.communicate(timeout=10)
    assert appending.returncode == 130
    summary = json.loads(out)
    assert (summary["records"], summary["error"]) == (1, "interrupted")


def test_two_writers_at_once_are_reported_as_what_they_are(cli: Cli, log: str) -> None:
    """Offsets of one run need not be without gaps; the count is of its own records."""
    lines = b"x" * 99 + b"\n"
    both = [cli.start("append", log, "--json") for _ in range(2)]
    for run in both:
        assert run.stdin is not None
    outcomes = []
    for run in both:
        out, err = run.communicate(lines * 20_000, timeout=60)
        assert run.returncode == 0, err
        outcomes.append(json.loads(out))
    assert [outcome["records"] for outcome in outcomes] == [20_000, 20_000]
    for outcome in outcomes:
        spread = outcome["last_offset"] - outcome["first_offset"] + 1
        assert (spread == 20_000) == outcome["contiguous"]
    assert cli.ok("log", "describe", log, "--json").json["tail"] == 40_000


def test_any_node_takes_appends_and_serves_reads(
    environment: dict[str, str], cluster: DevCluster, cli: Cli, log: str
) -> None:
    """The address of any node will do."""
    for index, address in enumerate(cluster.addresses):
        cli.ok("append", log, "-a", address, stdin=b"%d\n" % index)
    for address in cluster.addresses:
        assert cli.ok("read", log, "-a", address).out == b"0\n1\n2\n"
    every = Cli(environment, ",".join(cluster.addresses))
    assert every.ok("tail", log, "-n", "1").out == b"2\n"


def test_a_lost_write_quorum_says_what_is_and_what_may_be_in_the_log(
    alone: Cli, own_cluster: DevCluster
) -> None:
    """Field note 41: acknowledged records are counted as such, the rest as what it may be.

    Two of three nodes die under a running append: what was acknowledged is certain, what was in
    flight is indefinite, and the exit code is not that of a safe retry.
    """
    cli = alone
    cli.environment["SHAREDLOG_ADDRESS"] = own_cluster.address
    found = cli.ok("log", "create", "orders", "--json").json
    keeper = found["chain"][0]["sequencer"]["node_id"]
    cli.environment["SHAREDLOG_ADDRESS"] = own_cluster.nodes[keeper].address
    appending = cli.start("append", "orders", "--json", "--timeout", "2")
    assert appending.stdin is not None
    appending.stdin.write(b"certain\n")
    appending.stdin.flush()
    assert cli.ok("read", "orders", "-f", "--limit", "1").out == b"certain\n"
    for node_id in set(own_cluster.nodes) - {keeper}:
        own_cluster.kill(node_id)
    appending.stdin.write(b"doubtful\n")
    out, err = appending.communicate(timeout=30)
    summary = json.loads(out)
    assert appending.returncode == 1, err
    assert (summary["records"], summary["indefinite_records"]) == (1, 1)
    last = err.decode().splitlines()[-1]
    assert last.startswith("error: ")
    assert last.endswith("appended 1 record at offset 0, 1 record may be in the log")
    refused = cli("append", "orders", "--timeout", "0.5", stdin=b"not taken\n")
    assert refused.code == 4
    assert "can't be confirmed" in refused.err
    assert refused.err.endswith("appended 0 records\n")
    described = cli.ok("log", "describe", "orders", "--timeout", "0.5", "--json").json
    assert not described["tail_is_exact"]


def test_a_terminal_gets_colours_unless_no_color_is_set(cli: Cli) -> None:
    """On a terminal the table is rich's; NO_COLOR is honoured there."""
    assert "\x1b[" in _run_on_terminal(cli, {"TERM": "xterm-256color"})
    plain = _run_on_terminal(cli, {"TERM": "xterm-256color", "NO_COLOR": "1"})
    assert "n1" in plain
    assert "\x1b[32m" not in plain
    assert "\x1b[31m" not in plain


def _run_on_terminal(cli: Cli, environment: dict[str, str]) -> str:
    """`sharedlog status` with a terminal as its stdout."""
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        [*COMMAND, "status"], stdout=theirs, env=cli.environment | environment
    )
    os.close(theirs)
    shown = b""
    try:
        while chunk := os.read(ours, 65_536):
            shown += chunk
    except OSError:  # Linux: the last writer has closed
        pass
    os.close(ours)
    assert process.wait(10) == 0
    return shown.decode()
