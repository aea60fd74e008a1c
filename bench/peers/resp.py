"""The part of Redis's protocol (RESP2) that the benchmark speaks. No I/O.

A request is an array of bulk strings. A reply is a status line, an error, an integer, a bulk string
or an array of these; errors are returned, not raised, since a pipeline goes on after one.
"""

from __future__ import annotations

from typing import Union

Reply = Union["ReplyError", str, bytes, int, None, list["Reply"]]


class ReplyError(Exception):
    """Redis answered `-ERR ...`."""


def encode_command(*words: bytes) -> bytes:
    """One command with its arguments."""
    parts = [b"$%d\r\n%b\r\n" % (len(word), word) for word in words]
    return b"*%d\r\n%b" % (len(words), b"".join(parts))


class ReplyParser:
    """Cuts a byte stream into replies, however the stream was cut into chunks."""

    def __init__(self) -> None:
        self._buffer = b""

    def feed(self, data: bytes) -> list[Reply]:
        """Add bytes as they came; returns every reply that is complete now, in order."""
        self._buffer += data
        replies: list[Reply] = []
        position = 0
        while True:
            parsed = _parse(self._buffer, position)
            if parsed is None:
                break
            reply, position = parsed
            replies.append(reply)
        self._buffer = self._buffer[position:]
        return replies


def _parse(data: bytes, at: int) -> tuple[Reply, int] | None:
    """The reply that begins at `at` and where it ends, or None while it is incomplete."""
    line_end = data.find(b"\r\n", at)
    if line_end < 0:
        return None
    kind, line, position = data[at : at + 1], data[at + 1 : line_end], line_end + 2
    match kind:
        case b"+":
            return line.decode(), position
        case b"-":
            return ReplyError(line.decode()), position
        case b":":
            return int(line), position
        case b"$":
            return _parse_bulk(data, position, int(line))
        case b"*":
            return _parse_array(data, position, int(line))
        case _:
            raise ValueError(f"not a reply of Redis: {data[at : at + 40]!r}")


def _parse_bulk(data: bytes, at: int, size: int) -> tuple[Reply, int] | None:
    if size < 0:
        return None, at
    end = at + size
    if len(data) < end + 2:
        return None
    return data[at:end], end + 2


def _parse_array(data: bytes, at: int, count: int) -> tuple[Reply, int] | None:
    if count < 0:
        return None, at
    items: list[Reply] = []
    for _ in range(count):
        parsed = _parse(data, at)
        if parsed is None:
            return None
        item, at = parsed
        items.append(item)
    return items, at
