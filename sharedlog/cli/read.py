"""`sharedlog read` and `sharedlog tail`: a log's records to stdout."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import click

from sharedlog import errors
from sharedlog.cli.app import (
    ExamplesCommand,
    Function,
    Settings,
    cluster_options,
    pass_settings,
)
from sharedlog.cli.moments import MomentType, StartType
from sharedlog.cli.output import note
from sharedlog.cli.records import SHOWN, make_formatter, named
from sharedlog.cli.session import with_cluster
from sharedlog.limits import READ_LAST_MAX

if TYPE_CHECKING:
    from sharedlog import Cluster, Log, ReadProgress, Record, Start

_FORMATS: Final = ("text", "json", "hex", "raw")


@dataclass(frozen=True, slots=True)
class _Look:
    """How records are printed."""

    kind: str
    show: Sequence[str]


def _look_options(function: Function) -> Function:
    for decorate in (
        click.option(
            "-v",
            "--verbose",
            is_flag=True,
            help="Show offset, timestamp, key and headers before each value.",
        ),
        click.option(
            "--show",
            metavar="WHAT,...",
            default="",
            help="Of offset, timestamp, key, headers: what goes before each value, with tabs.",
        ),
        click.option(
            "--format",
            "kind",
            type=click.Choice(_FORMATS),
            help="text: value and newline. json: an object for each record. hex: value in hex and "
            "newline. raw: values and nothing else.  [default: text]",
        ),
    ):
        function = decorate(function)
    return function


def _look(settings: Settings, kind: str | None, show: str, verbose: bool) -> _Look:
    if settings.json and kind not in (None, "json"):
        raise click.UsageError(f"--json and --format {kind} exclude each other")
    chosen = kind or ("json" if settings.json else "text")
    wanted = [part.strip() for part in show.split(",") if part.strip()]
    for name in wanted:
        if name not in SHOWN:
            raise click.UsageError(f"--show {name!r}: choose from {', '.join(SHOWN)}")
    if verbose:
        wanted = list(SHOWN)
    if wanted and chosen in ("json", "raw"):
        raise click.UsageError(f"--show and -v are for text and hex, not for {chosen}")
    return _Look(chosen, wanted)


_key_option = click.option("--key", metavar="TEXT", help="Only records with this key.")


def _to_bytes(key: str | None) -> bytes | None:
    return None if key is None else key.encode("utf-8", "surrogateescape")


@click.command(
    cls=ExamplesCommand,
    examples="""
sharedlog read orders                           all of it, as it is now
sharedlog read orders --from 100 --limit 10 -v
sharedlog read orders --from -1h --until -30m
sharedlog read orders --from 2026-11-27T10:00:00Z --limit-bytes 1000000
sharedlog read orders --from 100 --to 200 --format json | jq -r .value
sharedlog read orders --follow --show offset,key
sharedlog read orders --key customer-7
sharedlog read orders payments --from -1h       both, by their timestamps
""",
)
@click.argument("logs", nargs=-1, required=True, metavar="LOG...")
@click.option(
    "--from",
    "start",
    type=StartType(),
    metavar="WHERE",
    help="First offset; or from when on: a time with its zone, an age like -1h30m.  [default: 0]",
)
@click.option(
    "--last",
    type=click.IntRange(min=0),
    metavar="N",
    help="Start so many offsets before the tail.",
)
@click.option(
    "--to",
    "end",
    type=click.IntRange(min=0),
    metavar="OFFSET",
    help="Ends before this offset.  [default: the tail when the read starts; none with --follow]",
)
@click.option(
    "--until",
    type=MomentType(),
    metavar="WHEN",
    help="Ends before the first record of this time, or age, or later.",
)
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="At most so many records.")
@_key_option
@click.option(
    "--limit-bytes",
    type=click.IntRange(min=1),
    metavar="N",
    help="At most so many bytes of values, keys and headers, or one record.",
)
@click.option("-f", "--follow", is_flag=True, help="Go on with what is appended, until Ctrl-C.")
@_look_options
@cluster_options
@pass_settings
def read(
    settings: Settings,
    *,
    logs: tuple[str, ...],
    start: Start | None,
    last: int | None,
    end: int | None,
    until: int | None,
    limit: int | None,
    limit_bytes: int | None,
    key: str | None,
    follow: bool,
    kind: str | None,
    show: str,
    verbose: bool,
) -> None:
    """Read LOG from an offset or a moment on, to its tail unless told otherwise.

    Several logs are read as one, by the timestamps of their records.
    """
    if last is not None and start is not None:
        raise click.UsageError("--from and --last exclude each other")
    if isinstance(start, int) and end is not None and end < start:
        raise click.UsageError(f"--to {end} lies below --from {start}")
    if len(logs) > 1 and (end, until, limit_bytes, key) != (None, None, None, None):
        raise click.UsageError("--to, --until, --limit-bytes and --key are for one log")
    look = _look(settings, kind, show, verbose)

    async def work(cluster: Cluster) -> None:
        from sharedlog import EARLIEST, from_tail

        where = from_tail(last) if last is not None else EARLIEST if start is None else start
        if len(logs) > 1:
            starts = dict.fromkeys(logs, where)
            await _print_merged(cluster, look, starts, follow=follow, limit=limit)
            return
        found = cluster.log(logs[0])
        bounds = _Bounds(
            end=end, until=until, limit=limit, limit_bytes=limit_bytes, key=_to_bytes(key)
        )
        position = await _print(found, look, where, bounds, follow=follow)
        if end is not None and position is not None and position < end:
            note(f"note: --to {end} lies beyond the tail {position}; --follow waits for more")

    with_cluster(settings, work)


@click.command(
    cls=ExamplesCommand,
    examples="""
sharedlog tail orders                           the last ten records
sharedlog tail orders -n 100 -v
sharedlog tail orders -f                        and what comes, until Ctrl-C
sharedlog tail orders -n 0 -f --json            only what comes
sharedlog tail orders -n 1000 --key customer-7  of the last thousand records those with this key
sharedlog tail -f orders payments               of both, by their timestamps
""",
)
@click.argument("logs", nargs=-1, required=True, metavar="LOG...")
@click.option(
    "-n",
    "count",
    type=click.IntRange(min=0, max=READ_LAST_MAX),
    default=10,
    show_default=True,
    metavar="N",
    help="So many of the last records.",
)
@_key_option
@click.option("-f", "--follow", is_flag=True, help="Go on with what is appended, until Ctrl-C.")
@_look_options
@cluster_options
@pass_settings
def tail(
    settings: Settings,
    *,
    logs: tuple[str, ...],
    count: int,
    key: str | None,
    follow: bool,
    kind: str | None,
    show: str,
    verbose: bool,
) -> None:
    """Show the last records of LOG; of each, if there are several."""
    if len(logs) > 1 and key is not None:
        raise click.UsageError("--key is for one log")
    look = _look(settings, kind, show, verbose)

    async def work(cluster: Cluster) -> None:
        if len(logs) == 1:
            found_log = cluster.log(logs[0])
            await _print_tail(found_log, look, count, _to_bytes(key), follow=follow)
            return
        starts: dict[str, Start] = {}
        found: list[tuple[int, str, Record]] = []
        for name in logs:
            records, starts[name] = await _last(cluster.log(name), count)
            found += [(record.timestamp_ms, name, record) for record in records]
        out = _Out(look, at_once=follow)
        for _, name, record in sorted(found, key=lambda it: it[:2]):
            out.write_named(name, record)
        out.flush()
        if follow:
            await _print_merged(cluster, look, starts, follow=True, limit=None)

    with_cluster(settings, work)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bounds:
    """Where a read ends."""

    end: int | None = None
    until: int | None = None
    limit: int | None = None
    limit_bytes: int | None = None
    key: bytes | None = None


class _Out:
    """Records to stdout."""

    def __init__(self, look: _Look, *, at_once: bool) -> None:
        self._to_bytes = make_formatter(look.kind, look.show)
        self._kind = look.kind
        self._stdout = sys.stdout.buffer
        self._at_once = at_once or sys.stdout.isatty()

    def write(self, records: Sequence[Record]) -> None:
        """The records of one log."""
        self._stdout.write(self._to_bytes(records))
        if self._at_once:
            self._stdout.flush()

    def write_named(self, name: str, record: Record) -> None:
        """A record of one of several logs."""
        self._stdout.write(named(name, self._to_bytes([record]), self._kind))
        if self._at_once:
            self._stdout.flush()

    def flush(self) -> None:
        """Let go of what is kept back."""
        self._stdout.flush()


async def _last(log: Log, count: int) -> tuple[list[Record], int]:
    """The last records, and where to go on after them."""
    tail_offset = await log.tail()
    records = await log.read_last(count)
    return records, records[-1].offset + 1 if records else tail_offset


async def _print_tail(
    log: Log, look: _Look, count: int, key: bytes | None, *, follow: bool
) -> None:
    try:
        if key is not None:
            tail_offset = await log.tail()
            bounds = _Bounds(end=None if follow else tail_offset, key=key)
            await _print(log, look, max(0, tail_offset - count), bounds, follow=follow)
            return
        records, position = await _last(log, count)
    except (errors.LogUnavailable, errors.Unreachable, errors.DeadlineExceeded):
        # As much as a log server knows; the read that follows says that there may be more.
        known = await log.known_tail()
        bounds = _Bounds(end=None if follow else known, key=key)
        await _print(log, look, max(0, known - count), bounds, follow=follow)
        return
    out = _Out(look, at_once=follow)
    if records:
        out.write(records)
    out.flush()
    if follow:
        await _print(log, look, position, _Bounds(), follow=True)


async def _print(
    log: Log, look: _Look, start: Start, bounds: _Bounds, *, follow: bool
) -> int | None:
    """Print records as they come, a batch at a time.

    Returns the offset up to which the log was read; None if something other than the log's tail or
    `bounds.end` has ended it, or nothing was there.
    """
    from contextlib import aclosing

    out = _Out(look, at_once=follow)
    count = 0
    position = start if isinstance(start, int) else None

    def on_progress(progress: ReadProgress) -> None:
        nonlocal position
        position = progress.position

    batches = log.read_batches(
        start,
        bounds.end,
        follow=follow,
        limit=bounds.limit,
        limit_bytes=bounds.limit_bytes,
        key=bounds.key,
        until=bounds.until,
        on_stale=lambda text: note(f"warning: {text}"),
        on_progress=on_progress,
    )
    async with aclosing(batches):
        async for records in batches:
            out.write(records)
            count += len(records)
    out.flush()
    limited = bounds.until is not None or bounds.limit_bytes is not None or count == bounds.limit
    return None if limited else position


async def _print_merged(
    cluster: Cluster,
    look: _Look,
    starts: Mapping[str, Start],
    *,
    follow: bool,
    limit: int | None,
) -> None:
    """Print records of several logs as they come."""
    from contextlib import aclosing

    out = _Out(look, at_once=follow)
    left = limit
    merged = cluster.read_many(starts, start=starts, follow=follow)
    async with aclosing(merged):
        async for name, record in merged:
            out.write_named(name, record)
            if left is not None:
                left -= 1
                if not left:
                    break
    out.flush()
