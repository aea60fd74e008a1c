"""When a log's committed records are to be archived: by size, or by age.

How many bytes wait is not known without reading them. It is guessed from their number and the size
of the records that were archived last, or that were committed if none were yet; a wrong guess makes
an object smaller or later, and the next guess better. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sharedlog.ids import Offset

RECORD_BYTES_GUESS: Final = 200.0


@dataclass(slots=True)
class Backlog:
    """What of one log waits to be archived."""

    archived_end: Offset
    committed: Offset
    since_s: float | None = None  # monotonic; when the oldest of it was first seen to wait
    record_bytes: float = RECORD_BYTES_GUESS
    has_archived: bool = False  # since it is looked at

    def look(self, archived_end: Offset, committed: Offset, now_s: float) -> None:
        """How far the log is by now."""
        if archived_end > self.archived_end or committed <= archived_end:
            self.since_s = None
        self.archived_end, self.committed = archived_end, max(committed, archived_end)
        if self.committed > archived_end and self.since_s is None:
            self.since_s = now_s

    def archived(self, records: int, size: int) -> None:
        """An object was made."""
        if records:
            self.record_bytes, self.has_archived = size / records, True

    def committed_mean(self, record_bytes: float | None) -> None:
        """Mean size of what was committed of late, if it is known."""
        if record_bytes is not None and not self.has_archived:
            self.record_bytes = record_bytes

    @property
    def bytes_guess(self) -> int:
        """Bytes that wait, by guess."""
        return int((self.committed - self.archived_end) * self.record_bytes)

    def is_due(self, *, object_bytes: int, after_s: float, now_s: float) -> bool:
        """Enough waits for an object, or something waits for long."""
        if self.since_s is None:
            return False
        return self.bytes_guess >= object_bytes or now_s - self.since_s >= after_s
