"""How log lines look."""

from __future__ import annotations

import json
import logging
import re

from sharedlog.logs import JsonFormatter, TextFormatter


def line(formatter: logging.Formatter, **extra: object) -> str:
    record = logging.getLogger("some.part").makeRecord(
        "some.part", logging.WARNING, "file.py", 1, "thing.happened", (), None, extra=extra
    )
    return formatter.format(record)


def test_json_lines_carry_event_and_fields() -> None:
    """One object a line; what JSON does not know becomes its text."""
    found = json.loads(line(JsonFormatter(), loglet=object, count=3, text='a "b"\nc'))
    assert found["event"] == "thing.happened"
    assert found["level"] == "warning"
    assert found["logger"] == "some.part"
    assert found["count"] == 3
    assert found["text"] == 'a "b"\nc'
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", found["time"])


def test_text_lines_are_one_line_each() -> None:
    """Values that are not one plain word are quoted, so that a line can be taken apart again."""
    found = line(TextFormatter(), log="orders", error="a b\nc", nothing="")
    assert found.endswith('warning thing.happened log=orders error="a b\\nc" nothing=""')
