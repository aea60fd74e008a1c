"""The order of several logs: exact for what is there, causal for what comes, and never stuck."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sharedlog.batch import Record
from sharedlog.ids import Offset
from sharedlog.merge import LOOK_SPACING_S, Merge

HOLD_S = 1.0


def batch(first: int, timestamp_ms: int, count: int = 1) -> list[Record]:
    offsets = range(first, first + count)
    return [Record(Offset(it), b"", None, {}, timestamp_ms) for it in offsets]


def follower(*goals: tuple[str, int]) -> Merge:
    return Merge(goals, hold_s=HOLD_S)


def taken(merge: Merge, now_s: float = 0.0) -> list[tuple[str, int]]:
    """All that may go: log and first offset of each batch."""
    found = []
    while (following := merge.take(now_s)) is not None:
        found.append((following.name, int(following.records[0].offset)))
    return found


def test_what_ends_is_merged_exactly() -> None:
    """Nothing goes before every log has something waiting, or has ended."""
    merge = Merge([("a", None), ("b", None)], hold_s=None)
    merge.on_records("a", batch(0, 10))
    merge.on_records("a", batch(1, 30))
    assert taken(merge, now_s=1e9) == []
    assert merge.looks(1e9) == []
    assert merge.next_deadline_s() is None
    merge.on_records("b", batch(0, 20))
    assert taken(merge) == [("a", 0), ("b", 0)]
    merge.on_ended("b")
    assert taken(merge) == [("a", 1)]
    assert not merge.ended
    merge.on_ended("a")
    assert merge.ended


def test_names_decide_where_times_are_equal() -> None:
    """And a log's own order always stands."""
    merge = Merge([("b", None), ("a", None)], hold_s=None)
    for first in (0, 1):
        merge.on_records("b", batch(first, 10))
        merge.on_records("a", batch(first, 10))
    merge.on_ended("a")
    merge.on_ended("b")
    assert taken(merge) == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]


def test_a_follower_looks_before_it_goes_on() -> None:
    """A log that is idle is asked for its tail, after the batch had come, and read up to there."""
    merge = follower(("a", 0), ("b", 5))
    merge.on_position("a", 0)
    merge.on_position("b", 5)
    merge.on_records("a", batch(0, 100))
    assert taken(merge) == []
    assert merge.looks(0.0) == ["b"]
    assert merge.looks(0.0) == [], "one at a time"
    merge.on_look("b", 7, 0.0)
    assert taken(merge) == [], "what it has is not here yet"
    merge.on_records("b", batch(5, 50, 2))
    merge.on_position("b", 7)
    assert taken(merge) == [("b", 5), ("a", 0)]


def test_a_look_that_began_before_says_nothing() -> None:
    """Something may have been acknowledged between the look and the batch's coming."""
    merge = follower(("a", 0), ("b", 0))
    for name in ("a", "b"):
        merge.on_position(name, 0)
    merge.on_records("a", batch(0, 100))
    assert merge.looks(0.0) == ["b"]
    merge.on_records("a", batch(1, 200))
    merge.on_look("b", 0, 0.0)
    assert taken(merge) == [("a", 0)]
    assert merge.looks(LOOK_SPACING_S / 2) == []
    assert merge.next_deadline_s() == pytest.approx(LOOK_SPACING_S)
    assert merge.looks(LOOK_SPACING_S) == ["b"]
    merge.on_look("b", 0, 0.0)
    assert taken(merge) == [("a", 1)]


def test_a_log_that_says_nothing_is_passed_over() -> None:
    """After `HOLD_S`, and then at once, until it is heard of again."""
    merge = follower(("a", 0), ("b", 0))
    for name in ("a", "b"):
        merge.on_position(name, 0)
    merge.on_records("a", batch(0, 100))
    assert taken(merge, 10.0) == []
    assert merge.looks(10.0) == ["b"]
    merge.on_look("b", None, 10.5)
    assert merge.next_deadline_s() == pytest.approx(10.0 + HOLD_S)
    assert taken(merge, 10.9) == []
    assert taken(merge, 11.0) == [("a", 0)]
    merge.on_records("a", batch(1, 200))
    assert taken(merge, 11.0) == [("a", 1)], "nothing waits for it any more"
    merge.on_records("a", batch(2, 300))
    assert merge.looks(11.1) == [], "no hurry"
    assert merge.looks(12.0) == ["b"]
    merge.on_look("b", 0, 12.1)
    assert taken(merge, 12.1) == [("a", 2)]
    merge.on_records("a", batch(3, 400))
    assert taken(merge, 12.2) == [], "it is heard of again"


def test_it_goes_at_the_moment_that_it_names() -> None:
    """Exactly then, however the sum is rounded: else who waits for it would ask again at once."""
    for number in range(1000):
        since_s = number / 7
        merge = follower(("a", 0), ("b", 0))
        for name in ("a", "b"):
            merge.on_position(name, 0)
        merge.on_records("a", batch(0, 100))
        assert taken(merge, since_s) == []
        merge.looks(since_s)
        moment_s = merge.next_deadline_s()
        assert moment_s is not None
        assert taken(merge, moment_s) == [("a", 0)], since_s


def test_history_waits_for_as_long_as_it_takes() -> None:
    """A log that is not read up to where it stood at the start is never passed over."""
    merge = follower(("a", 1), ("b", 9))
    merge.on_records("a", batch(0, 100))
    merge.on_position("a", 1)
    assert taken(merge, 0.0) == []
    assert taken(merge, 1e6) == []
    assert merge.looks(1e6) == []
    assert merge.next_deadline_s() is None
    merge.on_records("b", batch(0, 50, 9))
    merge.on_position("b", 9)
    assert taken(merge, 1e6) == [("b", 0)]
    assert merge.looks(1e6) == ["b"]
    merge.on_look("b", 9, 1e6)
    assert taken(merge, 1e6) == [("a", 0)]


@dataclass
class World:
    """Logs that are appended to, and a merge that hears of it late."""

    names: list[str]
    clock_ms: int = 0
    logs: dict[str, list[int]] = field(default_factory=dict)  # timestamps
    came: dict[str, int] = field(default_factory=dict)  # so many have come
    looks: dict[str, int] = field(default_factory=dict)  # tails that are on their way
    acknowledged_then: dict[tuple[str, int], dict[str, int]] = field(default_factory=dict)
    found: list[tuple[str, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.logs = {name: [] for name in self.names}
        self.came = dict.fromkeys(self.names, 0)
        self.merge = Merge([(name, 0) for name in self.names], hold_s=1e9)
        for name in self.names:
            self.merge.on_position(name, 0)

    def act(self, what: str, name: str) -> None:
        if what == "append":
            self.clock_ms += 1
            self.logs[name].append(self.clock_ms)
        elif what == "tick":
            self.clock_ms += 3
        elif what == "come" and self.came[name] < len(self.logs[name]):
            offset = self.came[name]
            self.came[name] += 1
            self.acknowledged_then[name, offset] = {it: len(self.logs[it]) for it in self.names}
            self.merge.on_records(name, batch(offset, self.logs[name][offset]))
            self.merge.on_position(name, offset + 1)
        elif what == "told" and name in self.looks:
            self.merge.on_look(name, self.looks.pop(name), 0.0)
        self.found += taken(self.merge)
        for wanted in self.merge.looks(float(self.clock_ms)):
            self.looks[wanted] = len(self.logs[wanted])

    def finish(self) -> None:
        for _ in range(200):
            self.act("tick", "")
            for name in self.names:
                self.act("come", name)
                self.act("told", name)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["append", "append", "come", "come", "told"]), st.sampled_from("abc")
    ),
    max_size=60,
)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(STEPS)
def test_what_was_acknowledged_before_comes_before(steps: list[tuple[str, str]]) -> None:
    """With clocks that agree, every record is handed out once, and in causal order."""
    world = World(["a", "b", "c"])
    for what, name in steps:
        world.act(what, name)
    world.finish()
    everything = {(name, at) for name, log in world.logs.items() for at in range(len(log))}
    assert len(world.found) == len(everything)
    assert set(world.found) == everything
    place = {entry: index for index, entry in enumerate(world.found)}
    for (name, offset), tails in world.acknowledged_then.items():
        time_ms = world.logs[name][offset]
        for other, tail in tails.items():
            for before in range(tail):
                if (world.logs[other][before], other) < (time_ms, name):
                    assert place[other, before] < place[name, offset]


@given(st.lists(st.lists(st.integers(0, 3), max_size=8), min_size=1, max_size=4), st.randoms())
def test_it_is_a_stable_sort(logs: list[list[int]], random: object) -> None:
    """For reads that end: whatever comes first, the result is the sorted whole."""
    times = {chr(97 + at): sorted(log) for at, log in enumerate(logs)}
    merge = Merge([(name, None) for name in times], hold_s=None)
    left = {name: list(enumerate(log)) for name, log in times.items()}
    found: list[tuple[str, int]] = []
    while left:
        name = random.choice(sorted(left))  # type: ignore[attr-defined]  # a Random
        if left[name]:
            offset, time_ms = left[name].pop(0)
            merge.on_records(name, batch(offset, time_ms))
        else:
            merge.on_ended(name)
            del left[name]
        found += taken(merge)
    wanted = [(time, name, at) for name, log in times.items() for at, time in enumerate(log)]
    assert found == [(name, at) for _, name, at in sorted(wanted)]
    assert merge.ended
