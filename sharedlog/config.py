"""Settings of the client: plain values, checked when they are made."""

from __future__ import annotations

from dataclasses import dataclass

from sharedlog.codec import COMPRESSIONS, Compression
from sharedlog.errors import InvalidArgument
from sharedlog.limits import BATCH_BYTES_MAX, BATCH_RECORDS_MAX, KIB, MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class AppenderConfig:
    """How an appender batches, and how much it holds.

    An appender holds at most `in_flight_bytes + buffer_bytes` and one batch more. One record that
    is larger than a bound passes alone, so no bound can stop an appender for good.
    """

    batch_bytes: int = 512 * KIB
    """A batch of so many encoded bytes is full. Larger ones cost less per byte and wait longer."""
    batch_records: int = 16_384
    """A batch of so many records is full."""
    linger_s: float = 0.0
    """A batch that is not full waits so long for more records, even when it could leave."""
    gather_s: float = 0.006
    """While records come so fast that a quarter of a batch or more comes within this time, a batch
    that is not full is given it to grow: fewer and larger batches cost everybody less. 0: never."""
    slots: int = 1
    """While fewer batches that were not full are in flight, another one leaves at once; otherwise
    it gathers records until it is full or one of those is answered. More of them make more
    and smaller batches, and a batch costs the nodes' processors much whatever its size: worth it
    where the way to the cluster is long and its processors have time."""
    in_flight_bytes: int = 16 * MIB
    """Bytes sent and not yet answered."""
    buffer_bytes: int = 4 * MIB
    """Bytes in full batches that wait to be sent. When reached, `append` waits."""
    timeout_s: float = 30.0
    """From the first record of a batch to its answer; until then failures are dealt with in
    silence. A batch past it fails: definitely if it was never sent, or every answer to it was a
    refusal, and as `AppendIndefinite` otherwise."""
    exactly_once: bool = True
    """What is not answered is sent again, and gets into the log once. Off, an append whose session
    is lost is `AppendIndefinite` at once."""
    silence_s: float = 0.6
    """A session whose answers are due and that says nothing for so long is given up, and the
    sequencer reported as suspect. Grows while it turns out to be innocent."""
    idle_s: float = 30.0
    """A session that had nothing to send for so long is ended; the next batch opens another, which
    costs it one more round trip."""
    compression: Compression = "none"
    """What batches are compressed with: `none`, `zstd` (smallest) or `lz4` (quickest). Needs
    `sharedlog[zstd]` or `sharedlog[lz4]` here and wherever the log is read. A batch that does not
    get smaller goes as it is; the sizes above are those before compression, but for what is in
    flight."""

    def __post_init__(self) -> None:
        _require("batch_bytes", self.batch_bytes, at_least=1, at_most=BATCH_BYTES_MAX)
        _require("batch_records", self.batch_records, at_least=1, at_most=BATCH_RECORDS_MAX)
        _require("linger_s", self.linger_s, at_least=0)
        _require("gather_s", self.gather_s, at_least=0)
        _require("slots", self.slots, at_least=1)
        _require("in_flight_bytes", self.in_flight_bytes, at_least=1)
        _require("buffer_bytes", self.buffer_bytes, at_least=1)
        _require("silence_s", self.silence_s, at_least=0.001)
        _require("idle_s", self.idle_s, at_least=0.001)
        if self.compression not in COMPRESSIONS:
            allowed = ", ".join(COMPRESSIONS)
            raise InvalidArgument(f"compression is {self.compression!r}; it must be of {allowed}")
        if not self.timeout_s > self.linger_s:
            raise InvalidArgument("timeout_s must be longer than linger_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReaderConfig:
    """How patient a reader is."""

    silence_s: float = 3.0
    """A stream that says nothing for so long is given up for another replica; one that was just
    opened, after a second. Several times what a server lets pass between heartbeats."""
    timeout_s: float = 30.0
    """A read fails when for so long no replica could serve what is known to be there."""
    idle_check_s: float = 3.0
    """A follower that has received nothing for so long asks another replica whether there is more,
    for its own may be cut off from the sequencer."""

    def __post_init__(self) -> None:
        _require("silence_s", self.silence_s, at_least=0.001)
        _require("timeout_s", self.timeout_s, at_least=0.001)
        _require("idle_check_s", self.idle_check_s, at_least=0.001)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientConfig:
    """Calls other than appends and reads, and what is kept for logs that are not in use."""

    timeout_s: float = 10.0
    """A whole call, its retries included."""
    attempt_timeout_s: float = 3.0
    """One attempt at one address, before another address is tried."""
    backoff_min_s: float = 0.05
    """Mean wait before the first retry."""
    backoff_max_s: float = 1.0
    """Mean wait before the later ones."""
    idle_sessions_max: int = 512
    """Append sessions that have nothing to do and are kept, over all logs; beyond so many the one
    that was used longest ago is ended, and the next append to its log opens another."""
    logs_kept_max: int = 1_024
    """Logs of which the `Log` is kept although nobody holds it, the last that were asked for: so
    that `cluster.log(name).append(...)` again and again has one session."""

    def __post_init__(self) -> None:
        _require("timeout_s", self.timeout_s, at_least=0.001)
        _require("attempt_timeout_s", self.attempt_timeout_s, at_least=0.001)
        _require("backoff_min_s", self.backoff_min_s, at_least=0, at_most=self.backoff_max_s)
        _require("idle_sessions_max", self.idle_sessions_max, at_least=1)
        _require("logs_kept_max", self.logs_kept_max, at_least=1)


def _require(name: str, value: float, *, at_least: float, at_most: float = float("inf")) -> None:
    if not at_least <= value <= at_most:
        raise InvalidArgument(f"{name} is {value}; it must lie between {at_least} and {at_most}")
