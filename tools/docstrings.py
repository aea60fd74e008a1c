"""Prepares docstrings for the documentation site (`tools/griffe_extension.py`).

In the code what stands below `Raises:` is running text, with several errors to a line, and one text
for several errors: "LogNotFound. OffsetMismatch: carries the tail. DataLoss, Unreachable: records
that are in the log can't be had." It becomes a list with an item for each text, in which errors are
links. Names in `backticks` become links, too, where the site has a place for them.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Final

import sharedlog
import sharedlog.errors

_NAMES: Final = r"(?:[a-z]+\.)?[A-Z]\w+(?:, (?:[A-Z]\w+|\.\.\.))*"
_ITEM: Final = re.compile(rf"(?:^|(?<=[.)] ))({_NAMES})([:.])(?: |$)")
"""Names of errors and the colon before their text, or the full stop if they have none."""

_SECTION: Final = re.compile(r"^Raises:\n((?:(?:    .*)?(?:\n|\Z))+)", re.MULTILINE)
_CODE: Final = re.compile(r"(?<![`\[])`([A-Za-z_][\w.]*)`(?!`)")

Link = Callable[[str], str]
"""Markdown for a name, with a link if it has a place."""


def prepare(docstring: str, link: Link) -> str:
    """The docstring as Markdown for the site."""
    listed = _SECTION.sub(lambda found: _list_of(found[1], link), docstring)
    # Indented lines are code, in which nothing is a link.
    lines = listed.split("\n")
    return "\n".join(
        line if line.startswith("    ") else _CODE.sub(lambda found: link(found[1]), line)
        for line in lines
    )


def _list_of(section: str, link: Link) -> str:
    text = " ".join(section.split())
    found = list(_ITEM.finditer(text))
    if not found or found[0].start() > 0:
        raise ValueError(f"a `Raises:` section does not begin with the name of an error: {text}")
    ends = [item.start() for item in found[1:]] + [len(text)]
    items = []
    for item, end in zip(found, ends, strict=True):
        names = ", ".join("…" if name == "..." else link(name) for name in item[1].split(", "))
        meaning = text[item.end() : end].strip()
        items.append(f"- {names}: {meaning}" if meaning else f"- {names}")
    return "**Raises:**\n\n" + "\n".join(items) + "\n\n"


def place_of(name: str, owner: str | None = None) -> str | None:
    """The anchor that the site has for a name which a docstring of the class `owner` uses.

    That of a public name, of an error, of a method of these (`Log.append`), or of a method of
    the owner itself (`append`). None if there is none.
    """
    if inspect.isclass(getattr(sharedlog.errors, name, None)):
        return f"sharedlog.errors.{name}"
    first, _, attribute = name.removeprefix("sharedlog.").partition(".")
    if first in sharedlog.__all__ and _is_documented(first, attribute):
        return f"sharedlog.{first}.{attribute}".rstrip(".")
    if owner is not None and not attribute and _is_documented(owner, first):
        return f"sharedlog.{owner}.{first}"
    return None


def _is_documented(name: str, attribute: str) -> bool:
    """Whether the pages have the public name, or the method of it that is asked for."""
    if name not in sharedlog.__all__ or inspect.ismodule(getattr(sharedlog, name)):
        return False
    if not attribute:
        return True
    found = inspect.getattr_static(getattr(sharedlog, name), attribute, None)
    is_method = isinstance(found, property) or inspect.isfunction(found)
    return is_method and not attribute.startswith("_") and bool(found.__doc__)
