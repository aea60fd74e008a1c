"""Moments and offsets as they are typed, and `sharedlog log find-offset`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import click

from sharedlog.cli.app import ExamplesCommand, Settings, cluster_options, pass_settings
from sharedlog.cli.output import iso_time, print_json
from sharedlog.cli.session import with_cluster

if TYPE_CHECKING:
    from sharedlog import Cluster, Start

_AGE: Final = re.compile(r"-((?:\d+[smhd])+)")
_PART: Final = re.compile(r"(\d+)([smhd])")
_UNIT_MS: Final = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_OFFSET_MAX: Final = 2**63 - 1
_NEITHER: Final = "no time with its zone (2026-11-27T10:00:00Z) and no age (-1h30m)"


def parse_moment(text: str, *, now_ms: int) -> int | None:
    """Unix time in milliseconds of a time or an age; None if it is neither."""
    if age := _AGE.fullmatch(text):
        parts = _PART.findall(age[1])
        return max(0, now_ms - sum(int(count) * _UNIT_MS[unit] for count, unit in parts))
    if "-" not in text[1:]:
        return None
    from datetime import datetime  # late, like the rest: most commands name no moment

    from sharedlog.starts import timestamp_to_ms

    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return None if moment.tzinfo is None else timestamp_to_ms(moment)


class MomentType(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.4 on
    """A time, an age, or Unix time in milliseconds; becomes the latter."""

    name = "when"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Unix time in milliseconds."""
        if isinstance(value, int):
            return value
        if value.isdecimal() and int(value) <= _OFFSET_MAX:
            return int(value)
        found = parse_moment(value, now_ms=now_ms())
        if found is None:
            self.fail(f"{value!r} is {_NEITHER}", param, ctx)
        return found


class StartType(click.ParamType):  # type: ignore[type-arg]  # as above
    """An offset, a time or an age; becomes where a read starts."""

    name = "start"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Start:
        """What `Log.read` takes as its start."""
        if isinstance(value, int):
            return value
        if value.isdecimal() and int(value) <= _OFFSET_MAX:
            return int(value)
        found = parse_moment(value, now_ms=now_ms())
        if found is None:
            self.fail(f"{value!r} is no offset, {_NEITHER}", param, ctx)
        from sharedlog.starts import from_time

        return from_time(found)


def now_ms() -> int:
    """Unix time in milliseconds, by this machine's clock."""
    from sharedlog.clock import SystemClock

    return SystemClock().now_ms()


@click.command(
    name="find-offset",
    cls=ExamplesCommand,
    examples="""
sharedlog log find-offset orders --time 2026-11-27T10:00:00Z
sharedlog log find-offset orders --time -1h30m          an hour and a half ago
sharedlog read orders --to "$(sharedlog log find-offset orders --time -1d)"
""",
)
@click.argument("name")
@click.option(
    "--time",
    "moment_ms",
    type=MomentType(),
    required=True,
    metavar="WHEN",
    help="A time with its zone, an age like -1h30m, or Unix time in milliseconds.",
)
@cluster_options
@pass_settings
def find_offset(settings: Settings, name: str, moment_ms: int) -> None:
    """Show the offset of the first record of NAME at or after a moment; the tail if none is."""

    async def work(cluster: Cluster) -> int:
        return await cluster.log(name).find_offset(moment_ms)

    offset = with_cluster(settings, work)
    if settings.json:
        print_json(
            {"log": name, "time": iso_time(moment_ms), "time_ms": moment_ms, "offset": offset}
        )
    else:
        click.echo(offset)
