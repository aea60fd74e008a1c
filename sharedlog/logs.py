"""How log lines look: an event name and fields, as JSON lines or readable for people.

Code logs with `log.info("append.committed", extra={"loglet": str(loglet)})`: the message is the
event's name and never has text put into it, so that a machine can count events and a person can
search for them. Every process of ours writes its lines with these formatters.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final

_STANDARD: Final = frozenset(
    (*vars(logging.makeLogRecord({})), "message", "asctime", "taskName", "color_message")
)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: `time` (UTC), `level`, `event`, `logger`, then the fields."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of one record."""
        line: dict[str, object] = {
            "time": _when(record).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            "logger": record.name,
        }
        line.update(_fields(record))
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


class TextFormatter(logging.Formatter):
    """`12:34:56.789 info  node.ready address=127.0.0.1:4100`, in UTC."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of one record; a traceback follows on lines of its own."""
        time = f"{_when(record):%H:%M:%S.%f}"[:-3]
        words = [time, f"{record.levelname.lower():<7}", record.getMessage()]
        words += [f"{name}={_shown(value)}" for name, value in _fields(record)]
        if record.exc_info:
            words.append("\n" + self.formatException(record.exc_info))
        return " ".join(words)


def _when(record: logging.LogRecord) -> datetime:
    return datetime.fromtimestamp(record.created, UTC)


def _fields(record: logging.LogRecord) -> Iterator[tuple[str, object]]:
    return ((name, value) for name, value in vars(record).items() if name not in _STANDARD)


def _shown(value: object) -> str:
    """A value as one word where that can be read back, else in quotes."""
    text = str(value)
    return text if text and not set(text) & set(' "=\n') else json.dumps(text, ensure_ascii=False)
