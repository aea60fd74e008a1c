"""Rounds that make a tail linearizable (DESIGN.md §5).

The sequencer notes its committed tail and asks every log server of the nodeset whether it has
sealed the loglet. Once a *write quorum* has said that it has not, no seal quorum can have been
sealed before the round began, so no successor can have acknowledged anything by then: the noted
tail is at or above everything that was acknowledged before the round began. (Two seal quorums need
not meet, so a seal quorum's word would not be enough.)

One round serves many callers, but only those who came before any of its questions was sent. Who
comes while a round runs waits for the next: joining would hand it a tail that was noted before it
asked.

No I/O: events in, what to send and to answer out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from metadata.quorum import QuorumRule
from sharedlog.ids import Offset


@dataclass(slots=True)
class AskUnsealed:
    """Ask these replicas (indexes into the nodeset) whether they have sealed the loglet."""

    round_id: int
    replicas: Sequence[int]


@dataclass(slots=True)
class AnswerTail:
    """Answer these callers."""

    callers: Sequence[object]
    tail: Offset


FindTailEffect = AskUnsealed | AnswerTail
_NONE: Final = Offset(0)


@dataclass(slots=True)
class FindTailRounds:
    """The rounds of one loglet; at most one runs at a time."""

    rule: QuorumRule
    round_id: int = 0
    _noted: Offset = _NONE  # meaningful while a round runs
    _running: list[object] = field(default_factory=list)
    _waiting: list[object] = field(default_factory=list)
    # Invariant: members of the nodeset, no write quorum while a round runs.
    _confirmed: set[int] = field(default_factory=set)

    def on_find_tail(self, caller: object, committed: Offset) -> list[FindTailEffect]:
        """A caller wants the tail; `committed` is the committed tail now."""
        self._waiting.append(caller)
        return [] if self._running else self._begin(committed)

    def on_unsealed(self, replica: int, round_id: int, committed: Offset) -> list[FindTailEffect]:
        """A replica had not sealed the loglet when it answered; an older round's is ignored."""
        if not self._running or round_id != self.round_id:
            return []
        self._confirmed.add(replica)
        if not self.rule.is_write_quorum(self._confirmed):
            return []
        assert self._noted <= committed, "the committed tail ran backwards"
        answer = AnswerTail(self._running, self._noted)
        self._running = []
        return [answer, *(self._begin(committed) if self._waiting else [])]

    def on_link_ready(self, replica: int) -> list[FindTailEffect]:
        """The stream to a replica is new: what it was asked before may be lost."""
        if not self._running or replica in self._confirmed:
            return []
        return [AskUnsealed(self.round_id, [replica])]

    def on_withdrawn(self, caller: object, committed: Offset) -> list[FindTailEffect]:
        """A caller waits no longer; a round without callers makes room for the next."""
        for callers in (self._running, self._waiting):
            if caller in callers:
                callers.remove(caller)
        return self._begin(committed) if self._waiting and not self._running else []

    def drop_all(self) -> list[object]:
        """The loglet is over: returns every caller, for the shell to refuse."""
        callers = self._running + self._waiting
        self._running, self._waiting = [], []
        return callers

    def _begin(self, committed: Offset) -> list[FindTailEffect]:
        assert not self._running, "one round at a time"
        self.round_id += 1
        self._noted = committed
        self._running, self._waiting = self._waiting, []
        self._confirmed = set()
        return [AskUnsealed(self.round_id, range(self.rule.replicas))]
