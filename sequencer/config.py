"""Settings of the sequencer."""

from __future__ import annotations

from dataclasses import dataclass

from sharedlog.errors import InvalidArgument
from sharedlog.limits import BATCH_BYTES_MAX, MESSAGE_BYTES_MAX, MIB


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
    """Pause before a log server that refused stores, e.g. with a full disk, is tried again."""

    overloaded_retry_s: float = 0.2
    """What an overloaded answer tells the caller to wait."""

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
        if (
            min(
                self.connect_timeout_s,
                self.silence_max_s,
                self.tail_push_delay_s,
                self.refused_retry_s,
                self.overloaded_retry_s,
            )
            <= 0
        ):
            raise InvalidArgument("time-outs and pauses must be positive")
