"""What a newcomer types wrong is answered with one line and exit code 2."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from sharedlog.cli.root import cli as root


@pytest.fixture
def runner(tmp_path: Path) -> CliRunner:
    unset = ("SHAREDLOG_ADDRESS", "SHAREDLOG_CONTEXT", "SHAREDLOG_DEBUG")
    return CliRunner(
        env={"SHAREDLOG_CONFIG": str(tmp_path / "config.toml"), **dict.fromkeys(unset)}
    )


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port of this machine on which nothing listens, and nobody else can meanwhile."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


def _assert_one_line(result: Result) -> None:
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["stats"], "did you mean 'status'"),
        (["log", "lss"], "did you mean 'ls'"),
        (["log", "create"], "argument 'NAME'"),
        (["read", "orders", "--form", "x"], "--form"),
        (["read", "orders", "--format", "xml"], "'xml' is not one of"),
        (["read", "orders", "--from", "-1"], "'-1' is no offset, no time with its zone"),
        (["read", "orders", "--from", "ten"], "'ten' is no offset, no time with its zone"),
        (["read", "orders", "--from", "2026-11-27T10:00:00"], "no time with its zone"),
        (["read", "orders", "--from", "-1y"], "no age (-1h30m)"),
        (["read", "orders", "--until", "soon"], "'soon' is no time with its zone"),
        (["read", "orders", "--from", "1", "--last", "2"], "exclude each other"),
        (["read", "orders", "--limit-bytes", "0"], "0 is not in the range"),
        (["read", "orders", "logs", "--to", "3"], "are for one log"),
        (["read"], "argument 'LOG...'"),
        (["tail", "orders", "-n", "65537"], "65537 is not in the range"),
        (["log", "find-offset", "orders"], "--time"),
        (["log", "trimm", "orders"], "did you mean 'trim'"),
        (["log", "trim", "orders"], "up to where? --before OFFSET or --older-than AGE"),
        (["log", "trim", "orders", "--before", "1", "--older-than", "7d"], "exclude each other"),
        (["log", "purge", "orders", "--older-than", "7"], "'7' is no duration"),
        (["log", "purge", "orders", "--older-than", "none"], "up to where?"),
        (["log", "purge", "orders", "--before", "-1"], "-1 is not in the range"),
        (["archive", "verfy", "orders"], "did you mean 'verify'"),
        (["archive", "sweep"], "the name of a log or --all"),
        (["archive", "sweep", "orders", "--all"], "the name of a log or --all"),
        (["archive", "export", "x.slog", "--format", "csv"], "'csv' is not one of"),
        (["archive", "export", "x.slog", "--start", "5", "--end", "4"], "--end 4 lies below"),
        (["read", "orders", "--from", "5", "--to", "4"], "--to 4 lies below --from 5"),
        (["read", "orders", "--limit", "0"], "0 is not in the range"),
        (["read", "orders", "--show", "offset,size"], "choose from offset"),
        (["read", "orders", "--json", "--format", "hex"], "exclude each other"),
        (["read", "orders", "--json", "-v"], "not for json"),
        (["tail", "orders", "-n", "-3"], "-3 is not in the range"),
        (["append", "orders", "--format", "csv"], "'csv' is not one of"),
        (["append", "orders", "--key-field", "id"], "--key-field is for --format ndjson"),
        (["append", "orders", "--header", "novalue"], "NAME=VALUE"),
        (["append", "orders", "--offsets", "--json"], "exclude each other"),
        (["append", "orders", "/no/such/file"], "No such file"),
        (["status", "-a", "localhost"], "host:port is needed"),
        (["status", "-a", "localhost:port"], "host:port is needed"),
        (["status", "--timeout", "0"], "0.0 is not in the range"),
        (["status", "--watch", "--check"], "exclude each other"),
        (["status", "-o", "yaml"], "'yaml' is not one of"),
        (["log", "create", "orders", "--replicas", "0"], "0 is not in the range"),
        (["dev", "--nodes", "0"], "0 is not in the range"),
        (["dev", "--port", "1"], "leaves no port below"),
        (["store", "inspect", "/no/such/dir"], "does not exist"),
        (["completion", "tcsh"], "'tcsh' is not one of"),
        (["context", "set", "bad name", "-a", "h:1"], "no context name"),
        (["context", "set", "fresh"], "give its --address"),
    ],
)
def test_a_wrong_word_is_one_line_and_exit_code_2(
    runner: CliRunner, arguments: list[str], expected: str
) -> None:
    """Usage errors name what is wrong and where the help is, and touch no cluster."""
    result = runner.invoke(root, arguments)
    assert result.exit_code == 2
    _assert_one_line(result)
    assert expected in result.stderr
    assert "--help" in result.stderr


@pytest.mark.parametrize("command", [["status"], ["bench", "append"]], ids=" ".join)
def test_no_cluster_is_retryable_and_says_how_to_start_one(
    runner: CliRunner, closed_port: int, command: list[str]
) -> None:
    """Nothing listens: exit code 4 at once, with a hint. Retries would go on beyond any test's
    time."""
    address = f"127.0.0.1:{closed_port}"
    result = runner.invoke(root, [*command, "-a", address, "--timeout", "600"])
    assert result.exit_code == 4
    _assert_one_line(result)
    assert result.stderr.count(f"can't reach 127.0.0.1:{closed_port}") == 1
    assert "sharedlog dev" in result.stderr


def test_an_address_in_the_environment_is_checked_too(runner: CliRunner) -> None:
    """A bad SHAREDLOG_ADDRESS is a usage error as a bad --address is."""
    result = runner.invoke(root, ["status"], env={"SHAREDLOG_ADDRESS": "nonsense"})
    assert result.exit_code == 2
    _assert_one_line(result)


def test_debug_shows_the_traceback(runner: CliRunner, closed_port: int) -> None:
    """SHAREDLOG_DEBUG=1 adds the traceback; the last line stays the same."""
    arguments = ["status", "-a", f"127.0.0.1:{closed_port}"]
    result = runner.invoke(root, arguments, env={"SHAREDLOG_DEBUG": "1"})
    assert result.exit_code == 4
    assert "Traceback" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: can't reach")


def test_global_options_before_the_command_are_taken_too(
    runner: CliRunner, closed_port: int
) -> None:
    """`sharedlog -a X status` asks X, and the option beside the command wins."""
    before = ["-a", "127.0.0.1:1", "status"]
    assert "127.0.0.1:1:" in runner.invoke(root, before).stderr
    both = [*before, "-a", f"127.0.0.1:{closed_port}"]
    assert f"127.0.0.1:{closed_port}:" in runner.invoke(root, both).stderr


def _commands(
    group: click.Group, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from _commands(command, (*path, name))


ALL_COMMANDS = [path for path, _ in _commands(root)]


@pytest.mark.parametrize("path", ALL_COMMANDS, ids=" ".join)
def test_every_command_has_help_with_examples(runner: CliRunner, path: tuple[str, ...]) -> None:
    """`--help` of each command exists, is on stdout, and shows how it is used."""
    result = runner.invoke(root, [*path, "--help"])
    assert result.exit_code == 0
    assert "Examples:" in result.stdout
    assert f"sharedlog {path[0]}" in result.stdout.partition("Examples:")[2]
    assert result.stderr == ""


def test_every_command_that_prints_data_takes_json() -> None:
    """--json and -o json everywhere, but for the shell's script."""
    for path, command in _commands(root):
        if isinstance(command, click.Group) or path == ("completion",):
            continue
        options = {option for parameter in command.params for option in parameter.opts}
        assert "--json" in options, path


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_for_the_shell(runner: CliRunner, shell: str) -> None:
    """The script names the command and click's variable."""
    result = runner.invoke(root, ["completion", shell])
    assert result.exit_code == 0
    assert "_SHAREDLOG_COMPLETE" in result.stdout
    assert "sharedlog" in result.stdout


def test_version_says_what_it_runs_on(runner: CliRunner) -> None:
    """Version, in both forms."""
    assert runner.invoke(root, ["version"]).stdout.startswith("sharedlog ")
    found = json.loads(runner.invoke(root, ["version", "--json"]).stdout)
    assert set(found) == {"sharedlog", "python", "grpcio", "protobuf"}
    assert all(found.values())


def test_no_arguments_show_the_help_and_are_a_usage_error(runner: CliRunner) -> None:
    """`sharedlog` alone teaches, on stderr, for there is no data."""
    result = runner.invoke(root, [])
    assert result.exit_code == 2
    assert "Examples:" in result.stderr
    assert result.stdout == ""


@pytest.mark.slow
def test_garbage_on_the_port_is_one_line_and_retryable(runner: CliRunner) -> None:
    """Something that is no node answers on the port: no traceback, no hang."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=_answer_garbage, args=(server,))
        thread.start()
        try:
            address = f"127.0.0.1:{server.getsockname()[1]}"
            result = runner.invoke(root, ["log", "ls", "-a", address, "--timeout", "1"])
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()
    assert result.exit_code == 4
    _assert_one_line(result)
    assert result.stderr.count(address) == 1
    assert "does not speak gRPC" in result.stderr


def _answer_garbage(server: socket.socket) -> None:
    while True:
        try:
            connection, _ = server.accept()
        except OSError:
            return
        with connection:
            connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi")
