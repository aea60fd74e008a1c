"""What all commands share: lazy groups, help with examples, global options, exit codes.

Global options are taken before and after the command's name (`sharedlog -a host:port status` and
`sharedlog status -a host:port`); the later one wins.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple, NoReturn, TypeVar

import click

from sharedlog.cli.failures import (
    EXIT_DONE,
    EXIT_INTERRUPTED,
    SilentExit,
    debugging,
    exit_code_of,
    leaf_of,
    message_of,
)

Function = TypeVar("Function", bound=Callable[..., object])

CONTEXT_SETTINGS: Final = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@dataclass(slots=True)
class Settings:
    """What the global options said. One object per run, shared by all levels of the command."""

    address: str | None = None
    context: str | None = None
    timeout_s: float | None = None
    output: Literal["table", "json"] = "table"
    spoke_to: str | None = None
    """The node that the command tried to reach, for error messages."""

    @property
    def json(self) -> bool:
        """The user wants JSON."""
        return self.output == "json"


pass_settings = click.make_pass_decorator(Settings, ensure=True)


class Lazy(NamedTuple):
    """A command that is imported when it is used."""

    module: str
    attribute: str
    help: str


class ExamplesCommand(click.Command):
    """A command whose help ends with examples, printed as they are written."""

    def __init__(self, *args: Any, examples: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = examples

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples."""
        _write_examples(self.examples, formatter)
        super().format_epilog(ctx, formatter)


class LazyGroup(click.Group):
    """A group that knows its commands' names and one-line help without importing them.

    Args:
        sections: Heading -> name -> where the command is.
        examples: Printed below the commands, as they are written.
    """

    def __init__(
        self,
        *args: Any,
        sections: Mapping[str, Mapping[str, Lazy]] | None = None,
        examples: str = "",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.sections = sections or {}
        self.examples = examples
        self._lazy = {name: lazy for part in self.sections.values() for name, lazy in part.items()}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of the help."""
        return [*self._lazy, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command."""
        if cmd_name not in self._lazy:
            return super().get_command(ctx, cmd_name)
        from importlib import import_module

        lazy = self._lazy[cmd_name]
        found = getattr(import_module(lazy.module), lazy.attribute)
        assert isinstance(found, click.Command)
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, but an unknown name is answered with what was probably meant."""
        name = args[0]
        if not name.startswith("-") and self.get_command(ctx, name) is None:
            near = difflib.get_close_matches(name, self.list_commands(ctx), n=1)
            meant = f" (did you mean {near[0]!r}?)" if near else ""
            raise click.UsageError(f"there is no command {name!r}{meant}", ctx=ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the sections without importing a command, after what is imported anyway."""
        if self.commands:
            with formatter.section("Commands"):
                rows = ((name, self.commands[name]) for name in super().list_commands(ctx))
                formatter.write_dl([(name, it.get_short_help_str(90)) for name, it in rows])
        for heading, commands in self.sections.items():
            with formatter.section(heading):
                formatter.write_dl([(name, lazy.help) for name, lazy in commands.items()])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples."""
        _write_examples(self.examples, formatter)
        super().format_epilog(ctx, formatter)


class RootGroup(LazyGroup):
    """The top: turns every way to end into an exit code and at most one line on stderr."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,  # noqa: ARG002  click's signature
        **extra: Any,
    ) -> NoReturn:
        """Run and end the process with the exit code; `standalone_mode` makes no difference."""
        settings = Settings()
        extra.setdefault("obj", settings)
        try:
            code = super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
            sys.stdout.flush()
        except BaseException as error:  # noqa: BLE001  the root: everything ends here
            sys.exit(_end(error, settings))
        sys.exit(code if isinstance(code, int) else EXIT_DONE)

    def invoke(self, ctx: click.Context) -> Any:
        """As click does, but Ctrl-C and a closed pipe stay what they are."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise SilentExit(EXIT_INTERRUPTED) from None
        except BrokenPipeError:
            # Who read the output has had enough, as `head` does: nothing is wrong.
            _close_stdout()
            raise SilentExit(EXIT_DONE) from None


def _end(raised: BaseException, settings: Settings) -> int:
    """The exit code of a failed run, after saying what there is to say."""
    error = leaf_of(raised)
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else EXIT_DONE
    if isinstance(error, click.Abort | KeyboardInterrupt):
        return EXIT_INTERRUPTED
    if isinstance(error, SilentExit):
        return error.exit_code
    no_arguments = getattr(click.exceptions, "NoArgsIsHelpError", ())
    if isinstance(error, no_arguments):
        assert isinstance(error, click.ClickException)
        error.show()
        return error.exit_code
    if debugging():
        import traceback

        traceback.print_exception(raised)
    click.echo(f"error: {message_of(error, address=settings.spoke_to)}", err=True)
    return exit_code_of(error)


def _close_stdout() -> None:
    """Let the interpreter's flush at exit find nothing to complain of."""
    try:
        descriptor = sys.stdout.fileno()
    except (OSError, ValueError):
        return
    os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)


def _write_examples(examples: str, formatter: click.HelpFormatter) -> None:
    if not examples:
        return
    formatter.write_paragraph()
    formatter.write_heading("Examples")
    for line in examples.strip("\n").splitlines():
        formatter.write(f"  {line}\n" if line else "\n")


def _store(field: str) -> Callable[[click.Context, click.Parameter, object], None]:
    def callback(ctx: click.Context, _: click.Parameter, value: object) -> None:
        settings = ctx.ensure_object(Settings)
        if value is not None:
            setattr(settings, field, value)

    return callback


def _store_address(ctx: click.Context, _: click.Parameter, value: str | None) -> None:
    settings = ctx.ensure_object(Settings)
    if value is not None:
        settings.address = check_address(value)


def _store_json(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    settings = ctx.ensure_object(Settings)
    if value:
        settings.output = "json"


def check_address(text: str) -> str:
    """`text` if it reads host:port, or several of that with commas between.

    Raises:
        click.UsageError: It does not.
    """
    for part in text.split(","):
        host, _, port = part.strip().rpartition(":")
        if not host or not port.isdecimal() or not 1 <= int(port) <= 65_535:
            raise click.UsageError(
                f"{part!r} is no address: host:port is needed, e.g. 127.0.0.1:4100"
            )
    return text


def output_options(function: Function) -> Function:
    """-o/--output and --json."""
    function = click.option(
        "--json",
        is_flag=True,
        expose_value=False,
        callback=_store_json,
        help="The same as -o json.",
    )(function)
    return click.option(
        "-o",
        "--output",
        type=click.Choice(["table", "json"]),
        expose_value=False,
        callback=_store("output"),
        help="How to print.  [default: table]",
    )(function)


def connection_options(function: Function) -> Function:
    """--address, --context and --timeout."""
    function = click.option(
        "--timeout",
        type=click.FloatRange(min=0, min_open=True),
        metavar="SECONDS",
        expose_value=False,
        callback=_store("timeout_s"),
        help="Longest wait for an answer.  [default: 10; 30 for appends and reads]",
    )(function)
    function = click.option(
        "--context",
        metavar="NAME",
        expose_value=False,
        callback=_store("context"),
        help="Cluster by its name; see: sharedlog context.  [env: SHAREDLOG_CONTEXT]",
    )(function)
    return click.option(
        "-a",
        "--address",
        metavar="HOST:PORT",
        expose_value=False,
        callback=_store_address,
        help="Any node of the cluster.  [env: SHAREDLOG_ADDRESS; default: 127.0.0.1:4100]",
    )(function)


def cluster_options(function: Function) -> Function:
    """All global options."""
    return connection_options(output_options(function))
