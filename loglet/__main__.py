"""`python -m loglet inspect DIR`: look into a log server's store that no process uses.

Data goes to stdout, all else to stderr. Exit code 0: sound; 1: damage was found, or the store can't
be read; 2: wrong usage.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from loglet.inspect import LogletReport, OfflineStore, StoreReport
from sharedlog.errors import SharedLogError
from sharedlog.ids import LogId, LogletId


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        with OfflineStore(options.dir) as store:
            if options.dump is not None:
                return _dump(store, options.dump)
            report = store.report()
    except SharedLogError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except BrokenPipeError:
        # The reader has seen enough; keep the interpreter from writing the rest at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    text = report.as_json() if options.json else _text(report, ranges=options.ranges)
    sys.stdout.write(text + "\n")
    return 1 if report.problem_count else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m loglet", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    inspect = commands.add_parser("inspect", help="check a store and say what is in it")
    inspect.add_argument("dir", type=Path, help="the store's directory")
    inspect.add_argument("--json", action="store_true", help="one JSON object")
    inspect.add_argument("--ranges", action="store_true", help="list the held ranges, too")
    inspect.add_argument(
        "--dump",
        type=_loglet,
        metavar="LOGLET",
        help="instead: the records of a loglet, one JSON object per line, values in base64",
    )
    return parser


def _loglet(text: str) -> LogletId:
    """A loglet's id as it is printed: hex log id, a dot, the segment's index."""
    log_id, _, segment = text.partition(".")
    try:
        return LogletId(LogId(int(log_id, 16)), int(segment))
    except ValueError as error:
        problem = f"{text!r} is no loglet, e.g. 00000000000000ff.0"
        raise argparse.ArgumentTypeError(problem) from error


def _dump(store: OfflineStore, loglet: LogletId) -> int:
    damaged = False
    for row in store.records(loglet):
        damaged = damaged or "damaged" in row
        sys.stdout.write(json.dumps(row) + "\n")
    return 1 if damaged else 0


def _text(report: StoreReport, *, ranges: bool) -> str:
    lines = [
        f"node {report.node_id}   cluster {report.cluster_id}   storage {report.storage_id}",
        *(f"PROBLEM {problem}" for problem in report.problems),
    ]
    for found in report.loglets:
        lines += _loglet_lines(found, ranges=ranges)
    verdict = f"{report.problem_count} problems" if report.problem_count else "sound"
    lines.append(f"{len(report.loglets)} loglets: {verdict}")
    return "\n".join(lines)


def _loglet_lines(found: LogletReport, *, ranges: bool) -> list[str]:
    opener = f"opened by {found.opened_by}" if found.opened_by else "never opened"
    state = "sealed" if found.sealed else "open"
    if found.told_end is not None:
        state += f", ended at {found.told_end}"
    offsets = (
        f"  base {found.base}   start {found.local_start}   tail {found.local_tail}   "
        f"committed {found.committed_tail}"
    )
    sizes = (
        f"  {found.batches} batches   {found.records} records   {found.bytes} bytes   "
        f"{found.damaged_batches} damaged"
    )
    if found.trimmed_batches:
        sizes += f"   {found.trimmed_batches} trimmed, to be deleted"
    lines = [f"loglet {found.loglet}   {state}, {opener}", offsets, sizes]
    lines += [f"  hole [{first}, {end})" for first, end in found.holes]
    if ranges:
        lines += [f"  held [{first}, {end})" for first, end in found.held]
    return lines


if __name__ == "__main__":
    sys.exit(main())
