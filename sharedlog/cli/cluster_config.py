"""`sharedlog cluster config`: what new logs get where no namespace says otherwise, and the name.

The settings are those of the namespace of every log, whose prefix is empty. A change is shown
before it is made, and made only if nothing has changed since it was shown.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from sharedlog.cli.app import (
    ExamplesCommand,
    Lazy,
    LazyGroup,
    Settings,
    cluster_options,
    pass_settings,
)
from sharedlog.cli.failures import EXIT_NOT_FOUND, CliFailure
from sharedlog.cli.output import Column, note, plural, print_json, print_table
from sharedlog.cli.placement import parse_near, parse_spread
from sharedlog.cli.session import with_cluster
from sharedlog.cli.views import CLUSTER_SOURCE, Json, source_text, spread_text
from sharedlog.errors import InvalidArgument
from sharedlog.retention import RETENTION_SETTINGS, Retention, parse_bytes, parse_duration

if TYPE_CHECKING:
    from sharedlog import Cluster

_HERE = "sharedlog.cli.cluster_config"
_SECTIONS = {
    "Defaults": {
        "get": Lazy(_HERE, "get", "Show what new logs get."),
        "set": Lazy(_HERE, "set_config", "Change it."),
    },
}
_NAME: Final = "name"
_INHERIT: Final = "default"
"""The value that ends a setting."""

_PLACEMENT: Final = ("replicas", "write_quorum", "spread")
_COUNTED_MAX: Final = 100_000
"""Logs that are looked at to say how many keep another value."""


@click.group(
    cls=LazyGroup,
    sections=_SECTIONS,
    examples="""
sharedlog cluster config get
sharedlog cluster config set replicas=5 write_quorum=3
""",
)
@cluster_options
def config() -> None:
    """What new logs get where no namespace says otherwise, and the cluster's name."""


@click.command(
    cls=ExamplesCommand,
    examples="""
sharedlog cluster config get
sharedlog cluster config get --json | jq -r '.settings[] | select(.name == "replicas") | .value'
""",
)
@cluster_options
@pass_settings
def get(settings: Settings) -> None:
    """Show the cluster's name and what new logs get, each with where it comes from."""
    found = with_cluster(settings, fetch_config)
    if settings.json:
        print_json(found)
    else:
        print_config(found)


async def fetch_config(cluster: Cluster) -> Json:
    """The cluster's settings. Version 0: nothing was set yet."""
    described = await cluster.admin.describe_cluster()
    root = await cluster.namespaces.get("")
    named = {"name": _NAME, "value": described.name, "source": CLUSTER_SOURCE}
    return {
        "version": root.version,
        "cluster_version": described.version,
        "settings": [
            named if described.name else named | {"source": _INHERIT},
            *(
                {"name": it.name, "value": it.value, "source": source_text(it.source)}
                for it in root.effective
            ),
        ],
    }


def print_config(found: Json) -> None:
    """The settings as a table."""
    print_table(
        [Column("SETTING"), Column("VALUE"), Column("FROM")],
        [[it["name"], it["value"] or "none", it["source"]] for it in found["settings"]],
    )
    click.echo(f"version {found['version']}")


@click.command(
    name="set",
    cls=ExamplesCommand,
    examples="""
sharedlog cluster config set replicas=5 write_quorum=3
sharedlog cluster config set spread=zone:2 local_age=7d --dry-run
sharedlog cluster config set spread=default     not set any more
sharedlog cluster config set name=prod --yes
""",
)
@click.argument("assignments", nargs=-1, required=True, metavar="SETTING=VALUE...")
@click.option("--dry-run", is_flag=True, help="Show what would change, and do nothing.")
@click.option("--yes", is_flag=True, help="Do it without asking.")
@click.option(
    "--expect-version",
    type=click.IntRange(min=0),
    metavar="N",
    help="Only if the settings have it, as `get` shows it; 0: only if nothing is set.",
)
@cluster_options
@pass_settings
def set_config(
    settings: Settings,
    assignments: tuple[str, ...],
    *,
    dry_run: bool,
    yes: bool,
    expect_version: int | None,
) -> None:
    """Change what new logs get where no namespace says otherwise.

    Settings: replicas, write_quorum, spread, near, local_bytes, local_age, total_age, name. Shows
    what changes, and asks before it does it. Logs that exist stay as they are: `log
    reconfigure` and `log set` change them. The name of the cluster is a setting, too.
    """
    wanted = parse_assignments(assignments)
    if not (yes or dry_run or sys.stdin.isatty()):
        raise click.UsageError("--yes or --dry-run is needed where nobody can be asked")
    found = with_cluster(settings, lambda cluster: _plan(cluster, wanted))
    if expect_version is not None and expect_version != found["version"]:
        raise CliFailure(
            f"the settings have version {found['version']}, not {expect_version}",
            exit_code=EXIT_NOT_FOUND,
        )
    if not settings.json:
        _print_plan(found)
    applied = bool(found["changes"]) and not dry_run
    if applied:
        if not yes:
            click.confirm("Change it?", abort=True, err=True)
        with_cluster(settings, lambda cluster: _apply(cluster, wanted, found))
    if settings.json:
        print_json(found | {"dry_run": dry_run, "applied": applied})
    elif applied:
        click.echo("changed")


def parse_assignments(assignments: Sequence[str]) -> dict[str, Any]:
    """By setting what it is to be; None: not set any more.

    Raises:
        click.UsageError: one does not read so.
    """
    wanted: dict[str, Any] = {}
    for assignment in assignments:
        typed, equals, text = assignment.partition("=")
        setting = typed.replace("-", "_")
        if not equals or setting not in _PARSERS:
            known = ", ".join(_PARSERS)
            raise click.UsageError(
                f"{assignment!r} is no SETTING=VALUE with one of the settings {known}"
            )
        if setting in wanted:
            raise click.UsageError(f"{setting} is given twice")
        try:
            wanted[setting] = None if text == _INHERIT else _PARSERS[setting](text)
        except (InvalidArgument, ValueError) as error:
            raise click.UsageError(f"{setting}: {error}") from error
    if wanted.get(_NAME, "") is None:
        raise click.UsageError("the cluster's name can be changed, not taken away")
    return wanted


def _parse_count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{text!r} is no number of copies")
    return int(text)


_PARSERS: Final[dict[str, Callable[[str], Any]]] = {
    _NAME: str,
    "replicas": _parse_count,
    "write_quorum": _parse_count,
    "spread": parse_spread,
    "near": parse_near,
    "local_bytes": parse_bytes,
    "local_age": parse_duration,
    "total_age": parse_duration,
}


async def _plan(cluster: Cluster, wanted: dict[str, Any]) -> Json:
    """What would change, checked by nobody yet but for its form; and what stays as it is."""
    found = await fetch_config(cluster)
    changes = []
    for setting in found["settings"]:
        name, source = setting["name"], setting["source"]
        if name not in wanted:
            continue
        inherited = source != CLUSTER_SOURCE
        text = None if wanted[name] is None else _typed(name, wanted[name])
        if text == (None if inherited else setting["value"] or _no_value(name)):
            continue
        old = f"{setting['value'] or 'none'}{' (default)' if inherited else ''}"
        changes.append({"name": name, "old": old, "new": text or _INHERIT})
    touched = {it["name"]: it["new"] for it in changes}
    logs = await _count_logs(cluster, touched) if touched else {"total": 0, "differ": 0}
    return found | {"changes": changes, "logs": logs}


def _typed(name: str, value: Any) -> str:
    """As `config get` shows it."""
    if name == "spread":
        return spread_text(value) or "none"
    if name == "near":
        return value or "none"
    if name in RETENTION_SETTINGS:
        from sharedlog.retention import amount_text

        return amount_text(name, value) or "none"
    return str(value)


def _no_value(name: str) -> str:
    return "" if name == _NAME else "none"


async def _count_logs(cluster: Cluster, touched: dict[str, str]) -> Json:
    """Logs that there are, and those whose present placement differs from the new default."""
    total = differ = 0
    placement = {name: text for name, text in touched.items() if name in _PLACEMENT}
    async for log in cluster.iter_logs():
        total += 1
        now = {
            "replicas": str(log.replicas),
            "write_quorum": str(log.write_quorum),
            "spread": spread_text(dict(log.spread)) or "none",
        }
        differ += any(text not in (_INHERIT, now[name]) for name, text in placement.items())
        if total == _COUNTED_MAX:
            break
    return {"total": total, "differ": differ}


def _print_plan(found: Json) -> None:
    if not found["changes"]:
        click.echo("nothing to do: all of it is so already")
        return
    print_table(
        [Column("SETTING"), Column("OLD"), Column(""), Column("NEW")],
        [[it["name"], it["old"], "->", it["new"]] for it in found["changes"]],
    )
    logs = found["logs"]
    if any(it["name"] != _NAME for it in found["changes"]) and logs["total"]:
        keep = f"; {logs['differ']:,} of them differ from the new default" if logs["differ"] else ""
        stays = "stays as it is" if logs["total"] == 1 else "stay as they are"
        click.echo(f"{plural(logs['total'], 'existing log')} {stays}{keep}")
    if any(it["name"] == _NAME for it in found["changes"]):
        note("nodes whose setting `cluster` is the old name are refused at their next start")


async def _apply(cluster: Cluster, wanted: dict[str, Any], shown: Json) -> None:
    """Make what was shown; refused if something was changed since then."""
    changed = {it["name"] for it in shown["changes"]}
    settings = changed - {_NAME}
    if settings:  # first, for they may be refused
        await _set_defaults(cluster, {name: wanted[name] for name in settings}, shown["version"])
    if _NAME in changed:
        await cluster.admin.rename_cluster(wanted[_NAME], expected_version=shown["cluster_version"])


async def _set_defaults(cluster: Cluster, wanted: dict[str, Any], version: int) -> None:
    given = {name: value for name, value in wanted.items() if value is not None}
    fields = {field: given[name] for name, field in RETENTION_SETTINGS.items() if name in given}
    await cluster.namespaces.set(
        "",
        replicas=given.get("replicas"),
        write_quorum=given.get("write_quorum"),
        spread=given.get("spread"),
        near=given.get("near"),
        retention=Retention(**fields),
        inherit=[name for name in wanted if name not in given],
        expected_version=version,
    )
