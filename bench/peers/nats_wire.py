"""The part of the NATS client protocol that the benchmark speaks. No I/O.

Text lines, then payloads of a told size. The server sends INFO, MSG, PING, +OK and -ERR; the client
asks for no headers, so HMSG never comes.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Info:
    """The server's greeting, JSON."""

    body: bytes


@dataclass(frozen=True, slots=True)
class Message:
    """A message on a subscribed subject; `reply_to` is empty if no answer is wanted."""

    subject: bytes
    reply_to: bytes
    payload: bytes


@dataclass(frozen=True, slots=True)
class Ping:
    """To be answered with `PONG`, or the server hangs up."""


@dataclass(frozen=True, slots=True)
class Pong:
    """The answer to our `PING`: all that was sent before it has been taken."""


@dataclass(frozen=True, slots=True)
class ServerError:
    """`-ERR`: the server hangs up after most of them."""

    text: str


Event = Info | Message | Ping | Pong | ServerError

PING = b"PING\r\n"
PONG = b"PONG\r\n"
CONNECT = (
    b'CONNECT {"verbose":false,"pedantic":false,"lang":"python","version":"0",'
    b'"protocol":1,"headers":false,"echo":true}\r\n'
)


def encode_publish(subject: bytes, payload: bytes, reply_to: bytes = b"") -> bytes:
    """`PUB`, asking for an answer to `reply_to` if that is given."""
    reply = reply_to + b" " if reply_to else b""
    return b"PUB %b %b%d\r\n%b\r\n" % (subject, reply, len(payload), payload)


def encode_subscribe(subject: bytes, sid: int) -> bytes:
    """`SUB` under the id `sid`."""
    return b"SUB %b %d\r\n" % (subject, sid)


class EventParser:
    """Cuts a byte stream into events, however the stream was cut into chunks."""

    def __init__(self) -> None:
        self._buffer = b""

    def feed(self, data: bytes) -> list[Event]:
        """Add bytes as they came; returns every event that is complete now, in order.

        Raises:
            ValueError: the peer does not speak NATS.
        """
        buffer = self._buffer + data
        events: list[Event] = []
        position = 0
        while (line_end := buffer.find(b"\r\n", position)) >= 0:
            line = buffer[position:line_end]
            end = line_end + 2
            if line.startswith(b"MSG "):
                fields = line.split()
                size = int(fields[-1])
                if len(buffer) < end + size + 2:
                    break
                reply_to = fields[3] if len(fields) == 5 else b""
                events.append(Message(fields[1], reply_to, buffer[end : end + size]))
                end += size + 2
            else:
                event = _parse_line(line)
                if event is not None:
                    events.append(event)
            position = end
        self._buffer = buffer[position:]
        return events


def _parse_line(line: bytes) -> Event | None:
    word, _, rest = line.partition(b" ")
    match word.upper():
        case b"INFO":
            return Info(rest)
        case b"PING":
            return Ping()
        case b"PONG":
            return Pong()
        case b"-ERR":
            return ServerError(rest.decode().strip("'"))
        case b"+OK":
            return None
        case _:
            raise ValueError(f"not a line of NATS: {line[:40]!r}")
