"""The tail cache and the merging of answers."""

from __future__ import annotations

from random import Random

from helpers.log_servers import LOGLET, OTHER, placed

from loglet.answers import merge
from loglet.cache import TailCache
from loglet.messages import Confirmed, Stored, StoreResponse
from loglet.store import PutBatch
from sharedlog.batch import parse_placement
from sharedlog.ids import LogletId, Offset


def put(first: int, count: int = 1, loglet: LogletId = LOGLET) -> PutBatch:
    batch = placed(first, count, loglet=loglet)
    placement = parse_placement(batch)
    return PutBatch(loglet, placement.first, placement.end, batch)


def firsts(cache: TailCache, start: int, end: int, max_bytes: int = 1 << 20) -> list[int]:
    return [it.first for it in cache.read(LOGLET, Offset(start), Offset(end), max_bytes)]


def test_reads_are_unbroken_runs_from_the_start() -> None:
    """A run begins with the batch that holds the start and ends at the first hole."""
    cache = TailCache(1 << 20)
    for batch in (put(0, 2), put(2, 3), put(5), put(9), put(10)):
        cache.add(batch)
    assert firsts(cache, 0, 100) == [0, 2, 5]
    assert firsts(cache, 3, 100) == [2, 5]
    assert firsts(cache, 3, 5) == [2]
    assert firsts(cache, 6, 100) == []
    assert firsts(cache, 9, 100) == [9, 10]
    assert firsts(cache, 11, 100) == []
    assert firsts(cache, 0, 100, max_bytes=1) == [0]
    assert cache.read(OTHER, Offset(0), Offset(9), 1 << 20) == []


def test_nothing_is_evicted_before_it_landed() -> None:
    """A reader that finds nothing in memory must find it on disk."""
    cache = TailCache(0)
    cache.add(put(0))
    cache.add(put(1))
    assert firsts(cache, 0, 9) == [0, 1]
    cache.landed()
    assert firsts(cache, 0, 9) == []
    assert cache.size_bytes == 0


def test_the_oldest_goes_first_over_all_loglets() -> None:
    """The bound holds over all loglets, and what remains can be read."""
    size = len(put(100).placed)
    cache = TailCache(10 * size + 5)
    for index in range(500):
        cache.add(put(1_000 + index, loglet=OTHER if index % 5 == 0 else LOGLET))
        cache.landed()
        assert cache.size_bytes <= 10 * size + 5
    assert firsts(cache, 1_496, 9_999) == [1_496, 1_497, 1_498, 1_499]
    assert [it.first for it in cache.read(OTHER, Offset(1_495), Offset(9_999), 1 << 20)] == [1_495]
    cache.clear()
    assert cache.size_bytes == 0
    assert firsts(cache, 1_499, 9_999) == []


def test_a_batch_below_the_others_is_not_kept() -> None:
    """What fills a hole is read from disk."""
    cache = TailCache(1 << 20)
    cache.add(put(5))
    cache.add(put(3))
    assert firsts(cache, 3, 9) == []
    assert firsts(cache, 5, 9) == [5]


def test_ranges_that_touch_become_one() -> None:
    """Coalesced per loglet; the answer to an open stays by itself; nothing given is changed."""

    def stored(first: int, end: int, loglet: LogletId = LOGLET) -> StoreResponse:
        return StoreResponse(stored=[Stored(loglet, Offset(first), Offset(end))])

    given = [
        stored(0, 0),
        stored(0, 2),
        stored(0, 1, OTHER),
        stored(2, 4),
        StoreResponse(confirmed=[Confirmed(OTHER, 1, sealed=False)]),
        stored(1, 2, OTHER),
        stored(7, 8),
    ]
    merged = merge(given)
    assert [(it.loglet, it.first, it.end) for it in merged.stored] == [
        (LOGLET, 0, 0),
        (LOGLET, 0, 4),
        (OTHER, 0, 2),
        (LOGLET, 7, 8),
    ]
    assert len(merged.confirmed) == 1
    assert given[1] == stored(0, 2)


def test_what_was_trimmed_is_forgotten() -> None:
    """Field note 47: a batch across the local start stays, and the bound holds as before."""
    size = len(put(100).placed)
    cache = TailCache(10 * size + 5)
    for first in range(100, 108):
        cache.add(put(first))
        cache.add(put(first, loglet=OTHER))
        cache.landed()
    cache.drop(LOGLET, Offset(105))
    assert firsts(cache, 100, 200) == []
    assert firsts(cache, 105, 200) == [105, 106, 107]
    cache.drop(LOGLET, Offset(200))
    cache.drop(LOGLET, Offset(200))
    assert firsts(cache, 107, 200) == []
    assert cache.size_bytes == sum(
        len(it.placed) for it in cache.read(OTHER, Offset(103), Offset(200), 1 << 20)
    )
    cache.add(put(200, 5))
    cache.landed()
    cache.drop(LOGLET, Offset(203))
    assert firsts(cache, 200, 300) == [200]


def test_trims_and_evictions_in_any_order_keep_the_books() -> None:
    """However they mix, the size is that of what is there, and nothing is left of what is gone."""
    random = Random(7)
    size = len(put(100).placed)
    cache = TailCache(20 * size)
    tails = dict.fromkeys((LOGLET, OTHER), 100)
    for _ in range(3_000):
        loglet = random.choice((LOGLET, OTHER))
        if random.random() < 0.8:
            cache.add(put(tails[loglet], loglet=loglet))
            tails[loglet] += 1
            cache.landed()
        else:
            cache.drop(loglet, Offset(tails[loglet] - random.randrange(12)))
        assert cache.size_bytes <= 20 * size + 200
        assert len(cache._arrivals) <= 2 * 21 + 2
    for loglet, tail in tails.items():
        cache.drop(loglet, Offset(tail))
    assert cache.size_bytes == 0
    assert not cache._runs
