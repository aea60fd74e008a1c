"""Where a log is to be: the options --spread and --near of several commands."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import click

Function = TypeVar("Function", bound=Callable[..., object])


def placement_options(function: Function) -> Function:
    """--spread and --near, as they were typed."""
    function = click.option(
        "--near",
        metavar="LOCATION",
        help="Where the writers are, e.g. eu-1 or eu-1.zone-a: a node there orders the log, if any "
        "can; none: nowhere in particular.",
    )(function)
    return click.option(
        "--spread",
        metavar="LEVEL:N",
        help="What each write quorum must span, e.g. zone:2 or zone:2,node:3; none: nothing.",
    )(function)


def parse_near(text: str) -> str:
    """The location, empty for "none". What can be one the cluster knows."""
    return "" if text == "none" else text


def parse_spread(text: str) -> dict[str, int]:
    """{"zone": 2} from "zone:2"; {} from "none". Which levels there are the cluster knows.

    Raises:
        click.UsageError: it does not read so.
    """
    if text == "none":
        return {}
    found: dict[str, int] = {}
    for part in text.split(","):
        level, _, count = part.strip().partition(":")
        if not level or not count.isdecimal() or level in found:
            raise click.UsageError(f"{text!r} is no spread: LEVEL:N is needed, e.g. zone:2")
        found[level] = int(count)
    return found
