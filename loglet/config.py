"""Settings of the log server."""

from __future__ import annotations

from dataclasses import dataclass

from sharedlog.errors import InvalidArgument
from sharedlog.limits import BATCH_BYTES_MAX, MESSAGE_BYTES_MAX, MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class LogServerConfig:
    """Settings of the log server; serialisable values only."""

    queue_bytes_max: int = 32 * MIB
    """Bytes of stores that wait for the writer. Beyond it no replication stream is read, and flow
    control holds the sequencers. A lone message always fits. At least one message."""

    commit_bytes_max: int = 16 * MIB
    """Bytes of stores that go into one commit; a larger message goes alone. Bounds how long a seal
    or a small append waits behind bulk. At most `queue_bytes_max`."""

    pending_seals_max: int = 4_096
    """Seals, and messages that tell segments' ends or trim, that wait for the writer; further ones
    are refused as overloaded. (Repairs that wait are bounded by `queue_bytes_max`.)"""

    tail_cache_bytes: int = 16 * MIB
    """Newest batches that are kept in memory, so that followers do not touch the disk; beside them
    those of the running commit. 0 keeps only the latter."""

    page_cache_bytes: int = 0
    """Newest part of the store that stays in the operating system's page cache after it was synced;
    0 leaves that to the operating system. For several nodes on one machine; see
    `loglet/page_cache.py`."""

    open_reads_max: int = 4_096
    """Read streams at once; further ones are refused as overloaded."""

    read_message_bytes: int = 1 * MIB
    """Batches are sent to readers in messages of up to this size; a larger batch goes alone."""

    read_threads: int = 2
    """Threads that read the store, so that a page that must come from disk never stops the
    process."""

    heartbeat_s: float = 1.0
    """An idle read stream tells the committed tail this often."""

    sweep_wait_s: float = 0.02
    """What was trimmed is deleted a little with each commit; when none comes along for so long,
    with one of its own. Positive."""

    overloaded_retry_s: float = 0.5
    """What an overloaded answer tells the caller to wait."""

    store_bytes_max: int = 0
    """Size that the store may reach, reserve included; 0: as large as its file system lets it be. A
    store that has grown beyond a lowered limit is read-only."""

    reserve_bytes: int = 64 * MIB
    """Room that is kept for seals and other records of loglets, and half of it for repairs: batches
    are refused when less would be left, of `store_bytes_max` or on the file system. At most half of
    `store_bytes_max`."""

    def validate(self) -> None:
        """Check the fields against each other.

        Raises:
            InvalidArgument: names the fields and the rule.
        """
        if self.queue_bytes_max < MESSAGE_BYTES_MAX:
            raise InvalidArgument(f"queue_bytes_max must be at least {MESSAGE_BYTES_MAX}")
        if not BATCH_BYTES_MAX <= self.commit_bytes_max <= self.queue_bytes_max:
            raise InvalidArgument(
                f"commit_bytes_max must be between {BATCH_BYTES_MAX} and queue_bytes_max"
            )
        if not 1 <= self.read_message_bytes <= MESSAGE_BYTES_MAX - BATCH_BYTES_MAX:
            limit = MESSAGE_BYTES_MAX - BATCH_BYTES_MAX
            raise InvalidArgument(f"read_message_bytes must be between 1 and {limit}")
        if min(self.pending_seals_max, self.open_reads_max) < 1:
            raise InvalidArgument("pending_seals_max and open_reads_max must be at least 1")
        if not 1 <= self.read_threads <= 64:
            raise InvalidArgument("read_threads must be between 1 and 64")
        if min(self.heartbeat_s, self.overloaded_retry_s, self.sweep_wait_s) <= 0:
            raise InvalidArgument("heartbeat_s, overloaded_retry_s, sweep_wait_s must be positive")
        sizes = ("tail_cache_bytes", "page_cache_bytes", "store_bytes_max", "reserve_bytes")
        if min(getattr(self, name) for name in sizes) < 0:
            raise InvalidArgument(f"{', '.join(sizes)} must not be negative")
        if self.store_bytes_max and self.store_bytes_max < max(2 * self.reserve_bytes, MIB):
            raise InvalidArgument(
                f"store_bytes_max must be 0, or at least twice reserve_bytes and {MIB}"
            )
