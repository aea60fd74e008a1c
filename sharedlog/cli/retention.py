"""How long records are kept, as it is typed and shown, and `sharedlog log set`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from sharedlog.cli.app import ExamplesCommand, Settings, cluster_options, pass_settings
from sharedlog.cli.output import print_json
from sharedlog.cli.session import with_cluster
from sharedlog.cli.views import Json, source_text, view_log
from sharedlog.errors import InvalidArgument
from sharedlog.retention import (
    NO_RETENTION,
    RETENTION_SETTINGS,
    Retention,
    amount_text,
    parse_bytes,
    parse_duration,
)

if TYPE_CHECKING:
    from sharedlog import Cluster
    from sharedlog.v1 import types_pb2

Function = TypeVar("Function", bound=Callable[..., object])

RETENTION_FLAGS: Final = tuple(name.replace("_", "-") for name in RETENTION_SETTINGS)
"""Names of the settings as they are typed."""


class AmountType(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.4 on
    """A duration or a size with its unit, or "none"; becomes seconds or bytes, 0 for none."""

    name = "amount"

    def __init__(self, parse: Callable[[str], int]) -> None:
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Seconds or bytes."""
        if isinstance(value, int):
            return value
        try:
            return self._parse(value)
        except InvalidArgument as error:
            self.fail(str(error), param, ctx)


def retention_options(function: Function) -> Function:
    """--local-bytes, --local-age and --total-age."""
    function = click.option(
        "--total-age",
        "total_age_s",
        type=AmountType(parse_duration),
        metavar="AGE",
        help="Records older than this are deleted for ever, e.g. 90d; none: never.",
    )(function)
    function = click.option(
        "--local-age",
        "local_age_s",
        type=AmountType(parse_duration),
        metavar="AGE",
        help="Records older than this are kept in the archive alone, e.g. 7d; none: no such limit.",
    )(function)
    return click.option(
        "--local-bytes",
        "local_bytes",
        type=AmountType(parse_bytes),
        metavar="SIZE",
        help="So much is kept on the log servers, older records in the archive alone, e.g. 10GiB; "
        "none: no such limit.",
    )(function)


def retention_text(found: Json) -> str:
    """What `view_log` says of it, in one line, with where it comes from."""
    return ", ".join(
        f"{name.replace('_', ' ')} {amount_text(name, it['value'] or 0) or 'none'} "
        f"({source_text(it['source'])})"
        for name, field in RETENTION_SETTINGS.items()
        for it in [found["retention"][field]]
    )


@click.command(
    name="set",
    cls=ExamplesCommand,
    examples="""
sharedlog log set orders --local-age 7d         older records are read from the archive
sharedlog log set orders --local-bytes 10GiB --total-age 365d
sharedlog log set orders --total-age none       keep them for ever
""",
)
@click.argument("name")
@retention_options
@cluster_options
@pass_settings
def set_log(
    settings: Settings,
    name: str,
    *,
    local_bytes: int | None,
    local_age_s: int | None,
    total_age_s: int | None,
) -> None:
    """Set how long the log NAME keeps its records, and where; what is not given stays as it is.

    Sequencer, log servers and quorum are changed by `log reconfigure`.
    """
    wanted = Retention(local_bytes=local_bytes, local_age_s=local_age_s, total_age_s=total_age_s)
    if wanted == NO_RETENTION:
        raise click.UsageError("nothing is to be set; see --local-bytes, --local-age, --total-age")

    async def work(cluster: Cluster) -> types_pb2.LogDescription:
        return await cluster.set_retention(name, wanted)

    found = view_log(with_cluster(settings, work))
    if settings.json:
        print_json({"name": name, "log_id": found["log_id"], "retention": found["retention"]})
    else:
        click.echo(f"log {name}: {retention_text(found)}")
