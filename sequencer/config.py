"""Settings of the sequencer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sharedlog.errors import InvalidArgument
from sharedlog.limits import BATCH_BYTES_MAX, MESSAGE_BYTES_MAX, MIB

WATCH_EVERY_S: Final = 0.5
"""So often the sequencer looks for logs that do not get on, and for links without use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SequencerConfig:
    """Settings of the sequencer; serialisable values only."""

    session_bytes_max: int = 32 * MIB
    """Bytes of one append session that are admitted and not yet acknowledged. Beyond it the session
    is not read, and flow control holds its client. A lone batch always fits."""

    in_flight_bytes_max: int = 256 * MIB
    """The same for all sessions and logs of this process. Beyond it sessions wait; single appends
    and new sessions are refused as overloaded. At least `session_bytes_max`."""

    replica_bytes_max: int = 32 * MIB
    """Bytes that one log server was sent or is to be sent and has not acknowledged. Beyond it the
    server is skipped until it has caught up to half. A lone batch always fits."""

    store_message_bytes: int = 1 * MIB
    """Batches that wait for one log server go together up to this size; a larger one alone."""

    tail_push_delay_s: float = 0.02
    """The committed tail goes to a log server with the next batch, or alone: at once if somebody
    reads the log there, else after this time."""

    connect_timeout_s: float = 2.0
    """A log server that does not answer a new stream's greeting in this time is tried anew."""

    silence_max_s: float = 3.0
    """A log server that owes an answer and sends none for so long loses its replication stream. It
    is then made anew: a connection that was cut without a word never ends by itself."""

    reconnect_min_s: float = 0.05
    """First pause before a broken replication stream is made anew; doubles each time."""

    reconnect_max_s: float = 1.0
    """Longest such pause. At least `reconnect_min_s`."""

    refused_retry_s: float = 0.5
    """Pause before a log server that refused stores, e.g. with a full disk, is tried again; twenty
    of them if it could not even open a log that rests."""

    overloaded_retry_s: float = 0.2
    """What an overloaded answer tells the caller to wait."""

    producers_max: int = 10_000
    """Producers without a session, of all logs, whose last batches are remembered: should one come
    back to repeat a batch, nothing has to be searched in the log."""

    searches_max: int = 8
    """Searches of logs for a producer's batches at once; sessions that need another wait to be
    opened."""

    search_timeout_s: float = 10.0
    """A session whose search takes longer is not opened. The next try goes on where it stopped."""

    recoveries_max: int = 64
    """Logs that are taken over at once whose state is being read from them."""

    named_producer_expiry_s: float = 7 * 86_400.0
    """A named producer that has written nothing to a log for so long, by the log's timestamps, is
    forgotten: should it come back, it begins anew. So are the longest idle of more than 1,000."""

    move_wait_s: float = 5.0
    """A log that is being moved, or was sealed, admits nothing. So long do its sessions, and those
    that open, wait to hear who orders it then; and so long may a move that was announced take
    before appends are admitted again."""

    quorum_timeout_s: float = 1.0
    """When nothing of a log was committed for so long, though something is in flight, the log
    servers that keep it back are reported, to be replaced."""

    replace_after_s: float = 30.0
    """A log server that a log in use has skipped for so long is reported likewise."""

    link_idle_s: float = 60.0
    """The replication stream to a log server that no log uses any more is closed after this
    time."""

    def validate(self) -> None:
        """Check the fields against each other.

        Raises:
            InvalidArgument: names the fields and the rule.
        """
        if self.session_bytes_max < BATCH_BYTES_MAX:
            raise InvalidArgument(f"session_bytes_max must be at least {BATCH_BYTES_MAX}")
        if self.in_flight_bytes_max < self.session_bytes_max:
            raise InvalidArgument("in_flight_bytes_max must be at least session_bytes_max")
        if self.replica_bytes_max < BATCH_BYTES_MAX:
            raise InvalidArgument(f"replica_bytes_max must be at least {BATCH_BYTES_MAX}")
        if not 1 <= self.store_message_bytes <= MESSAGE_BYTES_MAX - BATCH_BYTES_MAX:
            limit = MESSAGE_BYTES_MAX - BATCH_BYTES_MAX
            raise InvalidArgument(f"store_message_bytes must be between 1 and {limit}")
        if not 0 < self.reconnect_min_s <= self.reconnect_max_s:
            raise InvalidArgument("reconnect_min_s must be positive, reconnect_max_s not below it")
        if min(self.producers_max, self.searches_max, self.recoveries_max) < 1:
            raise InvalidArgument(
                "producers_max, searches_max and recoveries_max must be at least 1"
            )
        if min(self.quorum_timeout_s, self.replace_after_s, self.link_idle_s) < WATCH_EVERY_S:
            raise InvalidArgument(
                "quorum_timeout_s, replace_after_s and link_idle_s are looked at every "
                f"{WATCH_EVERY_S:g} s, and must not be shorter"
            )
        pauses = (
            *(self.connect_timeout_s, self.silence_max_s, self.tail_push_delay_s),
            *(self.refused_retry_s, self.overloaded_retry_s),
            *(self.search_timeout_s, self.move_wait_s, self.named_producer_expiry_s),
        )
        if min(pauses) <= 0:
            raise InvalidArgument("time-outs and pauses must be positive")
