"""The core of reading several logs as one: whose batch comes next, and when it may.

Rules of this file: no I/O, no clock, no `async`. `merged_reads.py` reads the logs and looks at
their tails.

**The order.** Batches come by (timestamp, name of their log); those of one log in its own order,
which is that of their timestamps too. A batch has one timestamp, so the records of a batch stay
together, and there is work per batch only.

**When a batch may go.** The first of those that wait may go if no other log can still bring an
earlier one. A log with a batch waiting can't, nor one whose read has ended. Of any other log nobody
knows what it will bring: the next record gets its timestamp when it is appended, by another node's
clock. What can be known is that all has been read that was acknowledged before some moment: the
log's tail was asked for after that moment (a *look*, linearizable), and the read has got there. So
a batch goes once every log without a waiting one is *clear*: looked at after that batch had come.

That makes the order causal: who appends to one log and, once that is acknowledged, to another,
finds the two in that order if the sequencers' clocks agree as far. What is appended at about the
same time is in the order of the timestamps, unless the clocks differ: then a record that comes
later may have an earlier timestamp. It is handed out late rather than never.

**Nobody waits for ever.** A log whose tail can't be told, or whose records do not come, holds back
the others for `hold_s`. Then it is passed over until it is heard of again: a batch, or a look that
it has caught up with. Before a log has been read up to where it stood at the start it is never
passed over: history is merged exactly. Without `hold_s` no log ever is, and there are no looks: for
reads that end.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from sharedlog.batch import Record

LOOK_SPACING_S: Final = 0.01
"""Between the starts of two looks at one log; one look serves all batches that came before it."""

_NEVER: Final = float("-inf")


class Next(NamedTuple):
    """A batch to hand out."""

    name: str
    records: list[Record]


@dataclass(slots=True)
class _Source:
    """What is known of one log. Batches of all logs are counted as they come."""

    name: str
    goal: int | None  # to be read up to before it may be passed over; None: it has been
    waiting: deque[tuple[int, list[Record]]] = field(default_factory=deque)  # as the how manyeth
    position: int = 0  # everything below it has come
    ended: bool = False
    clear: int = 0  # it can't bring anything earlier than the batches up to this count
    passed_over: bool = False
    looking: int | None = None  # a look runs, which began at this count
    look: tuple[int, int] | None = None  # begun at this count, and the tail that is to be read to
    look_not_before_s: float = _NEVER

    @property
    def order(self) -> tuple[int, str]:
        """Of its first waiting batch."""
        return self.waiting[0][1][0].timestamp_ms, self.name

    def holds(self, count: int) -> bool:
        """It may still bring something earlier than the batch of this count, which waits for it."""
        return not (self.waiting or self.ended or self.passed_over) and self.clear < count

    def wants_look(self, count: int) -> bool:
        """A look would tell whether it holds that batch, and none does so yet."""
        if self.waiting or self.ended or self.goal is not None or self.clear >= count:
            return False
        return self.looking is None and (self.look is None or self.look[0] < count)


class Merge:
    """See the module's docstring. Batches that wait are bounded by who brings them."""

    def __init__(self, goals: Iterable[tuple[str, int | None]], *, hold_s: float | None) -> None:
        self._sources = {name: _Source(name, goal) for name, goal in goals}
        self._hold_s = hold_s
        self._count = 0  # batches that have come
        self._held_since_s: float | None = None  # the first batch that waits can't go since then

    @property
    def ended(self) -> bool:
        """All reads have ended, and everything was handed out."""
        return all(it.ended and not it.waiting for it in self._sources.values())

    def on_records(self, name: str, records: list[Record]) -> None:
        """A batch of a log has come, in its log's order."""
        source = self._sources[name]
        assert records, "a batch has a record at least"
        assert not source.ended, "nothing comes after the end"
        self._count += 1
        source.waiting.append((self._count, records))
        source.passed_over = False

    def on_position(self, name: str, position: int) -> None:
        """Everything below `position` of the log has come."""
        source = self._sources[name]
        source.position = max(source.position, position)
        self._settle(source)

    def on_ended(self, name: str) -> None:
        """The log's read has ended."""
        self._sources[name].ended = True

    def on_look(self, name: str, tail: int | None, now_s: float) -> None:
        """A look is over; None: nobody could tell the tail, and there is no hurry to ask again."""
        source = self._sources[name]
        begun, source.looking = source.looking, None
        assert begun is not None, "one look at a time"
        if tail is not None:
            source.look = begun, tail
            self._settle(source)
        elif self._hold_s is not None:
            source.look_not_before_s = now_s + self._hold_s

    def take(self, now_s: float) -> Next | None:
        """The next batch, if it may go."""
        first = self._first()
        if first is None:
            return None
        count = first.waiting[0][0]
        held = [it for it in self._sources.values() if it.holds(count)]
        if held and not self._may_pass_over(held, now_s):
            return None
        self._held_since_s = None
        return Next(first.name, first.waiting.popleft()[1])

    def looks(self, now_s: float) -> list[str]:
        """Logs to be looked at now; each counts as being looked at until `on_look`."""
        found = [it for it in self._wanting_looks() if it.look_not_before_s <= now_s]
        for source in found:
            source.looking = self._count
            source.look_not_before_s = max(source.look_not_before_s, now_s + LOOK_SPACING_S)
        return [source.name for source in found]

    def next_deadline_s(self) -> float | None:
        """When `take` or `looks` may say something else without anything having happened."""
        moments = [it.look_not_before_s for it in self._wanting_looks()]
        if self._held_since_s is not None and self._hold_s is not None and not self._goals_left:
            moments.append(self._held_since_s + self._hold_s)
        return min(moments, default=None)

    @property
    def _goals_left(self) -> bool:
        """A log has not been read up to where it stood at the start, and nothing of it waits."""
        return any(it.goal is not None and it.holds(self._count) for it in self._sources.values())

    def _first(self) -> _Source | None:
        waiting = (it for it in self._sources.values() if it.waiting)
        return min(waiting, key=lambda it: it.order, default=None)

    def _wanting_looks(self) -> list[_Source]:
        first = self._first()
        if first is None or self._hold_s is None:
            return []
        count = first.waiting[0][0]
        return [it for it in self._sources.values() if it.wants_look(count)]

    def _may_pass_over(self, held: list[_Source], now_s: float) -> bool:
        """The first batch has waited for these logs for long enough."""
        if self._held_since_s is None:
            self._held_since_s = now_s
        if self._hold_s is None or now_s < self._held_since_s + self._hold_s:
            return False
        if self._goals_left:
            return False
        for source in held:
            source.passed_over = True
            source.look_not_before_s = max(source.look_not_before_s, now_s + self._hold_s)
        return True

    def _settle(self, source: _Source) -> None:
        """The read may have got to where a look saw the tail, or to where it stood at the start."""
        if source.goal is not None and source.position >= source.goal:
            source.goal = None
        if source.look is not None and source.position >= source.look[1]:
            source.clear = max(source.clear, source.look[0])
            source.look = None
            source.passed_over = False
