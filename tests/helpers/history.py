"""What clients did to one log and what they were told: the history that `history_check.py` judges.

Used by the simulator and by the tests over real processes alike: whoever drives clients notes each
operation here as it begins and ends. All clients of a test live in one process, so one counter
orders everything: an operation that ended with a smaller tick than another one began with was over
before it. Ticks rather than times: two things that happen at one moment are still in order.

An append is noted record by record. Its outcome is

    ACKED        the client was told the offset
    DEFINITE     it failed, and the client was told that it is not in the log and never will be
    INDEFINITE   it failed, and nobody says whether it is in the log
    PENDING      the client had no answer when the history ended

Values must be unique over the whole history, for a record is known by its value. So must be the
tokens of fences: setting one is noted like an append, and its control record is known by the token.

A named producer's life is noted when it is asked for and when it was told where it goes on; records
that it appends say so. Readers pass over control records, but the final log has them.

A cursor's owner is noted when it asks for the cursor, when it was told that it has it, and with
every move that it makes. What it was not told of may have been made, then or later.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple


class Outcome(Enum):
    """How an append ended, as far as its client knows."""

    PENDING = "pending"
    ACKED = "acked"
    DEFINITE = "definite"
    INDEFINITE = "indefinite"


@dataclass(slots=True, eq=False)
class Life:
    """One life of a named producer: from the moment that a client asks for it."""

    producer: str
    invoked: int
    # What it was told; None while it was told nothing.
    responded: int | None = None
    epoch: int | None = None  # counts the producer's lives
    next_sequence: int | None = None  # so many records the lives before have in the log


@dataclass(slots=True, eq=False)
class Append:
    """One record that a client wanted in the log, or a fence."""

    appender: str  # records of one appender keep their order
    value: bytes
    invoked: int
    key: bytes | None = None
    # When the appender took it: among those of one appender that have it, this is their order.
    admitted: int | None = None
    responded: int | None = None
    outcome: Outcome = Outcome.PENDING
    offset: int | None = None  # if acked
    batch: int | None = None  # records with the same number were appended as one batch, in order
    error: str = ""
    # What it depended on, and what a refusal told of the log instead.
    match_offset: int | None = None
    token: str | None = None  # the fencing token that the log must have; "" is none
    told_tail: int | None = None
    told_token: str | None = None
    sets: str | None = None  # a fence: the log's token from then on
    # Of a named producer: in which life, and as which of its records.
    life: Life | None = None
    sequence: int | None = None


class Purge(NamedTuple):
    """A reader at an offset was told that the log starts above it, and when."""

    at: int
    start: int
    tick: int


class Seen(NamedTuple):
    """A record that a reader got, and when."""

    offset: int
    value: bytes
    timestamp_ms: int
    tick: int


@dataclass(slots=True, eq=False)
class Read:
    """One read, or one follower's whole life: everything that it got, in the order of arrival."""

    reader: str
    start: int
    invoked: int
    end: int | None = None  # exclusive; None: to the tail, or for ever
    follow: bool = False
    key: bytes | None = None  # it is for this key's records only
    covered: int = 0  # it was told that it stands here; for a key, for records say little of that
    responded: int | None = None  # it got to its end; None: it failed or was stopped
    stale: bool = False  # it was told that the tail was not known for certain
    records: list[Seen] = field(default_factory=list)
    lost: list[tuple[int, int]] = field(default_factory=list)  # typed gaps [first, end), passed
    purged: list[Purge] = field(default_factory=list)  # it went on at their starts
    error: str = ""

    @property
    def position(self) -> int:
        """The offset that comes next."""
        last = self.records[-1].offset + 1 if self.records else self.start
        lost = self.lost[-1][1] if self.lost else 0
        return max(last, self.covered, lost, self.purged[-1].start if self.purged else 0)


@dataclass(slots=True, eq=False)
class Tail:
    """One answer to "where does the log end?"."""

    caller: str
    invoked: int
    responded: int | None = None
    tail: int | None = None
    known: bool = False  # the cheap, possibly stale one
    error: str = ""


@dataclass(slots=True, eq=False)
class Move:
    """An owner sets its cursor's position."""

    position: int
    invoked: int
    responded: int | None = None  # it was told that it is there for good


@dataclass(slots=True, eq=False)
class Owner:
    """One owner of a cursor: from the moment that it asks for it."""

    caller: str
    cursor: str
    invoked: int
    # What it was told; None while it was told nothing.
    responded: int | None = None
    epoch: int | None = None  # counts the cursor's owners
    position: int | None = None  # where the one before left it
    moves: list[Move] = field(default_factory=list)  # in the order in which it made them
    handled: set[int] = field(default_factory=set)  # offsets of records that it was handed
    lost: int | None = None  # when it was told that another one has the cursor


class CursorEnd(NamedTuple):
    """A cursor as it is in the end."""

    cursor: str
    epoch: int
    position: int


class Place(NamedTuple):
    """How far a named producer was: its life, and the sequence of its next record."""

    epoch: int
    next_sequence: int


class Control(NamedTuple):
    """What a control record says: the log's state as of it."""

    cause: str  # "fence", "producer" or "checkpoint"
    token: str
    producers: Mapping[str, Place]


class FinalRecord(NamedTuple):
    """A record as the log has it in the end, or a control record."""

    offset: int
    value: bytes
    timestamp_ms: int
    control: Control | None = None
    key: bytes | None = None

    @property
    def known_as(self) -> bytes | None:
        """The value of the append that it comes of; None of a control record that is no fence."""
        if self.control is None:
            return self.value
        return fence_value(self.control.token) if self.control.cause == "fence" else None


@dataclass(frozen=True, slots=True)
class Final:
    """The log in the end, as a client reads it when nothing is broken any more."""

    tail: int
    records: Sequence[FinalRecord]  # and control records, in the order of reading
    lost: Sequence[tuple[int, int]] = ()  # ranges that an operator gave up, as the chain has them
    start: int = 0  # what lies below was purged; `records` has what it was all the same


class History:
    """Operations as they happen."""

    def __init__(self) -> None:
        self.appends: list[Append] = []
        self.reads: list[Read] = []
        self.tails: list[Tail] = []
        self.lives: list[Life] = []
        self.owners: list[Owner] = []
        self.cursors: list[CursorEnd] = []
        self.starts: list[tuple[int, int]] = []  # where the log starts, and since which tick
        self._ticks = 0
        self._batches = 0

    def tick(self) -> int:
        """A moment later than all before it."""
        self._ticks += 1
        return self._ticks

    # Appends.

    def append(
        self,
        appender: str,
        value: bytes,
        *,
        key: bytes | None = None,
        match_offset: int | None = None,
        token: str | None = None,
    ) -> Append:
        """A client is about to append a record."""
        made = Append(appender, value, self.tick(), key, match_offset=match_offset, token=token)
        self.appends.append(made)
        return made

    def append_batch(
        self,
        appender: str,
        records: Iterable[tuple[bytes, bytes | None]],
        *,
        match_offset: int | None = None,
        token: str | None = None,
    ) -> list[Append]:
        """A client is about to append values, with their keys, as one batch.

        `match_offset` is of the first.
        """
        self._batches += 1
        made = [self.append(appender, value, key=key, token=token) for value, key in records]
        for one in made:
            one.batch = self._batches
        made[0].match_offset = match_offset
        return made

    def fence(self, caller: str, token: str, *, expected: str | None = None) -> Append:
        """A client is about to set the log's fencing token."""
        made = self.append(caller, fence_value(token), token=expected)
        made.sets = token
        return made

    def admitted(self, append: Append) -> None:
        """The appender has taken the record: what it takes later comes later."""
        append.admitted = self.tick()

    def acked(self, append: Append, offset: int) -> None:
        """The client was told where the record is."""
        append.offset = offset
        self._end(append, Outcome.ACKED)

    @property
    def readable_end(self) -> int:
        """Behind the last record that readers get and a client was told the place of, or 0."""
        placed = [it.offset for it in self.appends if it.offset is not None and it.sets is None]
        return max(placed, default=-1) + 1

    def failed(
        self,
        append: Append,
        error: BaseException,
        *,
        definite: bool,
        tail: int | None = None,
        token: str | None = None,
    ) -> None:
        """The client was told that it failed; the log's tail or token, if a condition did."""
        append.told_tail, append.told_token = tail, token
        append.error = f"{type(error).__name__}: {error}"
        self._end(append, Outcome.DEFINITE if definite else Outcome.INDEFINITE)

    def _end(self, append: Append, outcome: Outcome) -> None:
        assert append.outcome is Outcome.PENDING, f"{append.value!r} has ended already"
        append.outcome = outcome
        append.responded = self.tick()

    # Named producers.

    def life(self, producer: str) -> Life:
        """A client is about to begin a life of a named producer."""
        made = Life(producer, self.tick())
        self.lives.append(made)
        return made

    def lives_on(self, life: Life, *, epoch: int, next_sequence: int) -> None:
        """It was told which life it is, and where its records go on."""
        life.epoch, life.next_sequence = epoch, next_sequence
        life.responded = self.tick()

    def append_in(
        self, life: Life, appender: str, value: bytes, sequence: int, *, key: bytes | None = None
    ) -> Append:
        """A client is about to append a record of a named producer."""
        made = self.append(appender, value, key=key)
        made.life, made.sequence = life, sequence
        return made

    # Reads.

    def read(
        self,
        reader: str,
        start: int,
        *,
        end: int | None = None,
        follow: bool = False,
        key: bytes | None = None,
    ) -> Read:
        """A client is about to read."""
        made = Read(reader, start, self.tick(), end, follow, key)
        self.reads.append(made)
        return made

    def saw(self, read: Read, offset: int, value: bytes, timestamp_ms: int) -> None:
        """The reader got a record."""
        read.records.append(Seen(offset, value, timestamp_ms, self.tick()))

    def purged(self, read: Read, at: int, start: int) -> None:
        """The reader was told that the log starts above where it stands."""
        read.purged.append(Purge(at, start, self.tick()))

    def starts_at(self, start: int) -> None:
        """A purge has taken effect: readers may be told from now on."""
        self.starts.append((self.tick(), start))

    def read_ended(self, read: Read) -> None:
        """The reader was told that it is at its end."""
        read.responded = self.tick()

    # Tails.

    def tail(self, caller: str, *, known: bool = False) -> Tail:
        """A client is about to ask for the tail."""
        made = Tail(caller, self.tick(), known=known)
        self.tails.append(made)
        return made

    def tail_found(self, tail: Tail, offset: int) -> None:
        """The client was told the tail."""
        tail.tail = offset
        tail.responded = self.tick()

    # Cursors.

    def owner(self, caller: str, cursor: str) -> Owner:
        """A client is about to take a cursor over."""
        made = Owner(caller, cursor, self.tick())
        self.owners.append(made)
        return made

    def owns(self, owner: Owner, *, epoch: int, position: int) -> None:
        """It was told that it has the cursor, and where that is."""
        owner.epoch, owner.position = epoch, position
        owner.responded = self.tick()

    def move(self, owner: Owner, position: int) -> Move:
        """The owner is about to set the position."""
        made = Move(position, self.tick())
        owner.moves.append(made)
        return made

    def moved(self, move: Move) -> None:
        """It was told that the position is there for good."""
        move.responded = self.tick()

    def cursor_lost(self, owner: Owner) -> None:
        """It was told that another one has the cursor."""
        owner.lost = self.tick()

    def counts(self) -> dict[str, int]:
        """How much of everything there is, for a line to print."""
        found = {outcome.value: 0 for outcome in Outcome}
        for append in self.appends:
            found[append.outcome.value] += 1
        found["reads"] = sum(read.responded is not None for read in self.reads)
        found["tails"] = sum(tail.responded is not None for tail in self.tails)
        found["lives"] = sum(life.responded is not None for life in self.lives)
        moves = [move for owner in self.owners for move in owner.moves]
        found["moves"] = sum(move.responded is not None for move in moves)
        return found


def fence_value(token: str) -> bytes:
    """What the fence that sets a token is known by."""
    return b"fence " + token.encode()
