"""Which log servers keep a log from getting on: decided from what its core says, and the time.

Pure, and called now and then for the loglets that have had traffic lately, so that it costs an
append nothing. It names log servers, no more: whether they are to be replaced is decided elsewhere,
where more is known.
"""

from __future__ import annotations

from sequencer.config import SequencerConfig
from sequencer.loglets import ActiveLoglet
from sharedlog.ids import NodeId


class Watch:
    """The loglets with traffic."""

    def __init__(self, config: SequencerConfig) -> None:
        self._config = config
        self._watched: list[ActiveLoglet] = []

    def __len__(self) -> int:
        return len(self._watched)

    def add(self, active: ActiveLoglet) -> None:
        """It has traffic."""
        active.watched = True
        self._watched.append(active)

    def find_away(self, now_s: float) -> list[tuple[ActiveLoglet, list[NodeId]]]:
        """The loglets that want other log servers, and which they want replaced.

        Either nothing was committed for `quorum_timeout_s` though something is in flight: those are
        named that have not acknowledged the oldest batch. Not those that were sent it and answer
        others meanwhile: they answer in order, so they are busy, and with a thousand logs that want
        other servers all at once they would be busier. Or one was skipped for `replace_after_s`.
        Said again after as long a time.
        """
        found = []
        kept = []
        for active in self._watched:
            if self._rests(active, now_s):
                active.watched = False
                active.out_since_s.clear()
                continue
            kept.append(active)
            replicas = self._late(active, now_s) or self._skipped(active, now_s)
            if replicas:
                nodes = [active.links[replica].replica.node_id for replica in replicas]
                found.append((active, nodes))
        self._watched = kept
        return found

    def _rests(self, active: ActiveLoglet, now_s: float) -> bool:
        if active.core.ended is not None:
            return True
        idle = not active.core.in_flight
        return idle and now_s - active.traffic_s > self._config.replace_after_s

    def _late(self, active: ActiveLoglet, now_s: float) -> list[int]:
        oldest = active.core.oldest
        if oldest is None:
            return []
        since_s = max(active.advanced_s, active.oldest_admitted_s)
        if now_s - since_s <= self._config.quorum_timeout_s:
            return []
        away = [
            replica
            for replica in active.core.behind()
            if not active.core.in_step(replica)
            or active.links[replica].silent_s(now_s) > self._config.quorum_timeout_s
        ]
        if away:
            active.advanced_s = now_s  # for the next time that it is said
        return away

    def _skipped(self, active: ActiveLoglet, now_s: float) -> list[int]:
        away = []
        since_s = active.out_since_s
        for replica in range(len(active.links)):
            if active.core.in_step(replica):
                since_s.pop(replica, None)
            elif now_s - since_s.setdefault(replica, now_s) > self._config.replace_after_s:
                since_s[replica] = now_s
                away.append(replica)
        return away
