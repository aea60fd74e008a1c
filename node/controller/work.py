"""What the node is busy with, for people to look at: `sharedlog status` shows it.

A piece of work is on the board from its beginning to its end and says one line of itself meanwhile.
Nothing is decided by what stands here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from sharedlog.ids import NodeId
from sharedlog.v1 import cluster_pb2

SHOWN_MAX: Final = 100
"""Pieces of work that one node tells of; those that began first."""


@dataclass(slots=True, eq=False)
class Job:
    """One piece of work. Whoever does it sets the fields as it goes on."""

    kind: str
    subject: str
    message: str = ""
    done: int = 0
    total: int = 0


class WorkBoard:
    """The node's work, in the order in which it began."""

    def __init__(self, node_id: NodeId) -> None:
        self._node_id = node_id
        self._jobs: dict[Job, None] = {}  # Invariant: as many as tasks at work, which are bounded

    @contextmanager
    def doing(self, kind: str, subject: str, message: str = "", *, total: int = 0) -> Iterator[Job]:
        """A piece of work that lasts as long as the block."""
        job = self.begin(kind, subject, message, total=total)
        try:
            yield job
        finally:
            self.end(job)

    def begin(self, kind: str, subject: str, message: str = "", *, total: int = 0) -> Job:
        """A piece of work that lasts until `end`."""
        job = Job(kind, subject, message, total=total)
        self._jobs[job] = None
        return job

    def end(self, job: Job) -> None:
        """It is over. Idempotent."""
        self._jobs.pop(job, None)

    @contextmanager
    def if_told(self, kind: str, subject: str) -> Iterator[Callable[[str], None]]:
        """As `doing`, but on the board only once the function that is yielded was called.

        For what is looked at often and seldom has anything to do.
        """
        begun: list[Job] = []

        def told(message: str) -> None:
            if not begun:
                begun.append(self.begin(kind, subject))
            begun[0].message = message

        try:
            yield told
        finally:
            for job in begun:
                self.end(job)

    def __len__(self) -> int:
        return len(self._jobs)

    def shown(self) -> list[cluster_pb2.Work]:
        """The first of them, as messages."""
        return [
            cluster_pb2.Work(
                kind=job.kind,
                subject=job.subject,
                message=job.message,
                done=job.done,
                total=job.total,
                node_id=self._node_id,
            )
            for job, _ in zip(self._jobs, range(SHOWN_MAX), strict=False)
        ]
