"""Why logs are reconfigured, in so few words that metrics can count by them.

The `reason` beside it is a sentence for people.
"""

from __future__ import annotations

from enum import StrEnum


class Cause(StrEnum):
    """Why one segment of a log is ended and another begun."""

    FAILOVER = "failover"
    """The process that ordered the log is gone, or does not answer."""

    SEALED = "sealed"
    """Somebody had sealed the segment, and nobody had ended it."""

    REPLACE = "replace"
    """Log servers of its nodeset are away, full or lost."""

    DRAIN = "drain"
    """A node that it uses is drained."""

    HAND_OVER = "hand-over"
    """The process that orders it is told to stop."""

    BALANCE = "balance"
    """Its node orders more logs than another."""

    HELP = "help"
    """Another node asked for it, which could not do it itself."""

    OPERATOR = "operator"
    """Somebody asked for it."""

    OTHER = "other"
    """Whoever asked for it did not say."""
