"""The log's state: what control batches hold, where it lies, and what a takeover makes of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

import pytest

import sequencer.state as state_module
from sequencer.state import (
    BATCHES_MAX,
    BYTES_MAX,
    CHECKPOINT,
    FENCE,
    NO_STATE,
    PRODUCER,
    LogState,
    StateRange,
)
from sharedlog.batch import (
    KIND_CONTROL,
    NO_PRODUCER,
    BatchProducer,
    Placement,
)
from sharedlog.control import producer_id_of
from sharedlog.errors import FencingTokenMismatch, Overloaded, ProducerFenced
from sharedlog.ids import LogId, LogletId, Offset
from sharedlog.v1 import control_pb2

LOGLET = LogletId(LogId(7), 0)
WEEK_S = 7 * 86_400.0


@dataclass
class Model:
    """A log of batches without payloads, written by the rules of `sequencer/admission.py`."""

    state: LogState = field(default_factory=lambda: LogState(expiry_s=WEEK_S))
    batches: list[tuple[Placement, BatchProducer, int]] = field(default_factory=list)
    controls: dict[int, control_pb2.LogState] = field(default_factory=dict)
    now_ms: int = 1_000
    busy: set[int] = field(default_factory=set)

    @property
    def tail(self) -> Offset:
        return self.batches[-1][0].end if self.batches else Offset(0)

    def control(self, cause: control_pb2.LogState.Cause.ValueType) -> None:
        first = self.tail
        message = self.state.message(cause, lambda: self.busy, self.now_ms)
        self.controls[first] = message
        size = 100 + message.ByteSize()
        self.state.on_control(first, Offset(first + 1), size)
        self._place(first, 1, NO_PRODUCER, size, KIND_CONTROL)

    def records(self, by: BatchProducer, count: int, size: int) -> None:
        if self.state.needs_checkpoint(by, size):
            self.control(CHECKPOINT)
        first = self.tail
        self.state.on_records(by, first, Offset(first + count), size, self.now_ms)
        self._place(first, count, by, size, 0)

    def _place(self, first: int, count: int, by: BatchProducer, size: int, kind: int) -> None:
        found = Placement(
            LOGLET, Offset(first), count, self.now_ms, Offset(0), 0, kind, *self.state.range
        )
        self.batches.append((found, by, size))

    def recovered(self) -> LogState:
        """What a takeover finds behind the last batch."""
        made = LogState(expiry_s=WEEK_S)
        if not self.batches:
            return made
        last = self.batches[-1][0]
        found = StateRange(last.state_from, last.state_until)
        if found == NO_STATE:
            return made
        inside = [it for it in self.batches if found.start <= it[0].first < found.until]
        assert inside[0][0].kind == KIND_CONTROL, "the range begins with a control batch"
        assert len(inside) <= BATCHES_MAX + 1
        assert sum(size for _, _, size in inside[:-1]) <= BYTES_MAX
        control = self.controls[found.start]
        made.on_recovered(found, control, [(placement, by) for placement, by, _ in inside])
        return made


def shown(state: LogState) -> object:
    message = state.message(CHECKPOINT, set, 0)
    return message.fencing_token, list(message.producers), message.forgotten_epoch, state.range


def step(model: Model, rng: Random, lives: dict[str, BatchProducer]) -> None:
    what = rng.random()
    name = rng.choice(("a", "b", "c"))
    if what < 0.1:
        model.state.token = rng.choice(("", "x", "y"))
        model.control(FENCE)
    elif what < 0.25 or name not in lives:
        life = model.state.begin_life(name, lambda: model.busy, model.now_ms)
        model.control(PRODUCER)
        lives[name] = BatchProducer(life.producer_id, life.epoch, life.next_sequence)
    elif what < 0.6:
        count = rng.randint(1, 3)
        by = lives[name]
        model.records(by, count, rng.choice((100, 100, 3_000_000)))
        lives[name] = by._replace(sequence=by.sequence + count)
    else:
        model.records(BatchProducer(99, 0, 0), 1, rng.choice((100, 3_000_000)))
    model.now_ms += rng.randint(0, 5)


@pytest.mark.slow
def test_a_takeover_finds_the_state_that_there_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the log ends, three short reads give the state: invariants 1 and 2."""
    monkeypatch.setattr(state_module, "BATCHES_MAX", 12)
    for seed in range(300):
        rng, model = Random(seed), Model()
        lives: dict[str, BatchProducer] = {}
        for _ in range(80):
            step(model, rng, lives)
            recovered = model.recovered()
            assert shown(recovered) == shown(model.state), f"seed {seed}"
            last = model.batches[-1][0]
            inside = [it for it in model.batches if last.state_from <= it[0].first]
            inside = [it for it in inside if it[0].first < last.state_until]
            assert len(inside) <= 13, f"seed {seed}: a takeover reads too much"
            if rng.random() < 0.05:
                model.state = recovered
                for name, life in lives.items():  # each opens a session anew
                    found = recovered.go_on(name, life.epoch, life.sequence, set, model.now_ms)
                    assert not found.is_new
                if lives:
                    model.control(PRODUCER)


def test_a_log_of_ordinary_appends_has_no_control_batch() -> None:
    """Records that nobody asked for are not written where nobody needs them."""
    model = Model()
    for _ in range(3 * BATCHES_MAX):
        model.records(BatchProducer(99, 0, 0), 1, BYTES_MAX)
    assert not model.controls
    assert model.state.range == NO_STATE


def test_a_log_whose_state_rests_has_no_checkpoints() -> None:
    """They come with the next batch that changes the state, in front of it."""
    model = Model()
    life = model.state.begin_life("a", set, 0)
    model.control(PRODUCER)
    for _ in range(2 * BATCHES_MAX):
        model.records(NO_PRODUCER, 1, 100)
    assert list(model.controls) == [0]
    assert model.state.range == (0, 1)
    model.records(BatchProducer(life.producer_id, life.epoch, 0), 1, 100)
    assert list(model.controls) == [0, 1 + 2 * BATCHES_MAX]
    assert model.state.range == (1 + 2 * BATCHES_MAX, 3 + 2 * BATCHES_MAX)


def test_a_state_that_only_the_archive_has_is_written_anew_at_once() -> None:
    """By the first batch, whoever's it is; after that everything is as ever."""
    model = Model()
    model.control(FENCE)
    found = StateRange(Offset(0), Offset(1))
    model.state = LogState(expiry_s=WEEK_S)
    model.state.on_recovered(found, model.controls[0], [])
    assert not model.state.needs_checkpoint(NO_PRODUCER, 100)
    model.state.is_archived = True
    model.records(NO_PRODUCER, 3, 100)
    model.records(NO_PRODUCER, 3, 100)
    kinds = [placement.kind for placement, _, _ in model.batches]
    assert kinds == [KIND_CONTROL, KIND_CONTROL, 0, 0]
    assert model.batches[-1][0].state_from == 1


def test_a_life_goes_on_where_the_last_one_stopped() -> None:
    state = LogState(expiry_s=WEEK_S)
    first = state.begin_life("importer", set, 5)
    assert (first.epoch, first.next_sequence, first.is_new) == (1, 0, True)
    state.on_records(BatchProducer(first.producer_id, 1, 0), Offset(3), Offset(7), 100, 6)
    second = state.begin_life("importer", set, 9)
    assert (second.epoch, second.next_sequence) == (2, 4)
    with pytest.raises(ProducerFenced) as fenced:
        state.go_on("importer", 1, 4, set, 9)
    assert fenced.value.life == 2
    assert state.go_on("importer", 2, 4, set, 9).is_new is False


def test_a_token_is_compared_as_it_is() -> None:
    """ "" is no token: an append may ask for that, too."""
    state = LogState(expiry_s=WEEK_S)
    state.check_token("")
    with pytest.raises(FencingTokenMismatch) as error:
        state.check_token("x")
    assert (error.value.given, error.value.current) == ("x", "")
    state.token = "x"
    state.check_token("x")
    with pytest.raises(FencingTokenMismatch):
        state.check_token("")


def test_who_is_idle_for_long_is_forgotten_and_begins_anew() -> None:
    """Stated time, by the log's own; one with a session stays."""
    state = LogState(expiry_s=1)
    state.begin_life("old", set, 1_000)
    state.begin_life("at work", set, 1_000)
    state.begin_life("new", set, 1_900)
    message = state.message(CHECKPOINT, lambda: {producer_id_of("at work")}, 2_001)
    assert [it.name for it in message.producers] == ["at work", "new"]
    assert state.producer("old") is None
    again = state.begin_life("old", set, 2_001)
    assert (again.epoch, again.next_sequence) == (2, 0), "the life before is refused"


def test_the_table_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stated number: the longest idle one goes, and if all are at work nobody comes."""
    monkeypatch.setattr(state_module, "NAMED_PRODUCERS_MAX", 3)
    state = LogState(expiry_s=WEEK_S)
    for name in ("a", "b", "c"):
        state.begin_life(name, set, 0)
    state.begin_life("a", set, 0)
    state.begin_life("d", lambda: {producer_id_of("b")}, 0)
    assert [state.producer(it) is not None for it in "abcd"] == [True, True, False, True]
    with pytest.raises(Overloaded):
        state.begin_life("e", lambda: {producer_id_of(it) for it in "abd"}, 0)
    assert len(state) == 3
