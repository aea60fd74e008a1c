"""Quorum rules, over every set of up to seven servers."""

from __future__ import annotations

from itertools import combinations, product

import pytest

from loglet.quorum import check_quorum, committed_tail, majority, seal_quorum
from sharedlog.errors import InvalidArgument
from sharedlog.ids import Offset
from sharedlog.limits import REPLICAS_MAX

TAKEN = [
    (replicas, quorum)
    for replicas in range(1, REPLICAS_MAX + 1)
    for quorum in range(majority(replicas), replicas + 1)
]


@pytest.mark.parametrize(("replicas", "write_quorum"), TAKEN)
def test_write_quorums_meet_every_seal_quorum(replicas: int, write_quorum: int) -> None:
    """Field note 4: every write quorum meets every seal quorum, and no smaller set would do."""
    nodes = range(replicas)
    size = seal_quorum(replicas, write_quorum)
    writers = [set(it) for it in combinations(nodes, write_quorum)]
    sealers = [set(it) for it in combinations(nodes, size)]
    assert all(one & other for one in writers for other in sealers)
    smaller = [set(it) for it in combinations(nodes, size - 1)]
    assert any(not one & other for one in writers for other in smaller)


@pytest.mark.parametrize(("replicas", "write_quorum"), TAKEN)
def test_what_can_append_can_reconfigure(replicas: int, write_quorum: int) -> None:
    """Field note 4: a write quorum contains a seal quorum, and two write quorums meet."""
    check_quorum(replicas=replicas, write_quorum=write_quorum)
    assert seal_quorum(replicas, write_quorum) <= write_quorum
    writers = [set(it) for it in combinations(range(replicas), write_quorum)]
    assert all(one & other for one in writers for other in writers)


@pytest.mark.parametrize(
    ("replicas", "write_quorum"),
    [
        (replicas, quorum)
        for replicas in range(REPLICAS_MAX + 2)
        for quorum in range(REPLICAS_MAX + 2)
        if (replicas, quorum) not in TAKEN
    ],
)
def test_every_other_pair_is_refused(replicas: int, write_quorum: int) -> None:
    """Field note 4: nothing but majorities of 1 to 7 is taken."""
    with pytest.raises(InvalidArgument):
        check_quorum(replicas=replicas, write_quorum=write_quorum)


@pytest.mark.parametrize(("replicas", "write_quorum"), [it for it in TAKEN if it[0] <= 5])
def test_committed_tail_is_what_a_write_quorum_has(replicas: int, write_quorum: int) -> None:
    """The committed tail is the highest point with a write quorum at or above it, for all cases."""
    for tails in product(range(4), repeat=replicas):
        acked = [Offset(tail) for tail in tails]
        expected = max(
            point for point in range(4) if sum(tail >= point for tail in tails) >= write_quorum
        )
        assert committed_tail(acked, write_quorum) == expected
