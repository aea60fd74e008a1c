"""JSON, tables and figures on stdout; notes on stderr.

Tables are for people: coloured by rich on a terminal, plain aligned text elsewhere. Scripts take
JSON: one object in one line (indented on a terminal), with keys in lower_snake case that stay.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Final, NamedTuple

import click


class Column(NamedTuple):
    """One column of a table."""

    name: str
    right: bool = False
    """Figures are aligned to the right."""


class Cell(NamedTuple):
    """A table's cell with a colour; a plain string has none."""

    text: str
    style: str


Row = Sequence[str | Cell]

GOOD: Final = "green"
WARNING: Final = "yellow"
BAD: Final = "bold red"


def print_json(value: object) -> None:
    """One JSON value on stdout."""
    indent = 2 if sys.stdout.isatty() else None
    click.echo(json.dumps(value, ensure_ascii=False, indent=indent))


def note(text: str) -> None:
    """One line on stderr, for a person."""
    click.echo(text, err=True)


def print_table(columns: Sequence[Column], rows: Sequence[Row], *, title: str = "") -> None:
    """A table on stdout; nothing if it has no rows."""
    if not rows:
        return
    if sys.stdout.isatty():
        _print_rich(columns, rows, title)
        return
    if title:
        click.echo(title)
    click.echo(format_plain(columns, rows))


def print_line(cell: Cell) -> None:
    """One line on stdout, coloured on a terminal."""
    if not sys.stdout.isatty():
        click.echo(cell.text)
        return
    from rich.console import Console
    from rich.text import Text

    Console().print(Text(cell.text, cell.style))


def format_plain(columns: Sequence[Column], rows: Sequence[Row]) -> str:
    """The table as aligned text without colours."""
    lines = [[column.name for column in columns], *([_text(cell) for cell in row] for row in rows)]
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
    return "\n".join(
        "  ".join(
            text.rjust(width) if column.right else text.ljust(width)
            for text, width, column in zip(line, widths, columns, strict=True)
        ).rstrip()
        for line in lines
    )


def _print_rich(columns: Sequence[Column], rows: Sequence[Row], title: str) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title or None, title_justify="left", box=None, pad_edge=False)
    for column in columns:
        table.add_column(column.name, justify="right" if column.right else "left")
    for row in rows:
        table.add_row(
            *(Text(cell.text, cell.style) if isinstance(cell, Cell) else Text(cell) for cell in row)
        )
    Console().print(table)


def _text(cell: str | Cell) -> str:
    return cell.text if isinstance(cell, Cell) else cell


def human_bytes(count: int) -> str:
    """12.3 MiB, for people."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def human_seconds(seconds: float) -> str:
    """3 d 4 h, for people."""
    whole = int(seconds)
    days, hours, minutes = whole // 86_400, whole // 3_600 % 24, whole // 60 % 60
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    if minutes:
        return f"{minutes} min {whole % 60} s"
    return f"{whole} s"


def iso_time(timestamp_ms: int) -> str:
    """Unix time in milliseconds as 2026-11-22T19:20:00.123Z."""
    from datetime import UTC, datetime

    moment = datetime.fromtimestamp(timestamp_ms / 1000, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{timestamp_ms % 1000:03d}Z"


def plural(count: int, noun: str) -> str:
    """As in "1 record" and "1,234 records"."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
