"""Arithmetic on ranges, against sets of offsets; and what is to be copied, from whom, to whom."""

from __future__ import annotations

from itertools import pairwise
from random import Random

from node.coverage import (
    Holding,
    Range,
    clip,
    covers,
    cut_where_it_changes,
    intersect,
    merge,
    missing_of,
    nobody_has,
    plan_copies,
    size,
    subtract,
)
from sharedlog.ids import Offset

WIDTH = 14


def some(draw: Random) -> list[Range]:
    """A few ranges within [0, WIDTH), merged."""
    pairs = [(draw.randrange(WIDTH), draw.randrange(WIDTH + 1)) for _ in range(draw.randrange(4))]
    return merge((Offset(first), Offset(end)) for first, end in pairs)


def offsets(ranges: list[Range] | tuple[Range, ...]) -> set[int]:
    return {at for first, end in ranges for at in range(first, end)}


def is_canonical(ranges: list[Range]) -> bool:
    """In order, none empty, none overlapping or touching."""
    inside = all(first < end for first, end in ranges)
    return inside and all(a[1] < b[0] for a, b in pairwise(ranges))


def test_ranges_do_what_sets_do() -> None:
    """Union, difference, intersection, clipping and membership, on thousands of examples."""
    draw = Random(3)
    for _ in range(1_000):
        left, right = some(draw), some(draw)
        assert is_canonical(left)
        assert offsets(merge([*left, *right])) == offsets(left) | offsets(right)
        for found, wanted in (
            (subtract(left, right), offsets(left) - offsets(right)),
            (intersect(left, right), offsets(left) & offsets(right)),
            (clip(left, Offset(3), Offset(9)), offsets(left) & set(range(3, 9))),
        ):
            assert offsets(found) == wanted
            assert is_canonical(found)
        assert size(left) == len(offsets(left))
        assert {at for at in range(WIDTH) if covers(left, at)} == offsets(left)


def some_holding(draw: Random) -> Holding:
    if draw.random() < 0.2:
        return Holding(answered=False)
    held = some(draw)
    damaged = intersect(held, some(draw)) if draw.random() < 0.4 else []
    return Holding(answered=True, held=tuple(held), damaged=tuple(damaged))


def test_after_the_copies_everybody_has_all_that_anybody_had() -> None:
    """Each copy's sources hold all of it whole; carried out, the copies leave no answering replica
    without a wanted offset that some answering replica could give; none is needless."""
    draw = Random(5)
    for _ in range(1_000):
        holdings = [some_holding(draw) for _ in range(draw.randint(1, 4))]
        want = some(draw)
        has = [offsets(it.whole) if it.answered else set() for it in holdings]
        everything = set().union(*has)
        assert offsets(nobody_has(holdings, want)) == offsets(want) - everything
        gained: list[set[int]] = [set() for _ in holdings]
        for copy in plan_copies(holdings, want):
            part = set(range(copy.first, copy.end))
            assert copy.sources
            assert all(part <= has[source] for source in copy.sources)
            assert copy.target not in copy.sources
            assert not part & (has[copy.target] | gained[copy.target])
            gained[copy.target] |= part
        for holding, held, more in zip(holdings, has, gained, strict=True):
            if holding.answered:
                assert (held | more) & offsets(want) == offsets(want) & everything
            else:
                assert not more


def test_pieces_are_uniform() -> None:
    """Within a piece every replica holds all or nothing, and all or nothing of that is damaged."""
    draw = Random(7)
    for _ in range(2_000):
        holdings = [some_holding(draw) for _ in range(3)]
        want = some(draw)
        pieces = cut_where_it_changes(want, holdings)
        assert offsets(pieces) == offsets(want)
        assert sum(end - first for first, end in pieces) == len(offsets(want))
        for piece in pieces:
            part = offsets([piece])
            for holding in holdings:
                for ranges in (holding.held, holding.damaged):
                    assert part <= offsets(ranges) or not part & offsets(ranges)


def test_damage_is_not_missing() -> None:
    """A damaged batch keeps its place: it is no copy, and it is no hole."""
    it = (Offset(0), Offset(4))
    holding = Holding(answered=True, held=(it,), damaged=((Offset(1), Offset(2)),))
    assert missing_of(holding, [it]) == []
    assert nobody_has([holding], [it]) == [(1, 2)]
