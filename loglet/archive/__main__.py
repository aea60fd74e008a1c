"""`python -m loglet.archive inspect|export URL`: archived objects, without a cluster.

Data goes to stdout, all else to stderr. Exit code 0: sound; 1: damage was found, or it can't be
read; 2: wrong usage.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from loglet.archive.config import ArchiveConfig
from loglet.archive.export import STDOUT, export, open_writer
from loglet.archive.offline import (
    ObjectUrl,
    Report,
    archived_batches,
    inspect_manifest,
    inspect_object,
    opened,
    split_url,
)
from sharedlog.errors import InvalidArgument, SharedLogError
from sharedlog.ids import Offset

_LISTED = ("blocks", "objects")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        url = split_url(options.url)
        settings = ArchiveConfig(region=options.region, endpoint=options.endpoint)
        if options.command == "inspect":
            return asyncio.run(_inspect(url, settings, options))
        return asyncio.run(_export(url, settings, options))
    except BrokenPipeError:
        # The reader has seen enough; keep the interpreter from writing the rest at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (SharedLogError, OSError) as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return 2 if isinstance(error, InvalidArgument) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m loglet.archive", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    inspect = commands.add_parser("inspect", help="say what an object or a manifest says")
    inspect.add_argument("--json", action="store_true", help="one JSON object")
    inspect.add_argument("--verbose", action="store_true", help="list blocks, or objects")
    inspect.add_argument("--verify", action="store_true", help="check every checksum")
    write = commands.add_parser("export", help="write the records to a file")
    write.add_argument("--format", choices=["ndjson", "parquet"], default="ndjson")
    write.add_argument("--start", type=int, default=0)
    write.add_argument("--end", type=int)
    write.add_argument("--out", default=STDOUT)
    for command in (inspect, write):
        command.add_argument("url", help="of an object or a manifest")
        command.add_argument("--region", default="")
        command.add_argument("--endpoint", default="")
    return parser


async def _inspect(url: ObjectUrl, settings: ArchiveConfig, options: argparse.Namespace) -> int:
    async with opened(url, settings) as store:
        if url.is_manifest:
            report = await inspect_manifest(
                store, url.key, objects=options.verbose, verify=options.verify
            )
        else:
            report = await inspect_object(
                store, url.key, blocks=options.verbose, verify=options.verify
            )
    if options.json:
        verdict = {"verified": options.verify, "problems": report.problems}
        sys.stdout.write(json.dumps(report.said | verdict) + "\n")
    else:
        sys.stdout.write("\n".join(_lines(report, verified=options.verify)) + "\n")
    return 1 if report.problems else 0


def _lines(report: Report, *, verified: bool) -> list[str]:
    lines = []
    for name, value in report.said.items():
        if name in _LISTED:
            continue
        shown = _time(value) if name.endswith("_ms") else value
        if isinstance(value, list):
            shown = ", ".join(map(str, value)) or "none"
        lines.append(f"{name.removesuffix('_ms').replace('_', ' ') + ':':14}{shown}")
    for name in _LISTED:
        rows: Any = report.said.get(name)
        if rows:
            lines += ["", *_table(rows)]
    lines += [f"PROBLEM {problem}" for problem in report.problems]
    if verified and not report.problems:
        lines.append("all checksums are right")
    return lines


def _table(rows: list[dict[str, object]]) -> list[str]:
    columns = [name for name in rows[0] if name != "crc32c"]
    texts = [
        [str(_time(row[name]) if name.endswith("_ms") else row[name]) for name in columns]
        for row in rows
    ]
    heads = [name.removesuffix("_ms").upper() for name in columns]
    widths = [max(map(len, column)) for column in zip(heads, *texts, strict=True)]
    return [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in (heads, *texts)
    ]


def _time(value: Any) -> str:
    return datetime.fromtimestamp(value / 1000, UTC).isoformat(timespec="milliseconds")


async def _export(url: ObjectUrl, settings: ArchiveConfig, options: argparse.Namespace) -> int:
    start, end = Offset(options.start), None if options.end is None else Offset(options.end)
    path = None if options.out == STDOUT else Path(options.out)
    part = None if path is None else path.with_name(path.name + ".part")
    async with opened(url, settings) as store:
        writer = open_writer(options.format, part)
        try:
            count = await export(archived_batches(store, url, start, end), writer, start, end)
            writer.close()
        except BaseException:
            if part is not None:
                part.unlink(missing_ok=True)
            raise
    if part is not None and path is not None:
        part.replace(path)
    noun = "record" if count == 1 else "records"
    sys.stderr.write(f"{count:,} {noun} written{'' if path is None else f' to {path}'}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
