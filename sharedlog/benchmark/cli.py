"""`sharedlog bench`: the commands. Nothing heavy is imported before a run."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from sharedlog.cli.app import (
    ExamplesCommand,
    Lazy,
    LazyGroup,
    Settings,
    connection_options,
    output_options,
    pass_settings,
)
from sharedlog.cli.failures import CliFailure, SilentExit
from sharedlog.codec import COMPRESSIONS, Compression

if TYPE_CHECKING:
    from sharedlog.benchmark.report import Result
    from sharedlog.benchmark.target import Target, TargetPlan

Function = TypeVar("Function", bound=Callable[..., object])
Measured = TypeVar("Measured")
Run = Callable[["Target", dict[str, Any]], Coroutine[Any, Any, "Result"]]
_RECORD_BYTES = click.IntRange(1, 8_000_000)
_SECONDS = click.FloatRange(min=0.1)
ROUNDS = click.IntRange(0, 100_000)


@dataclass(frozen=True, slots=True)
class CommonOptions:
    """What all three commands take."""

    dev: int | None
    directory: Path | None
    replicas: int
    write_quorum: int
    plot: Path | None


_GAPS = "sharedlog.benchmark.gaps_cli"
_SECTIONS = {
    "While nodes come and go": {
        "failover": Lazy(_GAPS, "failover", "How long appends stop when a node fails."),
        "rolling": Lazy(_GAPS, "rolling", "How long they stop while all nodes are restarted."),
        "zone": Lazy(_GAPS, "zone", "How long they stop when two of five nodes die at once."),
    },
}


@click.group(
    cls=LazyGroup,
    sections=_SECTIONS,
    examples="""
sharedlog bench append --dev 3                     closed loop: all that goes through
sharedlog bench append --dev 3 --rate 20000        open loop: latency at a steady rate
sharedlog bench append --dev 3 --serial            one append at a time
sharedlog bench read --dev 3 --json                catch-up read
sharedlog bench tail -a 10.0.0.7:4100 --rate 500   write-to-read latency of a cluster that runs
sharedlog bench logs --dev 3                       10,000 logs, 1,000 of them at once
""",
)
def bench() -> None:
    """Measure a cluster: a fresh one on this machine (--dev N), or one that runs (--address).

    On a cluster that runs, a log named bench-... is made, and stays.
    """


def common_options(function: Function) -> Function:
    """--dev, --dir, --replicas, --write-quorum, --plot, and the global ones."""
    for option in (
        click.option(
            "--plot",
            type=click.Path(dir_okay=False, writable=True, path_type=Path),
            help="Draw throughput and latency over time into this file, e.g. bench.png.",
        ),
        click.option(
            "--write-quorum",
            type=click.IntRange(0, 7),
            default=0,
            help="Copies that commit a batch.  [default: the majority of the replicas]",
        ),
        click.option(
            "--replicas",
            type=click.IntRange(0, 7),
            default=0,
            help="Copies of each batch.  [default: 3, or as many as --dev has nodes]",
        ),
        click.option(
            "--dir",
            "directory",
            type=click.Path(exists=True, file_okay=False, path_type=Path),
            help="Where a --dev cluster has its data while it runs: choose the disk.",
        ),
        click.option(
            "--dev",
            type=click.IntRange(1, 50),
            metavar="NODES",
            help="Start a fresh cluster of so many nodes here, and remove it afterwards.",
        ),
    ):
        function = option(function)
    return connection_options(output_options(function))


@bench.command(
    cls=ExamplesCommand,
    examples="""
sharedlog bench append --dev 3 --record-bytes 1024 --seconds 10 --json
sharedlog bench append --dev 3 --record-bytes 100 --sessions 2 --plot append.png
""",
)
@click.option("--record-bytes", type=_RECORD_BYTES, default=1024, show_default=True)
@click.option("--seconds", type=_SECONDS, default=10.0, show_default=True)
@click.option("--warm-up", type=click.FloatRange(min=0.0), default=1.0, show_default=True)
@click.option("--sessions", type=click.IntRange(1, 256), default=1, show_default=True)
@click.option("--rate", type=click.FloatRange(min=0.1), help="Records per second, of all sessions.")
@click.option("--serial", is_flag=True, help="One append at a time.")
@click.option(
    "--in-flight-mib",
    type=click.FloatRange(min=0.001),
    help="Most of a session on its way, in MiB.  [default: the client's, 16]",
)
@click.option(
    "--compression",
    type=click.Choice(COMPRESSIONS),
    default="none",
    show_default=True,
    help="With zstd or lz4 the records are lines of JSON.",
)
@common_options
@pass_settings
def append(
    settings: Settings,
    /,
    *,
    record_bytes: int,
    seconds: float,
    warm_up: float,
    sessions: int,
    rate: float | None,
    serial: bool,
    in_flight_mib: float | None,
    compression: Compression,
    **common: Any,
) -> None:
    """How fast records become durable.

    Without --rate as many as go through (closed loop). With --rate records are sent at the times
    meant for them and latency counts from those times (open loop, no coordinated omission).
    """
    from sharedlog.benchmark.append import AppendPlan, run_append

    if serial and (rate is not None or sessions > 1 or compression != "none"):
        raise click.UsageError(
            "--serial is one append at a time: no --rate, no --sessions, no --compression"
        )
    plan = AppendPlan(
        record_bytes=record_bytes,
        seconds=seconds,
        warm_up_s=warm_up,
        sessions=sessions,
        rate=rate,
        serial=serial,
        in_flight_mib=in_flight_mib,
        compression=compression,
    )
    asked = {
        "seconds": seconds,
        "sessions": sessions,
        "rate": rate,
        "in_flight_mib": in_flight_mib,
        "compression": compression,
    }
    _run(settings, CommonOptions(**common), asked, lambda at, said: run_append(at, plan, said))


@bench.command(cls=ExamplesCommand, examples="sharedlog bench read --dev 3 --mb 1000")
@click.option("--record-bytes", type=_RECORD_BYTES, default=1024, show_default=True)
@click.option(
    "--mb",
    type=click.FloatRange(min=0.001),
    default=512.0,
    show_default=True,
    help="Write and read back so many megabytes (10^6) of records.",
)
@click.option("--passes", type=click.IntRange(1), default=1, show_default=True)
@common_options
@pass_settings
def read(settings: Settings, /, record_bytes: int, mb: float, passes: int, **common: Any) -> None:
    """How fast a reader catches up: write, then read it all from offset 0."""
    from sharedlog.benchmark.read import ReadPlan, ReadWrong, run_read

    plan = ReadPlan(record_bytes=record_bytes, mb=mb, passes=passes)

    async def run(target: Target, said: dict[str, Any]) -> Result:
        try:
            return await run_read(target, plan, said)
        except* ReadWrong as errors:
            raise CliFailure(str(errors.exceptions[0])) from errors

    _run(settings, CommonOptions(**common), {"mb": mb, "passes": passes}, run)


@bench.command(
    cls=ExamplesCommand, examples="sharedlog bench tail --dev 3 --rate 5000 --seconds 20"
)
@click.option("--record-bytes", type=click.IntRange(8, 8_000_000), default=1024, show_default=True)
@click.option("--seconds", type=_SECONDS, default=10.0, show_default=True)
@click.option("--warm-up", type=click.FloatRange(min=0.0), default=1.0, show_default=True)
@click.option(
    "--rate",
    type=click.FloatRange(min=0.1),
    default=1000.0,
    show_default=True,
    help="Records per second.",
)
@common_options
@pass_settings
def tail(
    settings: Settings,
    /,
    *,
    record_bytes: int,
    seconds: float,
    warm_up: float,
    rate: float,
    **common: Any,
) -> None:
    """How soon a follower has what was written, beside the append's own latency."""
    from sharedlog.benchmark.tail import FollowerLate, TailPlan, run_tail

    plan = TailPlan(record_bytes=record_bytes, seconds=seconds, warm_up_s=warm_up, rate=rate)

    async def run(target: Target, said: dict[str, Any]) -> Result:
        try:
            return await run_tail(target, plan, said)
        except* FollowerLate as errors:
            raise CliFailure(str(errors.exceptions[0])) from errors

    _run(settings, CommonOptions(**common), {"seconds": seconds, "rate": rate}, run)


@bench.command(
    name="exactly-once",
    cls=ExamplesCommand,
    examples="""
sharedlog bench exactly-once                      some three minutes
sharedlog bench exactly-once --segment-mb 0 --json
""",
)
@click.option("--rounds", type=ROUNDS, default=10, show_default=True, help="Of each kind.")
@click.option("--seconds", type=_SECONDS, default=2.0, show_default=True, help="Of a round.")
@click.option(
    "--segment-mb",
    type=ROUNDS,
    default=1000,
    show_default=True,
    help="Size of the log whose state is taken over; 0 leaves that out.",
)
@click.option(
    "--dir",
    "directory",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Where the cluster has its data.  [default: the temporary directory]",
)
@output_options
@pass_settings
def exactly_once(settings: Settings, /, **asked: Any) -> None:
    """What exactly-once costs, and how long taking over a log's state takes.

    On a fresh cluster of this machine: appends of 1 KiB at full speed with a producer, without, and
    with a named one, in turn; then moves of a log with a fencing token and a named producer.
    """
    from sharedlog.benchmark.exactly_once import ExactlyOncePlan, run_exactly_once

    found = on_fresh_cluster(lambda say: run_exactly_once(ExactlyOncePlan(**asked), say))
    if settings.json:
        from sharedlog.cli.output import print_json

        print_json(found)
    else:
        _print_nested(found)


@bench.command(
    cls=ExamplesCommand,
    examples="""
sharedlog bench archive                           into a folder; some five minutes
sharedlog bench archive --rounds 1 --seconds 5 --json
sharedlog bench archive --archive s3://bench/run1 --endpoint http://127.0.0.1:7480
""",
)
@click.option(
    "--archive",
    metavar="URL",
    default="",
    help="Where to archive; what is written stays there.  [default: a folder, removed afterwards]",
)
@click.option("--endpoint", metavar="URL", default="", help="Of a server that speaks S3.")
@click.option(
    "--mb-per-s",
    type=click.FloatRange(min=0.1),
    default=50.0,
    show_default=True,
    help="Megabytes (10^6) of records that are appended per second.",
)
@click.option("--record-bytes", type=_RECORD_BYTES, default=1024, show_default=True)
@click.option("--seconds", type=_SECONDS, default=5.0, show_default=True, help="Of each turn.")
@click.option("--rounds", type=click.IntRange(1, 1_000), default=9, show_default=True)
@click.option(
    "--object-mib",
    type=click.IntRange(1, 1024),
    default=32,
    show_default=True,
    help="Size of an archived object.",
)
@click.option(
    "--reads",
    type=click.IntRange(1, 10_000),
    default=50,
    show_default=True,
    help="First records that are read at random offsets.",
)
@click.option("--passes", type=click.IntRange(1, 1_000), default=3, show_default=True)
@click.option("--nodes", type=click.IntRange(1, 9), default=3, show_default=True)
@click.option(
    "--dir",
    "directory",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Where the clusters have their data.  [default: the temporary directory]",
)
@output_options
@pass_settings
def archive(settings: Settings, /, **asked: Any) -> None:
    """What archiving costs appends, and how fast the archive is read.

    Two fresh clusters of this machine, one with an archive, get the same load in turn. Then what
    was archived is trimmed from the log servers, and both logs are read. Credentials for S3 are
    taken from the environment, as by the nodes.
    """
    from sharedlog.benchmark.archive import ArchiveBenchFailed, ArchivePlan, run_archive

    try:
        found = on_fresh_cluster(lambda say: run_archive(ArchivePlan(**asked), say))
    except* ArchiveBenchFailed as errors:
        raise CliFailure(str(errors.exceptions[0])) from errors
    if settings.json:
        from sharedlog.cli.output import print_json

        print_json(found)
    else:
        _print_nested(found)


def _print_nested(found: dict[str, Any], indent: str = "") -> None:
    """Figures by name, a group's indented below it."""
    for name, value in found.items():
        if isinstance(value, dict):
            click.echo(f"{indent}{name.replace('_', ' ')}")
            _print_nested(value, indent + "  ")
        else:
            click.echo(f"{indent}{name.replace('_', ' ')}: {value}")


def on_fresh_cluster(run: Callable[[Callable[[str], None]], Coroutine[Any, Any, Any]]) -> Any:
    """Run a benchmark that starts its own cluster; it is told whom to tell how far it is."""
    from sharedlog.benchmark.target import run_precisely
    from sharedlog.cli.output import note
    from sharedlog.cli.store import require_server_packages
    from sharedlog.dev_cluster import DevClusterError
    from sharedlog.dev_network import DevNetworkError
    from sharedlog.tuning import tune_process

    require_server_packages()
    tune_process()
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        return run_precisely(run(note))
    except (DevClusterError, DevNetworkError) as error:
        raise CliFailure(str(error)) from error


@bench.command(
    cls=ExamplesCommand,
    examples="""
sharedlog bench logs --dev 3                            10,000 logs, 1,000 of them at once
sharedlog bench logs --dev 3 --logs 1000 --active 100 --seconds 2 --json
""",
)
@click.option("--logs", type=click.IntRange(1, 1_000_000), default=10_000, show_default=True)
@click.option(
    "--active",
    type=click.IntRange(1, 100_000),
    default=1_000,
    show_default=True,
    help="Logs that are appended to at once, each by a session of its own.",
)
@click.option(
    "--at-once",
    type=click.IntRange(1, 1_000),
    default=64,
    show_default=True,
    help="Creations, and first appends, under way.",
)
@click.option("--record-bytes", type=_RECORD_BYTES, default=100, show_default=True)
@click.option("--seconds", type=_SECONDS, default=10.0, show_default=True, help="Of each phase.")
@common_options
@pass_settings
def logs(
    settings: Settings,
    /,
    *,
    logs: int,
    active: int,
    at_once: int,
    record_bytes: int,
    seconds: float,
    **common: Any,
) -> None:
    """What many logs cost: time to create them, memory of an idle one, throughput of many.

    Creates the logs, writes a record to each, then appends to one log and to many at once as fast
    as they go. Ends with exit code 1 if any call failed.
    """
    from sharedlog.benchmark.logs import LogsFailed, LogsPlan, logs_rows, run_logs
    from sharedlog.cli.output import Column, note, print_json, print_table

    if active > logs:
        raise click.UsageError("--active is more than --logs")
    plan = LogsPlan(
        logs=logs, active=active, at_once=at_once, record_bytes=record_bytes, seconds=seconds
    )

    async def run(target: Target) -> dict[str, Any]:
        try:
            return await run_logs(target, plan, note)
        except* LogsFailed as errors:
            raise CliFailure(str(errors.exceptions[0])) from errors

    found = _measure(_target_plan(settings, CommonOptions(**common)), run)
    if settings.json:
        print_json(found)
    else:
        columns = [Column(""), Column("", right=True), Column("")]
        print_table(columns, logs_rows(found))
    if found["errors"]:
        raise SilentExit(1)


def _run(settings: Settings, common: CommonOptions, asked: dict[str, Any], run: Run) -> None:
    """Run one workload on the cluster that was asked for, and print what it found."""
    from sharedlog.benchmark.plot import PlotUnavailable, require_plotting, write_plot

    plan = _target_plan(settings, common)
    said = asked | {
        "dev_nodes": common.dev,
        "replicas": common.replicas,
        "write_quorum": common.write_quorum,
    }
    try:
        if common.plot is not None:
            require_plotting()
        result = _measure(plan, lambda target: run(target, said))
        _print(settings, result)
        if common.plot is not None:
            write_plot(result, common.plot)
    except PlotUnavailable as error:
        raise CliFailure(str(error)) from error
    if result.errors:
        raise SilentExit(1)


def _measure(plan: TargetPlan, run: Callable[[Target], Coroutine[Any, Any, Measured]]) -> Measured:
    """Open the cluster and run on it."""
    import asyncio

    from sharedlog.benchmark.target import open_target, run_precisely
    from sharedlog.dev_cluster import DevClusterError
    from sharedlog.tuning import tune_process

    tune_process()  # as in every other command: before gRPC is imported
    # gRPC's own lines about connections that it retries mean nothing to who typed the command.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")

    async def measure() -> Measured:
        task = asyncio.current_task()
        assert task is not None
        # SIGTERM as Ctrl-C: the cluster is stopped and its data removed.
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        async with open_target(plan) as target:
            return await run(target)

    try:
        return run_precisely(measure())
    except DevClusterError as error:
        raise CliFailure(str(error)) from error
    except asyncio.CancelledError:
        raise SilentExit(128 + signal.SIGTERM) from None


def _target_plan(settings: Settings, common: CommonOptions) -> TargetPlan:
    from sharedlog.benchmark.target import TargetPlan
    from sharedlog.cli.contexts import resolve_target
    from sharedlog.cli.session import require_reachable
    from sharedlog.cli.store import require_server_packages

    quorum, replicas = common.write_quorum, common.replicas
    if common.dev is None:
        if common.directory is not None:
            raise click.UsageError("--dir is for the data of a --dev cluster")
        running = resolve_target(settings)
        settings.spoke_to = running.address
        require_reachable(running.address)
        return TargetPlan(
            address=running.address,
            timeout_s=running.timeout_s,
            replicas=replicas,
            write_quorum=quorum,
        )
    if settings.address is not None or settings.context is not None:
        raise click.UsageError("--dev starts a cluster, --address is one that runs: choose one")
    if max(replicas, quorum) > common.dev:
        raise click.UsageError(f"{max(replicas, quorum)} copies need as many nodes: --dev is less")
    require_server_packages()
    return TargetPlan(
        dev_nodes=common.dev,
        directory=common.directory,
        replicas=replicas,
        write_quorum=quorum,
    )


def _print(settings: Settings, result: Result) -> None:
    from sharedlog.benchmark.report import result_rows
    from sharedlog.cli.output import Column, print_json, print_table

    if settings.json:
        print_json(result.to_json())
    else:
        print_table([Column(""), Column("", right=True), Column("")], result_rows(result))
