"""Which sets of log servers decide what, by counting alone.

`metadata/core.py` says which pairs (replicas, write quorum) are taken at all; this says what
follows from one that was. Two facts carry the protocol, and `tests/loglet/test_quorum.py` checks
them over every set of up to seven servers:

- every write quorum meets every seal quorum: once a seal quorum is sealed, nothing more is
  committed, and whatever was committed is held by one of the sealed;
- two write quorums meet: a find-tail confirmed by a write quorum of unsealed servers proves that no
  seal quorum was complete.

Two *seal* quorums need not meet, which is why a find-tail asks a write quorum.
"""

from __future__ import annotations

from collections.abc import Sequence

from metadata.core import check_quorum, majority
from sharedlog.ids import Offset

__all__ = ["check_quorum", "committed_tail", "majority", "seal_quorum"]


def seal_quorum(replicas: int, write_quorum: int) -> int:
    """Size of the smallest sets that meet every write quorum."""
    assert 1 <= write_quorum <= replicas
    return replicas - write_quorum + 1


def committed_tail(acked: Sequence[Offset], write_quorum: int) -> Offset:
    """The highest point that a write quorum has reached.

    `acked` has one entry for each replica: the end of its unbroken run of acknowledged batches,
    exclusive. The answer is the `write_quorum`-th largest of them.
    """
    assert 1 <= write_quorum <= len(acked)
    return sorted(acked, reverse=True)[write_quorum - 1]
