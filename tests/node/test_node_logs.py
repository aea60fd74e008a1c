"""Where log lines go, and in which format."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator

import pytest

from node.logs import configure_logging


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """The root logger is the process's own: give it back as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level


@pytest.mark.parametrize(("terminal", "shape"), [(True, "text"), (False, "json")])
def test_the_format_follows_the_stream(*, terminal: bool, shape: str) -> None:
    """`auto` is text on a terminal and JSON elsewhere; the level is honoured."""

    class Stream(io.StringIO):
        def isatty(self) -> bool:
            return terminal

    stream = Stream()
    configure_logging("warning", "auto", stream)
    logging.getLogger("x").info("not.shown")
    logging.getLogger("x").error("shown", extra={"a": 1})
    (found,) = stream.getvalue().splitlines()
    assert found.startswith("{") == (shape == "json")
    assert "shown" in found
