"""`sharedlog store`: look into a log server's store while its node is stopped."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from sharedlog.cli.app import ExamplesCommand, LazyGroup, Settings, output_options, pass_settings
from sharedlog.cli.failures import CliFailure, SilentExit


@click.group(cls=LazyGroup, examples="sharedlog store inspect data/n1")
def store() -> None:
    """Look into a log server's store, offline."""


@store.command(
    cls=ExamplesCommand,
    examples="""
sharedlog store inspect data/n1                 a node's folder, or the store in it
sharedlog store inspect data/n1 --json | jq '.loglets[] | select(.sealed)'
""",
)
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--ranges", is_flag=True, help="List the held ranges of each loglet, too.")
@click.option(
    "--dump",
    metavar="LOGLET",
    help="Instead: the records of one loglet, a JSON object for each.",
)
@output_options
@pass_settings
def inspect(settings: Settings, *, directory: Path, ranges: bool, dump: str | None) -> None:
    """Show what a store holds: loglets, tails, seals, and whether every checksum is right.

    DIRECTORY is a node's folder or the store within it. Exit code 1 says that something is damaged.
    """
    require_server_packages()
    found = directory / "store" if (directory / "store").is_dir() else directory
    sys.stdout.flush()
    flags = [*(["--json"] if settings.json else []), *(["--ranges"] if ranges else [])]
    if dump is not None:
        flags += ["--dump", dump]
    raise SilentExit(run_module("loglet", "inspect", str(found), *flags))


def require_server_packages() -> None:
    """Check that the server's libraries are installed.

    Raises:
        CliFailure: One is missing; the message says what to install.
    """
    from importlib.util import find_spec

    missing = [name for name in ("lmdb", "msgspec", "aiohttp") if find_spec(name) is None]
    if missing:
        raise CliFailure(
            f"this needs the server's packages ({', '.join(missing)} missing); install them with: "
            "pip install 'sharedlog[server]'"
        )


def run_module(module: str, *arguments: str) -> int:
    """Run a server module of ours, pass its output on, return its exit code."""
    import subprocess

    from sharedlog.dev_cluster import module_environment

    process = subprocess.Popen(  # noqa: S603  our own module
        [sys.executable, "-P", "-m", module, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env=module_environment(),
    )
    with process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                sys.stdout.buffer.write(line)
        except BaseException:
            process.kill()
            raise
    return process.returncode
