"""Makes the tree and the table in docs/errors.md from the classes, or checks that they are current.

    python tools/errors_page.py            # make them
    python tools/errors_page.py --check    # exit 1 and show what differs

The text around them is written by hand.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sharedlog.errors import SharedLogError

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
PAGE = ROOT / "docs" / "errors.md"


def main(arguments: list[str] | None = None) -> int:
    """Make or check; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing, show what differs")
    check: bool = parser.parse_args(arguments).check
    page = PAGE.read_text()
    made = page
    for name, lines in (("tree", tree()), ("table", table())):
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
        before, _, rest = made.partition(begin)
        made = before + begin + "".join(lines) + end + rest.partition(end)[2]
    if not check:
        PAGE.write_text(made)
        return 0
    old, new = page.splitlines(keepends=True), made.splitlines(keepends=True)
    sys.stderr.writelines(difflib.unified_diff(old, new, "docs/errors.md", "as the classes say"))
    return int(page != made)


def tree() -> Iterator[str]:
    """The classes below each other, drawn."""
    yield "```\n"
    yield "SharedLogError\n"
    for cls, last in _classes():
        lines = ["    " if above else "│   " for above in last[:-1]]
        yield f"{''.join(lines)}{'└── ' if last[-1] else '├── '}{cls.__name__}\n"
    yield "```\n"


def table() -> Iterator[str]:
    """A row for each."""
    from sharedlog.cli.failures import exit_code_of

    yield "| class | of an append | again | gRPC status | exit code | what to do |\n"
    yield "|---|---|---|---|---|---|\n"
    for cls, last in _classes():
        cells = (
            f"{'&ensp;' * (len(last) - 1)}`{cls.__name__}`",
            cls.outcome,
            "yes" if cls.retryable else "no",
            f"`{cls.grpc_status}`",
            str(exit_code_of(cls.__new__(cls))),
            cls.advice,
        )
        yield f"| {' | '.join(cells)} |\n"


def _classes() -> Iterator[tuple[type[SharedLogError], tuple[bool, ...]]]:
    """Each class, in the order of the code; of it and those above it, which are their bases' last.

    One whose name begins with an underscore is of one module alone.
    """
    # Every package that defines errors is loaded, the lowest first.
    import sharedlog.errors  # isort: skip
    import metadata.errors  # isort: skip
    import loglet.service  # isort: skip
    import sequencer.service  # isort: skip
    import node.errors  # isort: skip

    assert all((metadata.errors, loglet.service, sequencer.service, node.errors))
    return _below(sharedlog.errors.SharedLogError, ())


def _below(
    base: type[SharedLogError], above: tuple[bool, ...]
) -> Iterator[tuple[type[SharedLogError], tuple[bool, ...]]]:
    found = [cls for cls in base.__subclasses__() if not cls.__name__.startswith("_")]
    for number, cls in enumerate(found, 1):
        last = (*above, number == len(found))
        yield cls, last
        yield from _below(cls, last)


if __name__ == "__main__":
    sys.exit(main())
