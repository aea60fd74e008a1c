"""Quorum rules, over every set of up to seven servers, with and without spreads. Field note 4.

Sets are bit masks: member i is bit i. What is proved of `QuorumRule` is told by its meaning (how
many members, in how many places), worked out here a second time with masks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations, pairwise, product

import pytest

from metadata.core import check_nodeset, check_quorum, majority
from metadata.quorum import QuorumRule, format_spread, make_spread, parse_spread, place_of
from metadata.records import Replica, Segment, Spread
from sharedlog.errors import InvalidArgument
from sharedlog.ids import Generation, NodeId, Offset, SequencerId, StorageId
from sharedlog.limits import REPLICAS_MAX


def nodeset_of(locations: tuple[str, ...]) -> tuple[Replica, ...]:
    return tuple(
        Replica(node_id=NodeId(f"n{i}"), storage_id=StorageId(f"s{i}"), location=location)
        for i, location in enumerate(locations)
    )


def layouts(replicas: int) -> Iterator[tuple[str, ...]]:
    """Up to three zones, in every division into regions: every assignment up to renaming."""
    for zones in range(1, min(replicas, 3) + 1):
        for cuts in combinations(range(1, replicas), zones - 1):
            sizes = [after - before for before, after in pairwise((0, *cuts, replicas))]
            if sizes != sorted(sizes):
                continue  # the same zones in another order
            for regions in sorted({it[:zones] for it in ("aaa", "aab", "aba", "abb", "abc")}):
                names = [f"{region}.z{i}" for i, region in enumerate(regions)]
                yield tuple(
                    name for name, size in zip(names, sizes, strict=True) for _ in range(size)
                )


def spreads(replicas: int) -> Iterator[Spread]:
    """Every demand for zones and regions up to three, and for nodes, alone and together.

    Not for one zone or one region: that is no demand.
    """
    for node, region, zone in product((0, replicas - 1, replicas), (0, 2, 3), (0, 2, 3)):
        asked = {"node": node, "region": region, "zone": zone}
        yield make_spread((level, count) for level, count in asked.items() if count > 0)


@dataclass(frozen=True, slots=True)
class Case:
    nodeset: tuple[Replica, ...]
    write_quorum: int
    spread: Spread

    @property
    def replicas(self) -> int:
        return len(self.nodeset)

    @property
    def rule(self) -> QuorumRule:
        return QuorumRule.make(self.nodeset, self.write_quorum, self.spread)

    def commits(self) -> list[bool]:
        """By mask: would this set commit a batch? Worked out from the words of the rule."""
        demands = []
        for level, count in self.spread:
            masks: dict[str, int] = {}
            for i, replica in enumerate(self.nodeset):
                where = replica.location if level == "zone" else replica.location.split(".")[0]
                where = replica.node_id if level == "node" else where
                masks[where] = masks.get(where, 0) | 1 << i
            demands.append((list(masks.values()), count))
        return [
            mask.bit_count() >= self.write_quorum
            and all(sum(bool(mask & m) for m in masks) >= count for masks, count in demands)
            for mask in range(1 << self.replicas)
        ]


def members(mask: int) -> list[int]:
    return [i for i in range(REPLICAS_MAX) if mask >> i & 1]


def minimal(masks: list[bool]) -> list[int]:
    """Of a family of sets: those that are no longer in it when any one member leaves."""
    return [
        mask
        for mask, held in enumerate(masks)
        if held and not any(masks[mask & ~(1 << i)] for i in members(mask))
    ]


def is_monotone(masks: list[bool], replicas: int) -> bool:
    """Members that join never spoil a set."""
    return all(
        masks[mask | 1 << i] for mask, held in enumerate(masks) if held for i in range(replicas)
    )


def cases(replicas: int) -> Iterator[Case]:
    seen = set()
    for write_quorum in range(majority(replicas), replicas + 1):
        for locations, spread in product(layouts(replicas), spreads(replicas)):
            case = Case(nodeset_of(locations), write_quorum, spread)
            key = (write_quorum, case.rule.places, spread)
            if key not in seen:
                seen.add(key)
                yield case


def possible(replicas: int) -> list[Case]:
    """The cases in which anything can commit at all."""
    return [case for case in cases(replicas) if case.commits()[-1]]


@pytest.mark.slow
@pytest.mark.parametrize("replicas", range(1, REPLICAS_MAX + 1))
def test_what_the_protocol_rests_on(replicas: int) -> None:
    """Field note 4, over every set of every case.

    A set is a write quorum exactly if it has the members and the places; a set is a seal quorum
    exactly if every write quorum meets it. Both are monotone. Write quorums meet each other, and
    each is a seal quorum, so that what can append can also reconfigure. Of a smallest seal quorum
    no member can be spared: without it some write quorum would be missed.
    """
    for case in possible(replicas):
        everything = range(1 << replicas)
        rule = case.rule
        writes = [rule.is_write_quorum(members(mask)) for mask in everything]
        seals = [rule.is_seal_quorum(members(mask)) for mask in everything]
        assert writes == case.commits()
        assert is_monotone(writes, replicas)
        assert is_monotone(seals, replicas)
        least = minimal(writes)  # as both are monotone, what meets these meets all
        assert seals == [all(mask & quorum for quorum in least) for mask in everything]
        assert all(seals[quorum] for quorum in least)
        assert all(one & other for one in least for other in least)
        for seal in minimal(seals):
            for i in members(seal):
                assert any(not quorum & seal & ~(1 << i) for quorum in least)


def test_there_are_many_cases() -> None:
    """The test above would pass on an empty list."""
    assert [len(possible(replicas)) for replicas in (1, 2, 3, 7)] == [2, 15, 174, 1272]


@pytest.mark.parametrize("replicas", range(1, REPLICAS_MAX + 1))
def test_without_a_spread_counting_is_all(replicas: int) -> None:
    """Without a spread a seal quorum is any `replicas - write_quorum + 1` servers, no fewer."""
    for write_quorum in range(majority(replicas), replicas + 1):
        rule = QuorumRule(replicas, write_quorum)
        for mask in range(1 << replicas):
            size = mask.bit_count()
            assert rule.is_seal_quorum(members(mask)) == (size >= replicas - write_quorum + 1)


@pytest.mark.parametrize("replicas", range(1, REPLICAS_MAX + 1))
def test_a_nodeset_is_taken_exactly_if_it_is_a_write_quorum(replicas: int) -> None:
    """A spread that the whole nodeset can't satisfy is refused, with what it lacks."""
    refused = 0
    for case in cases(replicas):
        if case.commits()[-1]:
            check_nodeset(case.nodeset, case.write_quorum, case.spread)
        else:
            refused += 1
            with pytest.raises(InvalidArgument, match=r"^spread (zone|region|node):\d"):
                check_nodeset(case.nodeset, case.write_quorum, case.spread)
    assert refused > 0


@pytest.mark.slow
@pytest.mark.parametrize("replicas", range(1, REPLICAS_MAX + 1))
def test_the_committed_tail_is_what_a_write_quorum_has(replicas: int) -> None:
    """It is the highest point that a write quorum is at or above, whatever each has reached."""
    points = range(4 if replicas <= 4 else 3)
    for commits, rule in {tuple(it.commits()): it.rule for it in possible(replicas)}.items():
        for tails in product(points, repeat=replicas):
            reached = [sum(1 << i for i, tail in enumerate(tails) if tail >= p) for p in points]
            expected = max(p for p in points if commits[reached[p]])
            assert rule.committed_tail([Offset(tail) for tail in tails]) == expected


def test_locations_are_those_of_the_segment() -> None:
    """Why a spread is judged by the locations in the nodeset: had one node been labelled anew, a
    seal quorum by the new labels would miss a write quorum by the old ones."""
    segment = Segment(
        index=0,
        base=Offset(0),
        sequencer=SequencerId(NodeId("n0"), Generation(1)),
        nodeset=nodeset_of(("r.x", "r.x", "r.y", "r.y")),
        write_quorum=3,
        spread=(("zone", 2),),
    )
    relabelled = replace(segment, nodeset=nodeset_of(("r.x", "r.x", "r.x", "r.y")))
    old, new = QuorumRule.of(segment), QuorumRule.of(relabelled)
    assert new.is_seal_quorum([3])
    assert old.is_write_quorum([0, 1, 2])
    assert not old.is_seal_quorum([3])


def test_levels_of_a_location() -> None:
    replica = replace(nodeset_of(("eu-1.dc2.rack-7",))[0], node_id=NodeId("n9"))
    assert place_of(replica, "node") == "n9"
    assert place_of(replica, "zone") == "eu-1.dc2.rack-7"
    assert place_of(replica, "region") == "eu-1.dc2"
    assert place_of(replace(replica, location="rack-7"), "region") == ""


@pytest.mark.parametrize(
    ("text", "spread"),
    [
        ("", ()),
        ("zone:2", (("zone", 2),)),
        ("zone:2,node:3", (("node", 3), ("zone", 2))),
        (" region:1 , zone:2,node:3 ", (("node", 3), ("region", 1), ("zone", 2))),
    ],
)
def test_spreads_are_read_and_written(text: str, spread: Spread) -> None:
    assert parse_spread(text) == spread
    assert parse_spread(format_spread(spread)) == spread


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("rack:2", "'rack' is no level"),
        ("zone", "form level:count"),
        ("zone:", "form level:count"),
        ("zone:x", "form level:count"),
        ("zone:-1", "form level:count"),
        ("zone:\N{SUPERSCRIPT TWO}", "form level:count"),
        ("zone:0", "at least 1"),
        ("zone:1,zone:2", "named twice"),
        (",", "form level:count"),
    ],
)
def test_what_is_no_spread_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(InvalidArgument, match=reason):
        parse_spread(text)


def test_a_spread_over_more_places_than_replicas_is_refused() -> None:
    check_quorum(replicas=3, write_quorum=2, spread=(("zone", 3),))
    with pytest.raises(InvalidArgument, match="zone:4 can't be had from 3 replicas"):
        check_quorum(replicas=3, write_quorum=2, spread=(("zone", 4),))
    with pytest.raises(InvalidArgument, match="out of order"):
        check_quorum(replicas=3, write_quorum=2, spread=(("zone", 2), ("node", 2)))
