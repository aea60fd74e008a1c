"""The appender's core against a model of the log: sessions come and go, nothing goes wrong.

The model keeps the rules of the protocol and nothing more. What it may do between two rules, it
does at random: admit a batch and lose the answer, lose the batch, answer late, refuse, call an
outcome unknown, move, forget producers and learn them again from where it is told to look, and let
a batch that was on its way when a session was lost arrive as long as no newer session has opened.
"""

from __future__ import annotations

from collections import deque
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sharedlog.append_queue import AppendQueue, Opening
from sharedlog.batch import BatchBuilder, check_batch
from sharedlog.config import AppenderConfig
from sharedlog.errors import (
    AppendIndefinite,
    LogUnavailable,
    Overloaded,
    ProtocolError,
    RecordTooLarge,
    SequenceGap,
    SharedLogError,
)
from sharedlog.ids import Offset
from sharedlog.pending import AppendBatch, PendingAppend

PRODUCER = 77
BATCHES_MAX = 4


class ModelSession:
    """What the log has of one session: batches on their way in, results on their way out."""

    def __init__(self, expected: int) -> None:
        self.expected = expected
        self.over = False
        self.on_the_way: deque[bytes] = deque()
        self.results: deque[tuple[int, SharedLogError | None]] = deque()


class ModelLog:
    """The log, and whoever orders it."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self.entries: list[tuple[int, int, int]] = []  # (sequence, first, end)
        self.tail = 0
        self._known: dict[int, int] = {}  # sequence → first, as the present sequencer knows
        self._session: ModelSession | None = None

    def others_append(self) -> None:
        """Another producer's records take up offsets."""
        self.tail += self._rng.randrange(1, 4)

    def open(self, next_sequence: int, *, unresolved: bool, resolve_from: int) -> ModelSession:
        """The newest session of the producer; the one before it takes nothing more."""
        if self._session is not None:
            self._session.over = True
        if self._rng.random() < 0.5:
            self._known.clear()  # another sequencer has taken over
        if unresolved:
            found = {seq: first for seq, first, _ in self.entries if first >= resolve_from}
            self._known.update(found)
        self._session = ModelSession(next_sequence)
        return self._session

    def take(self, session: ModelSession) -> None:
        """The next batch arrives."""
        header = check_batch(session.on_the_way.popleft())
        sequence = header.producer.sequence
        error: SharedLogError | None = None
        chance = self._rng.random()
        if session.over or sequence != session.expected:
            error = SequenceGap("not this one")
        elif sequence in self._known:
            session.expected += 1
            session.results.append((self._known[sequence], None))
            return
        elif chance < 0.04:
            error = Overloaded("busy", retry_after_s=0)
        elif chance < 0.06:
            error = RecordTooLarge(size_bytes=2, max_bytes=1)
        elif chance < 0.10:
            error = AppendIndefinite("sealed, and not admitted")
        if error is not None:
            session.over = True
            session.results.append((0, error))
            return
        first, end = self.tail, self.tail + header.record_count
        self.entries.append((sequence, first, end))
        self._known[sequence] = first
        self.tail = end
        session.expected += 1
        if chance > 0.95:
            session.over = True
            session.results.append((0, AppendIndefinite("sealed, and admitted")))
        else:
            session.results.append((first, None))


class Course:
    """One random course of events."""

    def __init__(self, rng: Random, queue: AppendQueue) -> None:
        self.rng = rng
        self.queue = queue
        self.log = ModelLog(rng)
        self.now_s = 0.0
        self.session: ModelSession | None = None
        self.late: list[ModelSession] = []  # lost by the client, not yet by the network
        self.pending: list[PendingAppend] = []
        self.batches: dict[int, AppendBatch] = {}  # by sequence

    def put(self) -> None:
        """A caller hands over a record, or a whole batch."""
        rng, queue = self.rng, self.queue
        timeout_s = rng.choice([0.5, 9.0, 9.0, 9.0])
        value = bytes(rng.choice([0, 1, 40, 500]))
        if len(value) < queue.room and rng.random() < 0.5:
            self.pending.append(queue.put_plain(value))
        elif rng.random() < 0.2:
            builder = BatchBuilder()
            builder.append(value)
            builder.append(b"second")
            batch = queue.put_batch(builder, timeout_s=timeout_s, now_s=self.now_s)
            self.pending.extend(PendingAppend(batch, index) for index in range(2))
        else:
            key = b"k" if rng.random() < 0.2 else None
            record = queue.put(value, key, None, timeout_s=timeout_s, now_s=self.now_s)
            self.pending.append(record)

    def open(self) -> None:
        """The next session."""
        opening = self.queue.opening()
        if self.rng.random() < 0.2:
            return  # the opening got lost
        if self.rng.random() < 0.2:
            self.now_s += 1.0
            self.queue.on_time(self.now_s, None)  # while it was on its way
        self.session = self.log.open(
            opening.next_sequence,
            unresolved=opening.unresolved,
            resolve_from=opening.resolve_from,
        )
        self.queue.on_opened(floor=Offset(self.log.tail), batches_max=BATCHES_MAX)

    def send(self) -> None:
        """A batch leaves."""
        session = self.session
        assert session is not None
        batch = self.queue.next_to_send(self.now_s)
        if batch is not None:
            assert self.batches.setdefault(batch.sequence, batch) is batch
            assert len(self.queue.sent) <= BATCHES_MAX
            session.on_the_way.append(batch.data)
            if self.rng.random() < 0.5:
                batch.data = b"" if len(batch.builder) else batch.data
        elif self.queue.must_reopen(self.now_s):
            self.queue.on_session_moved()
            self.session = None

    def take_answers(self) -> None:
        """What the log has answered so far reaches the client, up to the first error."""
        session = self.session
        assert session is not None
        while session.results and self.session is not None:
            first, error = session.results.popleft()
            self.queue.on_result(Offset(first), error)
            if error is not None:
                self.lose()

    def lose(self) -> None:
        """The session is gone; what is on its way may arrive yet."""
        assert self.session is not None
        self.queue.on_session_lost()
        self.late.append(self.session)
        self.session = None

    def move(self) -> None:
        """The session ends in good order: all results, and nothing more is admitted."""
        assert self.session is not None
        self.session.over = True
        self.session.on_the_way.clear()
        self.take_answers()
        if self.session is not None:
            self.queue.on_session_moved()
            self.session = None

    def step(self) -> None:
        """Something happens."""
        rng = self.rng
        self.now_s += rng.choice([0.0, 0.0, 0.1, 0.3])
        chance = rng.random()
        for late in self.late:
            if late.on_the_way and rng.random() < 0.3:
                self.log.take(late)
        if chance < 0.35:
            self.put()
        elif chance < 0.40:
            self.log.others_append()
        elif chance < 0.45:
            self.queue.on_time(self.now_s, LogUnavailable("away"))
        elif self.session is None:
            self.open()
        elif chance < 0.65:
            self.send()
        elif chance < 0.80:
            if self.session.on_the_way:
                self.log.take(self.session)
        elif chance < 0.92:
            self.take_answers()
        elif chance < 0.96:
            self.lose()
        else:
            self.move()
        self.queue.check_invariants()

    def settle(self) -> None:
        """The network heals and everything is answered."""
        for _ in range(10_000):
            if not any(True for _ in self.queue.pending()):
                return
            self.now_s += 0.001
            if self.session is None:
                self.open()
                continue
            self.send()
            if self.session is not None and self.session.on_the_way:
                self.log.take(self.session)
            if self.session is not None:
                self.take_answers()
        pytest.fail("the queue does not come to rest")

    def check(self) -> None:
        """The three invariants of the queue's docstring, by what is in the log."""
        in_log: dict[int, tuple[int, int]] = {}
        for sequence, first, end in self.log.entries:
            assert sequence not in in_log, "a batch is in the log at most once"
            in_log[sequence] = (first, end)
        assert list(in_log) == sorted(in_log), "in the order of their admission"
        for sequence, batch in self.batches.items():
            assert batch.done
            if batch.error is None:
                assert in_log[sequence] == (batch.first, batch.first + batch.count)
            elif not isinstance(batch.error, AppendIndefinite):
                assert sequence not in in_log, "a definite failure is one"
        offsets = [p.result() for p in self.pending if p.exception() is None]
        assert offsets == sorted(set(offsets))


def run(seed: int, *, batch_bytes: int, records: int, slots: int = 4) -> Course:
    config = AppenderConfig(
        batch_bytes=batch_bytes,
        batch_records=records,
        slots=slots,
        in_flight_bytes=2_000,
        timeout_s=9,
    )
    course = Course(Random(seed), AppendQueue(config, producer_id=PRODUCER))
    for _ in range(250):
        course.step()
    course.settle()
    course.check()
    return course


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    batch_bytes=st.sampled_from([1, 80, 300, 4_000]),
    records=st.sampled_from([1, 3, 50]),
    slots=st.sampled_from([1, 4]),
)
def test_any_course_keeps_order_and_appends_once(
    seed: int, batch_bytes: int, records: int, slots: int
) -> None:
    """Promises 4 and 5, field notes 17, 36 and 41: through lost sessions, lost answers, late
    arrivals, refusals, moves and time-outs, acknowledged batches lie in the order of their
    admission, each batch is in the log at most once, and a definite failure is not in it."""
    run(seed, batch_bytes=batch_bytes, records=records, slots=slots)


def test_the_model_meets_what_it_is_for() -> None:
    """The courses really contain repetitions, unresolved time-outs, gaps and definite failures."""
    repeated = unknown = definite = acknowledged = 0
    for seed in range(40):
        course = run(seed, batch_bytes=80, records=3)
        errors = [batch.error for batch in course.batches.values()]
        unknown += sum(isinstance(error, AppendIndefinite) for error in errors)
        definite += sum(
            error is not None and not isinstance(error, AppendIndefinite) for error in errors
        )
        acknowledged += sum(error is None for error in errors)
        repeated += sum(batch.unresolved for batch in course.batches.values() if not batch.error)
    assert min(repeated, unknown, definite) > 20
    assert acknowledged > 400


def run_many() -> None:
    for seed in range(60):
        run(seed, batch_bytes=80, records=3)


@pytest.mark.parametrize("defect", ["says nothing", "looks too high", "forgets", "no order"])
def test_the_model_finds_a_faulty_queue(monkeypatch: pytest.MonkeyPatch, defect: str) -> None:
    """It can fail: a sequencer that is not told to look, or not far enough down, puts a batch into
    the log twice; unresolved batches that count as new fail definitely though they are there."""
    opening, take_back = AppendQueue.opening, AppendQueue._take_back

    def opens(queue: AppendQueue) -> Opening:
        told = opening(queue)
        if defect == "says nothing":
            return told._replace(unresolved=False)
        if defect == "looks too high":
            return told._replace(resolve_from=Offset(told.resolve_from + 3))
        return told

    def takes_back(queue: AppendQueue, *, unresolved: bool) -> None:
        if defect == "forgets":
            unresolved = False
        if defect == "no order":
            queue.sent.reverse()
        take_back(queue, unresolved=unresolved)

    monkeypatch.setattr(AppendQueue, "opening", opens)
    monkeypatch.setattr(AppendQueue, "_take_back", takes_back)
    with pytest.raises((AssertionError, ProtocolError)):
        run_many()
