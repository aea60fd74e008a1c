"""Ids and offsets, as types of their own.

No bare `int` or `str` crosses a module boundary where one of these is meant. They cost nothing at
run time. Everything that two packages name lives here, at the bottom of the import order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NewType

LogId = NewType("LogId", int)
"""Unsigned 64 bits, random, unique for ever; a log made anew under an old name has another."""

Offset = NewType("Offset", int)
"""Place of a record in its log, from 0, dense. A *tail* is the first unwritten offset."""

NodeId = NewType("NodeId", str)
"""Name of a node, e.g. "n1"; unique within the cluster."""

StorageId = NewType("StorageId", str)
"""Identity of one log server's store, 32 hex digits, random, written when the store is created."""

ARCHIVE_PREFIX: Final = "archive@"
"""How the storage_id begins under which a node serves what is archived: no store's does."""

Generation = NewType("Generation", int)
"""Counts a node's process starts, from 1."""


@dataclass(frozen=True, slots=True, order=True)
class LogletId:
    """One loglet: segment `segment_index` (from 0, never reused) of the log `log_id`."""

    log_id: LogId
    segment_index: int

    def __str__(self) -> str:
        return f"{self.log_id:016x}.{self.segment_index}"


@dataclass(frozen=True, slots=True, order=True)
class SequencerId:
    """One sequencer process in one life: a restarted process is another sequencer."""

    node_id: NodeId
    generation: Generation

    def __str__(self) -> str:
        return f"{self.node_id}.{self.generation}"
