"""`sharedlog bench failover`, `rolling`, `zone`: how long appends stop while nodes come and go."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from sharedlog.benchmark.cli import ROUNDS, on_fresh_cluster
from sharedlog.cli.app import ExamplesCommand, Settings, output_options, pass_settings
from sharedlog.cli.failures import SilentExit

Function = TypeVar("Function", bound=Callable[..., object])


def _load_options(function: Function) -> Function:
    """--logs, --rate and --dir."""
    options = (
        click.option(
            "--logs",
            type=click.IntRange(1, 100),
            default=3,
            show_default=True,
            help="Each with an appender and a follower.",
        ),
        click.option(
            "--rate",
            type=click.FloatRange(min=0),
            default=200.0,
            show_default=True,
            help="Records a second and log; 0: as many as go.",
        ),
        click.option(
            "--dir",
            "directory",
            type=click.Path(exists=True, file_okay=False, path_type=Path),
            help="Where the cluster has its data.  [default: the temporary directory]",
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function


metadata_option = click.option(
    "--metadata",
    metavar="URL",
    default="",
    help="Of a metadata store that runs elsewhere, with a prefix that is new; variables named "
    "SHAREDLOG_METADATA_... reach the nodes. For partitions it must listen on all addresses: "
    "127.0.0.1 is this machine as the nodes see it.  [default: a process of the cluster]",
)


@click.command(
    cls=ExamplesCommand,
    examples="""
sharedlog bench failover                           all of it: some ten minutes
sharedlog bench failover --planned 10 --kill 5 --pause 0 --partition 0 --reconfigurations 0
sharedlog bench failover --metadata etcd://127.0.0.1:2379/bench
sharedlog bench failover --json > failover.json
""",
)
@click.option("--planned", type=ROUNDS, default=50, show_default=True, help="Hand-overs.")
@click.option("--shutdown", type=ROUNDS, default=10, show_default=True, help="SIGTERMs.")
@click.option("--kill", type=ROUNDS, default=30, show_default=True, help="kill -9.")
@click.option("--pause", type=ROUNDS, default=20, show_default=True, help="SIGSTOPs.")
@click.option("--partition", type=ROUNDS, default=20, show_default=True, help="As root only.")
@click.option(
    "--reconfigurations",
    type=ROUNDS,
    default=1000,
    show_default=True,
    help="Of one log, whose throughput is measured before and after.",
)
@click.option("--nodes", type=click.IntRange(3, 9), default=3, show_default=True)
@click.option(
    "--dir",
    "directory",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Where the cluster has its data.  [default: the temporary directory]",
)
@metadata_option
@output_options
@pass_settings
def failover(settings: Settings, /, **asked: Any) -> None:
    """How long appends stop when a log's sequencer moves, dies, sleeps or is cut off.

    On a fresh cluster of this machine. The gap of a round is the longest time between two
    acknowledgements that a client saw who appends without pause. Ends with exit code 1 if the
    client saw an error, or if a record was lost, came twice or out of order.
    """
    from sharedlog.benchmark.failover import FailoverPlan, failover_rows, run_failover
    from sharedlog.cli.output import Column, print_json, print_table

    found = on_fresh_cluster(lambda say: run_failover(FailoverPlan(**asked), say))
    if settings.json:
        print_json(found)
    else:
        names = ("N", "GAP P50 MS", "GAP MAX MS")
        columns = [Column(""), *(Column(name, right=True) for name in names)]
        print_table(columns, failover_rows(found))
    if any(found[name] for name in ("client_errors", "lost", "duplicated", "reordered")):
        raise SilentExit(1)


@click.command(
    cls=ExamplesCommand,
    examples="""
sharedlog bench rolling                           three nodes, once; some fifteen seconds
sharedlog bench rolling --rounds 10 --json
sharedlog bench rolling --rate 0                  appenders that never pause
""",
)
@click.option("--nodes", type=click.IntRange(3, 9), default=3, show_default=True)
@click.option(
    "--rounds",
    type=click.IntRange(1, 1_000),
    default=1,
    show_default=True,
    help="Of restarting every node.",
)
@_load_options
@output_options
@pass_settings
def rolling(settings: Settings, /, **asked: Any) -> None:
    """How long appends stop while every node is restarted, one after the other.

    On a fresh cluster of this machine: SIGTERM, a new start, a wait until `status` is clean, the
    next node. Ends with exit code 1 if a client saw an error, if a record was lost, came twice or
    out of order, or if a follower was given anything else than is in the log.
    """
    from sharedlog.benchmark.rolling import RollingPlan, run_rolling
    from sharedlog.cli.output import print_json

    found = on_fresh_cluster(lambda say: run_rolling(RollingPlan(**asked), say))
    if settings.json:
        print_json(found)
    else:
        _print_rolling(found)
    _judge(found)


def _judge(found: dict[str, Any]) -> None:
    """Exit code 1 if anything is not as it must be."""
    bad = ("client_errors", "lost", "duplicated", "reordered", "logs_followed_otherwise")
    if any(found[name] for name in bad):
        raise SilentExit(1)


def _print_rolling(found: dict[str, Any]) -> None:
    from sharedlog.cli.output import Column, print_table

    keys = ("stop_s", "ready_s", "settled_s", "stop_gap_ms", "start_gap_ms", "follow_gap_ms")
    print_table(
        [
            Column("NODE"),
            *(Column(key.replace("_", " ").upper(), right=True) for key in keys),
        ],
        [[it["node_id"], *(str(it[key]) for key in keys)] for it in found["restarts"]],
    )
    _print_outcome(found)


def _print_outcome(found: dict[str, Any]) -> None:
    click.echo()
    names = ("records", "client_errors", "lost", "duplicated", "reordered")
    for name in (*names, "logs_followed_otherwise"):
        click.echo(f"{name.replace('_', ' ') + ':':26}{found[name]:,}")
    click.echo(f"{'longest append gap:':26}{found['gap_ms']['max']} ms")


@click.command(
    cls=ExamplesCommand,
    examples="""
sharedlog bench zone                              five rounds; some minute and a half
sharedlog bench zone --rounds 20 --json
""",
)
@click.option("--rounds", type=click.IntRange(1, 1_000), default=5, show_default=True)
@_load_options
@metadata_option
@output_options
@pass_settings
def zone(settings: Settings, /, **asked: Any) -> None:
    """How long appends stop when a zone goes away: two of five nodes at once, by kill -9.

    On a fresh cluster of this machine with five nodes in three zones. Ends with exit code 1 if a
    client saw an error, if a record was lost, came twice or out of order, or if a follower was
    given anything else than is in the log.
    """
    from sharedlog.benchmark.zone import ZonePlan, run_zone
    from sharedlog.cli.output import print_json

    found = on_fresh_cluster(lambda say: run_zone(ZonePlan(**asked), say))
    if settings.json:
        print_json(found)
    else:
        _print_zone(found)
    _judge(found)


def _print_zone(found: dict[str, Any]) -> None:
    from sharedlog.cli.output import Column, print_table

    keys = ("gap_ms", "follow_gap_ms", "return_gap_ms", "settled_s")
    print_table(
        [
            Column("ZONE"),
            *(Column(key.replace("_", " ").upper(), right=True) for key in keys),
        ],
        [[it["zone"], *(str(it[key]) for key in keys)] for it in found["rounds"]],
    )
    _print_outcome(found)
