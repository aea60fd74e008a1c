"""`sharedlog metadata`: the metadata store itself, for emergencies and moves; no node is needed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click

from sharedlog.cli.app import (
    ExamplesCommand,
    Lazy,
    LazyGroup,
    Settings,
    output_options,
    pass_settings,
)
from sharedlog.cli.failures import EXIT_INTERRUPTED, SilentExit
from sharedlog.cli.store import require_server_packages

Function = TypeVar("Function", bound=Callable[..., object])

_VARIABLES = "SHAREDLOG_METADATA"
_HERE = "sharedlog.cli.metadata"
_SECTIONS = {
    "Looking": {
        "dump": Lazy(_HERE, "dump", "Print all keys and values."),
        "get": Lazy(_HERE, "get", "Print one value."),
    },
    "Changing": {
        "put": Lazy(_HERE, "put", "Set one value by hand: an emergency tool."),
        "migrate": Lazy(_HERE, "migrate", "Move a cluster to another metadata store."),
    },
}


@click.group(
    cls=LazyGroup,
    sections=_SECTIONS,
    examples="""
sharedlog metadata dump --config node.toml -o backup.ndjson
sharedlog metadata get logs/orders --metadata s3://bucket/prefix
sharedlog metadata migrate --from embedded://127.0.0.1:4099 --to s3://bucket/prefix --dry-run
""",
)
def metadata() -> None:
    """The metadata store itself, without a node: look into it, mend it, move a cluster.

    URL is embedded://HOST:PORT, etcd://HOST:PORT,.../PREFIX or s3://BUCKET/PREFIX. What a store
    needs besides is read from a node's configuration (--config) and from variables such as
    SHAREDLOG_METADATA_S3__ENDPOINT.
    """


def config_option(function: Function) -> Function:
    """--config."""
    return click.option(
        "--config",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        metavar="FILE",
        help="A node's configuration: sections metadata_etcd and metadata_s3, and the URL.",
    )(function)


def _store_options(function: Function) -> Function:
    """--metadata and --config."""
    function = click.option(
        "--metadata",
        "url",
        metavar="URL",
        default="",
        help="Which store.  [env: SHAREDLOG_METADATA; default: as --config says]",
    )(function)
    return config_option(function)


@click.command(
    cls=ExamplesCommand,
    examples="""
sharedlog metadata dump --metadata embedded://127.0.0.1:4099
sharedlog metadata dump --config node.toml --prefix logs/ | jq -r .key
sharedlog metadata dump --config node.toml -o backup.ndjson
""",
)
@click.option("--prefix", default="", metavar="PREFIX", help="Only keys that begin like that.")
@click.option("-o", "--out", default="-", metavar="FILE", help="Where to; -: stdout.  [default: -]")
@click.option("--json", "_json", is_flag=True, help="As it is anyway.")
@_store_options
def dump(url: str, config: Path | None, *, prefix: str, out: str, _json: bool) -> None:
    """Print all keys with versions and values, a JSON object for each.

    A file appears when it is whole. Each value is as it was at some moment while the command ran.
    """
    _end(["dump", f"--prefix={prefix}", f"--out={out}", *_which(url, config)])


@click.command(
    cls=ExamplesCommand,
    examples="""
sharedlog metadata get cluster --config node.toml
sharedlog metadata get logs/orders --config node.toml --json | jq .version
""",
)
@click.argument("key")
@_store_options
@output_options
@pass_settings
def get(settings: Settings, key: str, url: str, config: Path | None) -> None:
    """Print the value of KEY; its version goes to stderr.

    A value is text: its checksum, and JSON. Exit code 3 says that there is no such key.
    """
    flags = ["--json"] if settings.json else []
    _end(["get", *flags, *_which(url, config), "--", key])


@click.command(
    cls=ExamplesCommand,
    examples="""
sharedlog metadata get nodes/n1 --config node.toml > n1.json         version 41
sharedlog metadata put nodes/n1 --expect-version 41 --file n1.json --config node.toml
""",
)
@click.argument("key")
@click.option(
    "--expect-version",
    type=click.IntRange(min=0),
    required=True,
    metavar="VERSION",
    help="The version that the key has; 0: there is no such key.",
)
@click.option(
    "--file",
    "source",
    default="-",
    metavar="FILE",
    help="The value, or its JSON without the checksum; -: stdin.  [default: -]",
)
@click.option("--unchecked", is_flag=True, help="Whatever the value is, and the store.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@_store_options
@output_options
@pass_settings
def put(
    settings: Settings,
    key: str,
    url: str,
    config: Path | None,
    *,
    expect_version: int,
    source: str,
    unchecked: bool,
    yes: bool,
) -> None:
    """Set the value of KEY, which no running node expects: for emergencies.

    Shows what would change, and asks. A value that a node could not use is refused, and one that
    comes too late as well: the key must have the version that was looked at. So is any value in a
    store that the cluster was moved away from.
    """
    if source == "-" and not yes:
        raise click.UsageError("with the value on stdin nobody can be asked: --yes, or --file")
    value = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
    chosen = {"--unchecked": unchecked, "--json": settings.json}
    flags = [flag for flag, given in chosen.items() if given]
    flags.append(f"--expect-version={expect_version}")
    words = ["put", *flags, *_which(url, config), "--", key]
    if not yes:
        code = run_tool([words[0], "--dry-run", *words[1:]], value)
        if code:
            raise SilentExit(code)
        if not click.confirm(f"set {key}?", err=True):
            raise SilentExit(EXIT_INTERRUPTED)
    _end(words, value)


@click.command(
    cls=ExamplesCommand,
    examples="""
sharedlog metadata migrate --from embedded://127.0.0.1:4099 --to s3://bucket/prefix --dry-run
sharedlog metadata migrate --from embedded://127.0.0.1:4099 --to s3://bucket/prefix
sharedlog metadata migrate --from embedded://127.0.0.1:4099 --to s3://bucket/prefix --undo
""",
)
@click.option("--from", "source", required=True, metavar="URL", help="Where the metadata is.")
@click.option("--to", "target", required=True, metavar="URL", help="An empty store.")
@click.option(
    "--dry-run", is_flag=True, help="Say what would be moved, and what stands against it."
)
@click.option("--force", is_flag=True, help="Although nodes seem to run.")
@click.option("--undo", is_flag=True, help="Go back, as long as it is not complete.")
@config_option
@output_options
@pass_settings
def migrate(
    settings: Settings,
    source: str,
    target: str,
    config: Path | None,
    *,
    dry_run: bool,
    force: bool,
    undo: bool,
) -> None:
    """Move a cluster's metadata to another store, all nodes being stopped.

    Each key is closed in the one store before it appears in the other, so there is no moment at
    which nodes could start on both; one that was forgotten can change nothing any more. If it is
    interrupted, run it again. Take a dump first.
    """
    if undo and (dry_run or force):
        raise click.UsageError("--undo excludes --dry-run and --force")
    chosen = {"--dry-run": dry_run, "--force": force, "--undo": undo, "--json": settings.json}
    flags = [flag for flag, given in chosen.items() if given]
    where = [f"--from={source}", f"--to={target}"]
    _end(["migrate", *where, *flags, *_which("", config)])


def _which(url: str, config: Path | None) -> list[str]:
    return [
        *([f"--metadata={url}"] if url else []),
        *([f"--config={config}"] if config is not None else []),
    ]


def _end(words: list[str], value: bytes | None = None) -> None:
    raise SilentExit(run_tool(words, value))


def run_tool(words: list[str], value: bytes | None = None, *, module: str = "metadata") -> int:
    """Run the server package's tool, its input and output ours; returns its exit code.

    Variables that say how a metadata store is reached come through to it.
    """
    from sharedlog.dev_cluster import module_environment

    require_server_packages()
    settings = {name: told for name, told in os.environ.items() if name.startswith(_VARIABLES)}
    sys.stdout.flush()
    done = subprocess.run(  # noqa: S603  our own module
        [sys.executable, "-P", "-m", module, *words],
        input=value or b"",
        env=module_environment() | settings,
        check=False,
    )
    return done.returncode
