"""Named clusters, and which one a command is for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from sharedlog.cli.app import Settings
from sharedlog.cli.contexts import load_config, resolve_target
from sharedlog.cli.failures import CliFailure, exit_code_of
from sharedlog.cli.root import cli as root


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "folder" / "config.toml"
    monkeypatch.setenv("SHAREDLOG_CONFIG", str(path))
    monkeypatch.delenv("SHAREDLOG_ADDRESS", raising=False)
    monkeypatch.delenv("SHAREDLOG_CONTEXT", raising=False)
    return path


def _json(*arguments: str) -> Any:
    result = CliRunner().invoke(root, ["context", *arguments, "--json"])
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_contexts_are_set_listed_used_and_removed(config: Path) -> None:
    """The life of two contexts, in JSON."""
    assert _json("ls") == {"config": str(config), "current": None, "contexts": []}
    assert _json("set", "a", "--address", "h1:1")["current"] == "a"
    assert _json("set", "b", "--address", "h2:2", "--timeout", "5")["current"] == "a"
    assert _json("use", "b")["address"] == "h2:2"
    assert _json("ls")["contexts"] == [
        {"name": "a", "current": False, "address": "h1:1", "timeout_s": None},
        {"name": "b", "current": True, "address": "h2:2", "timeout_s": 5.0},
    ]
    assert _json("rm", "b")["current"] is None
    assert [entry["name"] for entry in _json("ls")["contexts"]] == ["a"]


def test_set_changes_only_what_is_given() -> None:
    """A new timeout keeps the address, a new address the timeout."""
    _json("set", "a", "--address", "h1:1", "--timeout", "5")
    _json("set", "a", "--timeout", "7")
    _json("set", "a", "--address", "h3:3")
    found = load_config().context("a")
    assert (found.address, found.timeout_s) == ("h3:3", 7.0)


@pytest.mark.parametrize("verb", ["use", "rm"])
def test_an_unknown_context_is_not_found(verb: str) -> None:
    """Exit code 3, and where to look."""
    result = CliRunner().invoke(root, ["context", verb, "nope"])
    assert result.exit_code == 3
    assert result.stderr.startswith("error: there is no context 'nope'")


def test_what_was_typed_beats_what_was_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """--address, --context, the two variables, the current context, the default: in this order."""
    assert resolve_target(Settings()).address == "127.0.0.1:4100"
    _json("set", "current", "--address", "current:1")
    _json("set", "named", "--address", "named:1", "--timeout", "3")
    assert resolve_target(Settings()).address == "current:1"
    monkeypatch.setenv("SHAREDLOG_CONTEXT", "named")
    assert resolve_target(Settings()).address == "named:1"
    monkeypatch.setenv("SHAREDLOG_ADDRESS", "environment:1")
    assert resolve_target(Settings()).address == "environment:1"
    assert resolve_target(Settings(context="named")).address == "named:1"
    assert resolve_target(Settings(context="named")).timeout_s == 3.0
    assert resolve_target(Settings(context="named", timeout_s=9)).timeout_s == 9
    both = Settings(address="typed:1", context="named")
    assert resolve_target(both).address == "typed:1"


@pytest.mark.parametrize(
    "text",
    ["not toml", "current = 3", "contexts = 3", "[contexts.a]\n", "[contexts]\na = 3\n"],
)
def test_a_damaged_file_is_one_clear_error(config: Path, text: str) -> None:
    """The file is named, and it is a usage error."""
    config.parent.mkdir()
    config.write_text(text)
    with pytest.raises(CliFailure) as raised:
        load_config()
    assert exit_code_of(raised.value) == 2
    assert str(config) in raised.value.message


def test_an_address_that_is_typed_needs_no_readable_file(config: Path) -> None:
    """A damaged file is no hindrance to who says the address."""
    config.parent.mkdir()
    config.write_text("not toml")
    assert resolve_target(Settings(address="h:1")).address == "h:1"
