"""`sharedlog log fence`: a log's fencing token."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from sharedlog.cli.app import ExamplesCommand, Settings, cluster_options, pass_settings
from sharedlog.cli.output import print_json
from sharedlog.cli.session import with_cluster

if TYPE_CHECKING:
    from sharedlog import Cluster


@click.command(
    cls=ExamplesCommand,
    examples="""
sharedlog log fence orders leader-8           appends with another token fail from now on
sharedlog log fence orders leader-9 --expected leader-8
sharedlog log fence orders ""                 no token any more
""",
)
@click.argument("name", metavar="LOG")
@click.argument("token")
@click.option("--expected", metavar="TOKEN", help='The token that there must be now; "" is none.')
@cluster_options
@pass_settings
def fence(settings: Settings, *, name: str, token: str, expected: str | None) -> None:
    """Set the fencing TOKEN of LOG.

    Appends that carry another token are refused from then on; those that carry none are not looked
    at. Prints the offset of the control record that holds the token.
    """

    async def work(cluster: Cluster) -> int:
        return await cluster.log(name).fence(token, expected)

    offset = with_cluster(settings, work)
    if settings.json:
        print_json({"log": name, "fencing_token": token, "offset": offset})
    else:
        said = f"has the fencing token {token!r}" if token else "has no fencing token"
        click.echo(f"log {name} {said} from offset {offset} on")
