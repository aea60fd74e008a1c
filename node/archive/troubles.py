"""Logs that can't be archived now, as `sharedlog status` shows them: one line for all of a node."""

from __future__ import annotations

from node.controller.work import Job, WorkBoard
from node.problems import WAITS
from sharedlog.ids import LogId


class Troubles:
    """The logs whose last attempt failed, oldest trouble first, on the node's board."""

    def __init__(self, board: WorkBoard) -> None:
        self._board = board
        self._errors: dict[LogId, tuple[str, str]] = {}  # name, error
        self._job: Job | None = None

    def __len__(self) -> int:
        return len(self._errors)

    def add(self, log_id: LogId, name: str, error: str) -> None:
        """An attempt failed; it is made again."""
        self._errors[log_id] = name, error
        self._show()

    def remove(self, log_id: LogId) -> None:
        """One succeeded, or the log is somebody else's now. Idempotent."""
        if self._errors.pop(log_id, None) is not None:
            self._show()

    def _show(self) -> None:
        if not self._errors:
            if self._job is not None:
                self._board.end(self._job)
            self._job = None
            return
        name, error = next(iter(self._errors.values()))
        if self._job is None:
            self._job = self._board.begin("archive", "")
        others = len(self._errors) - 1
        more = f" and {others:,} {'other' if others == 1 else 'others'}" if others else ""
        self._job.subject, self._job.message = f"log {name}{more}", f"{WAITS}{error}"
