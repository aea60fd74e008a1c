"""Short names of all that `status` may find wrong: stable, for scripts, alerts and the handbook.

Each has a section of its name in docs/operations.md that says what it means and what to do. A code
is never given another meaning; one that is no longer told stays reserved.
"""

from __future__ import annotations

from enum import StrEnum


class ProblemCode(StrEnum):
    """What is wrong; the problem's subject says with what."""

    NODE_DOWN = "node-down"
    """A node does not answer."""

    WRONG_NODE = "wrong-node"
    """Another node answers at a node's address."""

    STORE_FULL = "store-full"
    """A log server takes no stores for want of room."""

    STORE_REPLACED = "store-replaced"
    """A node serves another store than the one that segments name."""

    STORE_LOST = "store-lost"
    """A store that segments name was declared lost."""

    METADATA_AWAY = "metadata-away"
    """The metadata store does not answer."""

    METADATA_DAMAGED = "metadata-damaged"
    """A value in the metadata store can't be read."""

    NO_CONTROLLER = "no-controller"
    """No node that answers holds the controller's lease."""

    WORK_WAITS = "work-waits"
    """Something that should go on by itself can't."""

    NO_APPENDS = "no-appends"
    """A log takes no appends now."""

    RECONFIGURATION_FAILED = "reconfiguration-failed"
    """A log could not be reconfigured the last time that it was tried."""

    UNREPAIRABLE = "unrepairable"
    """A log takes no appends, and will not before a person has decided."""

    RECORDS_LOST = "records-lost"
    """No replica of a closed segment has some of its records."""

    UNDER_REPLICATED = "under-replicated"
    """A log's open segment has fewer copies than wanted."""

    HISTORY_UNDER_REPLICATED = "history-under-replicated"
    """Closed segments of a log have a copy on a log server that is away or lost."""

    MORE_PROBLEMS = "more-problems"
    """Further problems of logs, which are not told one by one."""
