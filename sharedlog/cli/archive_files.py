"""`sharedlog archive inspect` and `export`: archived objects as files, without a cluster."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Final, TypeVar

import click

from sharedlog.cli.app import ExamplesCommand, Settings, output_options, pass_settings
from sharedlog.cli.failures import SilentExit
from sharedlog.cli.store import require_server_packages, run_module

Function = TypeVar("Function", bound=Callable[..., object])

_OFFSET: Final = click.IntRange(min=0, max=2**63 - 1)


def _store_options(function: Function) -> Function:
    """--endpoint and --region."""
    function = click.option(
        "--region",
        default="",
        envvar="SHAREDLOG_ARCHIVE__REGION",
        metavar="REGION",
        help="The bucket's region.  [env: SHAREDLOG_ARCHIVE__REGION]",
    )(function)
    return click.option(
        "--endpoint",
        default="",
        envvar="SHAREDLOG_ARCHIVE__ENDPOINT",
        metavar="URL",
        help="Of a server that speaks S3.  [env: SHAREDLOG_ARCHIVE__ENDPOINT; default: Amazon's]",
    )(function)


@click.command(
    cls=ExamplesCommand,
    examples="""
sharedlog archive inspect s3://bucket/prefix/CLUSTER/LOG/00000000000000000000-UUID.slog
sharedlog archive inspect s3://bucket/prefix/CLUSTER/LOG/manifest -v        with all objects
sharedlog archive inspect ./copy.slog --verify
""",
)
@click.argument("url")
@click.option(
    "-v", "--verbose", is_flag=True, help="List an object's blocks, a manifest's objects."
)
@click.option("--verify", is_flag=True, help="Read all of it, and check every checksum.")
@_store_options
@output_options
@pass_settings
def inspect(
    settings: Settings, url: str, *, verbose: bool, verify: bool, endpoint: str, region: str
) -> None:
    """Show what an archived object, or the manifest of a log, says of itself.

    URL is file:///..., s3://... or a path; credentials for S3 are found as by every tool for it.
    Exit code 1 says that something is damaged.
    """
    flags = [
        *(["--json"] if settings.json else []),
        *(["--verbose"] if verbose else []),
        *(["--verify"] if verify else []),
    ]
    _run("inspect", url, *flags, f"--endpoint={endpoint}", f"--region={region}")


@click.command(
    cls=ExamplesCommand,
    examples="""
sharedlog archive export s3://bucket/prefix/CLUSTER/LOG/manifest --format parquet -o orders.parquet
sharedlog archive export file:///srv/archive/CLUSTER/LOG/manifest --start 1000 --end 2000
sharedlog archive export ./copy.slog | jq -r .value
""",
)
@click.argument("url")
@click.option(
    "--format",
    "kind",
    type=click.Choice(["ndjson", "parquet"]),
    help="As `read --format json` prints records; or Apache Parquet.  [default: ndjson]",
)
@click.option("--json", "as_json", is_flag=True, help="The same as --format ndjson.")
@click.option("--start", type=_OFFSET, default=0, metavar="OFFSET", help="From this offset on.")
@click.option("--end", type=_OFFSET, metavar="OFFSET", help="Up to this offset, exclusive.")
@click.option("-o", "--out", default="-", metavar="FILE", help="Where to; -: stdout.  [default: -]")
@_store_options
@pass_settings
def export(
    settings: Settings,
    url: str,
    *,
    kind: str | None,
    as_json: bool,
    start: int,
    end: int | None,
    out: str,
    endpoint: str,
    region: str,
) -> None:
    """Write the records of an archived object, or of all that a manifest names, to a file.

    Every checksum is checked on the way. A file appears when it is whole.
    """
    del settings
    if end is not None and end < start:
        raise click.UsageError(f"--end {end} lies below --start {start}")
    if as_json and kind == "parquet":
        raise click.UsageError("--json and --format parquet exclude each other")
    flags = [f"--format={kind or 'ndjson'}", f"--start={start}", f"--out={out}"]
    flags += [] if end is None else [f"--end={end}"]
    _run("export", url, *flags, f"--endpoint={endpoint}", f"--region={region}")


def _run(command: str, url: str, *flags: str) -> None:
    require_server_packages()
    sys.stdout.flush()
    raise SilentExit(run_module("loglet.archive", command, *flags, "--", url))
