"""Which sets of log servers decide what: the one place where quorums are judged.

A **write quorum** commits a batch: at least `write_quorum` members of the nodeset, which also span
enough regions, zones or nodes if the segment has a *spread*. A **seal quorum** is any set that
every write quorum meets, so a set whose complement holds no write quorum.

What the protocol rests on, checked over every set by `tests/metadata/test_quorum.py`:

- every write quorum meets every seal quorum: once a seal quorum is sealed, nothing more is
  committed, and whatever was committed is held by one of the sealed;
- two write quorums meet, and each contains a seal quorum: a find-tail confirmed by a write quorum
  of unsealed servers proves that no seal quorum was complete, and what can append can also
  reconfigure. Two *seal* quorums need not meet;
- both kinds are monotone: more members never spoil a quorum.

All of it needs `2 * write_quorum > replicas` (`metadata/core.py` takes nothing else); a spread only
makes write quorums fewer and seal quorums more. Both are had at all only if the whole nodeset is a
write quorum, which is checked when a segment is made.

A location is a path like "eu-1.zone-a". Its levels: `zone` is the whole path, `region` all but its
last part (of a path with one part: nothing, the same for all), `node` the node itself. Judged are
the locations that the segment's nodeset names. Were it the nodes' present ones, a node that is
labelled anew could make a seal quorum miss a write quorum.

Spreads are written "zone:2,node:3" (`parse_spread`).

Pure functions of small sets; members are indexes into the nodeset.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from metadata.records import Replica, Segment, Spread
from sharedlog.errors import InvalidArgument
from sharedlog.ids import Offset

LEVELS: Final = ("node", "region", "zone")
"""Levels of a spread, in the order in which a `Spread` names them."""


@dataclass(frozen=True, slots=True)
class QuorumRule:
    """How the members of one nodeset decide; made from a segment, by its own locations."""

    replicas: int
    write_quorum: int
    spread: Spread = ()
    places: tuple[tuple[str, ...], ...] = ()  # a row for each pair of `spread`: place by member

    @classmethod
    def of(cls, segment: Segment) -> QuorumRule:
        """The rule of a segment."""
        return cls.make(segment.nodeset, segment.write_quorum, segment.spread)

    @classmethod
    def make(cls, nodeset: Sequence[Replica], write_quorum: int, spread: Spread = ()) -> QuorumRule:
        """The rule of a nodeset."""
        places = tuple(tuple(place_of(it, level) for it in nodeset) for level, _ in spread)
        return cls(len(nodeset), write_quorum, spread, places)

    def is_write_quorum(self, members: Collection[int]) -> bool:
        """So many acknowledgements commit a batch."""
        chosen = set(members)
        assert all(0 <= member < self.replicas for member in chosen)
        return len(chosen) >= self.write_quorum and all(
            len({places[member] for member in chosen}) >= count
            for (_, count), places in zip(self.spread, self.places, strict=True)
        )

    def is_seal_quorum(self, members: Collection[int]) -> bool:
        """Every write quorum has a member in common with these."""
        return not self.is_write_quorum(set(range(self.replicas)).difference(members))

    def survives(self, level: str) -> bool:
        """Whichever place of this level goes away, a write quorum is left."""
        at = [name for name, _ in self.spread].index(level)
        places = self.places[at]
        return all(
            self.is_write_quorum([it for it in range(self.replicas) if places[it] != lost])
            for lost in set(places)
        )

    def committed_tail(self, acked: Sequence[Offset]) -> Offset:
        """The highest point that a write quorum has reached.

        `acked` has one entry for each member: the end of its unbroken run of acknowledged batches,
        exclusive. The whole nodeset must be a write quorum.
        """
        assert len(acked) == self.replicas
        if not self.spread:
            return sorted(acked, reverse=True)[self.write_quorum - 1]
        order = sorted(range(self.replicas), key=lambda member: -acked[member])
        for count in range(self.write_quorum, self.replicas + 1):
            if self.is_write_quorum(order[:count]):
                return acked[order[count - 1]]
        raise AssertionError("the whole nodeset is no write quorum")


def place_of(replica: Replica, level: str) -> str:
    """Where a replica is, at one level of its location."""
    if level == "node":
        return replica.node_id
    if level == "zone":
        return replica.location
    assert level == "region", f"no level {level}"
    return replica.location.rpartition(".")[0]


def make_spread(pairs: Iterable[tuple[str, int]]) -> Spread:
    """A spread of (level, count) pairs in any order. Raises `InvalidArgument`."""
    found: dict[str, int] = {}
    for level, count in pairs:
        if level not in LEVELS:
            raise InvalidArgument(
                f"spread: {level!r} is no level; the levels are region, zone, node"
            )
        if level in found:
            raise InvalidArgument(f"spread: {level} is named twice")
        if count < 1:
            raise InvalidArgument(f"spread {level}:{count}: the count is at least 1")
        found[level] = count
    return tuple((level, found[level]) for level in LEVELS if level in found)


def parse_spread(text: str) -> Spread:
    """A spread as a person writes it, e.g. "zone:2,node:3"; empty: none.

    Raises:
        InvalidArgument: it is no spread; the message says why.
    """
    pairs = []
    for part in text.split(",") if text.strip() else ():
        level, colon, count = part.strip().partition(":")
        if not (colon and count.isascii() and count.isdigit()):
            raise InvalidArgument(f"spread: {part.strip()!r} is not of the form level:count")
        pairs.append((level, int(count)))
    return make_spread(pairs)


def format_spread(spread: Spread) -> str:
    """What `parse_spread` takes."""
    return ",".join(f"{level}:{count}" for level, count in spread)
