"""`python -m bench.peers`: see `bench/README.md`."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path

import click
from rich.console import Console

from bench.peers.measure import OURS, PEERS, PeerResult, Plan, measure
from bench.peers.processes import PeerFailed
from sharedlog.benchmark.report import describe_machine
from sharedlog.cli.output import Column, format_plain
from sharedlog.dev_cluster import DevClusterError
from sharedlog.errors import SharedLogError


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One object per system, each on its line.")
@click.option(
    "--only",
    metavar="NAMES",
    help=f"Compare with these only, separated by commas: {', '.join(sorted(set(PEERS) - {OURS}))}. "
    f"{OURS} itself is always measured.",
)
@click.option("--seconds", type=click.FloatRange(min=0.1), default=5.0, show_default=True)
@click.option("--rounds", type=click.IntRange(min=1), default=2, show_default=True)
@click.option("--record-bytes", type=click.IntRange(1, 1_000_000), default=1024, show_default=True)
@click.option("--in-flight", type=click.IntRange(min=1), help="Instead of each system's own best.")
@click.option(
    "--dir",
    "directory",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Where the data lies while a system runs: choose the disk.",
)
def main(
    *,
    as_json: bool,
    only: str | None,
    seconds: float,
    rounds: int,
    record_bytes: int,
    in_flight: int | None,
    directory: Path | None,
) -> None:
    """Run the same work against sharedlog and what a user would pick instead."""
    console = Console(stderr=True, highlight=False)
    plan = Plan(
        systems=_choose(only, console),
        seconds=seconds,
        rounds=rounds,
        record_bytes=record_bytes,
        in_flight=in_flight,
        directory=directory,
    )
    try:
        results = asyncio.run(_measure(plan, console))
    except (PeerFailed, DevClusterError, SharedLogError) as error:
        raise click.ClickException(str(error)) from error
    except (KeyboardInterrupt, asyncio.CancelledError):
        sys.exit(130)
    if as_json:
        for result in results:
            click.echo(json.dumps(result.to_json()))
    else:
        _print_table(results)


async def _measure(plan: Plan, console: Console) -> list[PeerResult]:
    """Measure, so that SIGTERM stops the servers as Ctrl-C does."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await measure(plan, lambda line: console.print(line, style="dim", markup=False))


def _choose(only: str | None, console: Console) -> list[str]:
    """The systems to measure; says which are left out and why."""
    wanted = [OURS, *(name for name in PEERS if name != OURS)]
    if only is not None:
        asked = {name.strip() for name in only.split(",") if name.strip()}
        short = {name.split("-")[0]: name for name in PEERS}
        asked = {short.get(name, name) for name in asked}
        if unknown := asked - set(PEERS):
            raise click.BadParameter(
                f"no such system: {', '.join(sorted(unknown))}; there are {', '.join(PEERS)}"
            )
        wanted = [name for name in wanted if name in asked or name == OURS]
    found = []
    for name in wanted:
        reason = PEERS[name]().missing()
        if reason is None:
            found.append(name)
        else:
            console.print(f"{name} is skipped: {reason}", markup=False, style="yellow")
    return found


def _print_table(results: list[PeerResult]) -> None:
    machine = describe_machine()
    click.echo(f"{machine['cpus']} cores, {machine['system']}, Python {machine['python']}")
    figures = ("serial p50 ms", "p99 ms", "pipelined rec/s", "MB/s", "ratio p50", "ratio rec/s")
    columns = [Column("system"), Column("version"), *(Column(name, right=True) for name in figures)]
    rows = []
    for result in results:
        ratio = result.sharedlog_ratio
        rows.append(
            (
                result.system,
                result.version,
                f"{result.serial_p50_ms:.3f}",
                f"{result.serial_p99_ms:.3f}",
                f"{result.pipelined_records_per_s:,.0f}",
                f"{result.pipelined_mb_per_s:,.1f}",
                f"{ratio['serial_p50']:.2f}" if "serial_p50" in ratio else "",
                f"{ratio['pipelined']:.2f}" if "pipelined" in ratio else "",
            )
        )
    click.echo(format_plain(columns, rows))
    click.echo("ratio: sharedlog's figure over the system's")
    for result in results:
        click.echo(f"{result.system}: acknowledged = {result.ack}")
        if result.batched_records_per_s is not None:
            packed = f"{result.batched_records_per_s:,.0f} records/s"
            click.echo(f"{result.system}: {packed} in transactions packed by hand")


if __name__ == "__main__":
    main()
