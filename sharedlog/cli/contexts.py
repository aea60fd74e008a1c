"""Named clusters: `sharedlog context`, and which cluster a command is for.

The configuration file is `sharedlog/config.toml` in `$XDG_CONFIG_HOME` (`~/.config`), or what
`$SHAREDLOG_CONFIG` names:

    current = "staging"

    [contexts.staging]
    address = "10.0.0.7:4100"
    timeout_s = 5.0

Which cluster: `--address`, else `--context`, else `$SHAREDLOG_ADDRESS`, else `$SHAREDLOG_CONTEXT`,
else the current context, else 127.0.0.1:4100. What was typed beats what was set earlier.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import click

from sharedlog.cli.app import (
    ExamplesCommand,
    LazyGroup,
    Settings,
    check_address,
    output_options,
    pass_settings,
)
from sharedlog.cli.failures import EXIT_NOT_FOUND, EXIT_USAGE, CliFailure
from sharedlog.cli.output import Column, note, print_json, print_table

DEFAULT_ADDRESS: Final = "127.0.0.1:4100"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")


@dataclass(frozen=True, slots=True)
class Target:
    """The cluster that a command is for."""

    address: str
    timeout_s: float | None
    """None takes the client library's own, longer for appends and reads than for calls."""


@dataclass(slots=True)
class Context:
    """A named cluster."""

    address: str
    timeout_s: float | None = None


@dataclass(slots=True)
class UserConfig:
    """The configuration file."""

    path: Path
    current: str | None = None
    contexts: dict[str, Context] = field(default_factory=dict)

    def context(self, name: str) -> Context:
        """The context of this name.

        Raises:
            CliFailure: There is none.
        """
        if name not in self.contexts:
            raise CliFailure(
                f"there is no context {name!r} in {self.path}; see: sharedlog context ls",
                exit_code=EXIT_NOT_FOUND,
            )
        return self.contexts[name]


def resolve_target(settings: Settings) -> Target:
    """Which cluster, by the rule at the top of this module.

    Raises:
        CliFailure: The context that is asked for is unknown, or the file can't be read.
    """
    environment_address = os.environ.get("SHAREDLOG_ADDRESS")
    context: Context | None = None
    if settings.address is None:
        if settings.context is not None:
            context = load_config().context(settings.context)
        elif not environment_address:
            config = load_config()
            name = os.environ.get("SHAREDLOG_CONTEXT") or config.current
            context = config.context(name) if name else None
    if settings.address is not None:
        address = settings.address
    elif context is not None:
        address = context.address
    else:
        address = check_address(environment_address or DEFAULT_ADDRESS)
    timeout_s = settings.timeout_s or (context.timeout_s if context else None)
    return Target(address=address, timeout_s=timeout_s)


def config_path() -> Path:
    """Where the configuration file is, or would be."""
    named = os.environ.get("SHAREDLOG_CONFIG")
    if named:
        return Path(named)
    home = os.environ.get("XDG_CONFIG_HOME")
    return (Path(home) if home else Path.home() / ".config") / "sharedlog" / "config.toml"


def load_config() -> UserConfig:
    """The configuration file; empty if there is none.

    Raises:
        CliFailure: It can't be read, or is not what it should be.
    """
    path = config_path()
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        return UserConfig(path)
    except (OSError, UnicodeDecodeError) as error:
        raise CliFailure(f"can't read {path}: {error}", exit_code=EXIT_USAGE) from error
    import tomllib

    try:
        return _parse(path, tomllib.loads(text))
    except (tomllib.TOMLDecodeError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise CliFailure(
            f"{path} can't be understood: {error}; `current` and [contexts.NAME] with `address` "
            "are expected",
            exit_code=EXIT_USAGE,
        ) from error


def _parse(path: Path, raw: dict[str, object]) -> UserConfig:
    config = UserConfig(path)
    current, contexts = raw.get("current"), raw.get("contexts", {})
    if current is not None and not isinstance(current, str):
        raise TypeError("`current` is no text")
    config.current = current or None
    if not isinstance(contexts, dict):
        raise TypeError("`contexts` is no table")
    for name, entry in contexts.items():
        timeout_s = entry.get("timeout_s")
        config.contexts[name] = Context(
            address=str(entry["address"]),
            timeout_s=float(timeout_s) if timeout_s is not None else None,
        )
    return config


def save_config(config: UserConfig) -> None:
    """Replace the configuration file, whole or not at all."""
    lines = [f"current = {json.dumps(config.current)}\n"] if config.current else []
    for name, context in sorted(config.contexts.items()):
        lines += [
            f"\n[contexts.{json.dumps(name)}]\n",
            f"address = {json.dumps(context.address)}\n",
        ]
        if context.timeout_s is not None:
            lines.append(f"timeout_s = {context.timeout_s!r}\n")
    config.path.parent.mkdir(parents=True, exist_ok=True)
    replacement = config.path.with_name(f"{config.path.name}.{os.getpid()}")
    replacement.write_text("".join(lines).lstrip("\n"), "utf-8")
    replacement.replace(config.path)


@click.group(
    cls=LazyGroup,
    examples="""
sharedlog context set staging --address 10.0.0.7:4100
sharedlog context use staging
sharedlog --context staging status
""",
)
def context() -> None:
    """Name clusters and switch between them."""


@context.command(name="ls", cls=ExamplesCommand, examples="sharedlog context ls")
@output_options
@pass_settings
def list_contexts(settings: Settings) -> None:
    """List the contexts; the current one is marked."""
    config = load_config()
    entries = [
        {
            "name": name,
            "current": name == config.current,
            "address": entry.address,
            "timeout_s": entry.timeout_s,
        }
        for name, entry in sorted(config.contexts.items())
    ]
    if settings.json:
        print_json({"config": str(config.path), "current": config.current, "contexts": entries})
        return
    if not entries:
        note("no contexts; make one with: sharedlog context set NAME --address HOST:PORT")
    print_table(
        [Column(""), Column("NAME"), Column("ADDRESS"), Column("TIMEOUT")],
        [
            [
                "*" if entry["current"] else "",
                str(entry["name"]),
                str(entry["address"]),
                f"{entry['timeout_s']:g} s" if entry["timeout_s"] else "",
            ]
            for entry in entries
        ],
    )


@context.command(name="use", cls=ExamplesCommand, examples="sharedlog context use staging")
@click.argument("name")
@output_options
@pass_settings
def use_context(settings: Settings, name: str) -> None:
    """Make a context the current one."""
    config = load_config()
    found = config.context(name)
    config.current = name
    save_config(config)
    _say(settings, config, name, f"commands now go to {found.address}")


@context.command(
    name="set",
    cls=ExamplesCommand,
    examples="sharedlog context set staging --address 10.0.0.7:4100 --timeout 5",
)
@click.argument("name")
@click.option("-a", "--address", metavar="HOST:PORT", help="Any node of the cluster.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Longest wait for an answer.",
)
@output_options
@pass_settings
def set_context(settings: Settings, name: str, address: str | None, timeout: float | None) -> None:
    """Make a context, or change one. The first one made becomes the current one."""
    if _NAME.fullmatch(name) is None:
        raise click.UsageError(f"{name!r} is no context name: letters, digits, _ and -")
    config = load_config()
    known = config.contexts.get(name)
    address = address or (known.address if known else None)
    if address is None:
        raise click.UsageError(f"context {name!r} is new: give its --address")
    timeout = timeout or (known.timeout_s if known else None)
    config.contexts[name] = Context(check_address(address), timeout)
    config.current = config.current or name
    save_config(config)
    _say(settings, config, name, f"context {name!r} is {address}")


@context.command(name="rm", cls=ExamplesCommand, examples="sharedlog context rm staging")
@click.argument("name")
@output_options
@pass_settings
def remove_context(settings: Settings, name: str) -> None:
    """Remove a context."""
    config = load_config()
    config.context(name)
    del config.contexts[name]
    if config.current == name:
        config.current = None
    save_config(config)
    _say(settings, config, name, f"context {name!r} is removed")


def _say(settings: Settings, config: UserConfig, name: str, text: str) -> None:
    if settings.json:
        entry = config.contexts.get(name)
        print_json(
            {
                "name": name,
                "current": config.current,
                "address": entry.address if entry else None,
                "config": str(config.path),
            }
        )
    else:
        note(text)
