"""Defects of a sequencer's state: conditions, fences, named producers, and taking over."""

from __future__ import annotations

import asyncio
from typing import Any

from helpers.sim.mutants.beyond import held_beyond, serve_beyond
from helpers.sim.mutants.registry import Patch, mutant

from metadata.records import LogRecord
from sequencer import admission
from sequencer.admission import Admission
from sequencer.core import LogletSequencer
from sequencer.loglets import ActiveLoglet, FutureTicket
from sequencer.opening import Openings
from sequencer.producers import ProducerTable
from sequencer.replication import Replication
from sequencer.state import PRODUCER, Life, LogState, StateRange
from sequencer.state_recovery import StateRecovery
from sharedlog.append_queue import AppendQueue
from sharedlog.batch import KIND_CONTROL, check_placed
from sharedlog.control import decode_control, producer_id_of
from sharedlog.errors import ConditionFailed
from sharedlog.ids import Offset

# What a failover loses.


@mutant(
    "which batches of a producer are in the log is lost at a failover",
    mix="stale sequencers",
    kinds="twice",
)
def producer_table_lost_at_failover(patch: Patch) -> None:
    opened = ProducerTable.open

    def _open(self: ProducerTable, opening: Any, next_offset: Offset) -> Any:
        return opened(self, opening._replace(unresolved=False), next_offset)

    patch.setattr(ProducerTable, "open", _open)


@mutant("named producers are forgotten at a failover", mix="moves", kinds="producer")
def named_producers_forgotten_at_failover(patch: Patch) -> None:
    _forget_at_failover(patch, "_producers", dict)


@mutant("the fencing token is forgotten at a failover", mix="moves", kinds="fence")
def fence_forgotten_at_failover(patch: Patch) -> None:
    _forget_at_failover(patch, "token", str)


def _forget_at_failover(patch: Patch, part: str, nothing: type[Any]) -> None:
    recover = StateRecovery.recover

    async def _recover(self: StateRecovery, record: LogRecord, base: Offset) -> LogState:
        state = await recover(self, record, base)
        setattr(state, part, nothing())
        return state

    patch.setattr(StateRecovery, "recover", _recover)


@mutant(
    "a new segment does not go on from the timestamp that it inherits (field note 43)",
    mix="clocks",
    kinds="time",
)
def inherited_timestamp_ignored(patch: Patch) -> None:
    made, on_state = LogletSequencer.__init__, ActiveLoglet.on_state

    def __init__(self: LogletSequencer, *args: Any, **settings: Any) -> None:  # noqa: N807
        made(self, *args, **settings | {"last_timestamp_ms": 0})

    def _on_state(self: ActiveLoglet, state: LogState) -> None:
        state.last_ms = 0
        on_state(self, state)

    patch.setattr(LogletSequencer, "__init__", __init__)
    patch.setattr(ActiveLoglet, "on_state", _on_state)


@mutant(
    "the state is that of a control batch beyond the chain's end (field note 7)",
    mix="rival repairs",
    kinds="fence producer state",
)
def state_of_a_batch_beyond_the_end(patch: Patch) -> None:
    recover = StateRecovery.recover

    async def _recover(self: StateRecovery, record: LogRecord, base: Offset) -> LogState:
        state = LogState(expiry_s=self._config.named_producer_expiry_s)
        for placed in await _held_beyond(self, record, base):
            placement = check_placed(placed)
            if placement.kind == KIND_CONTROL:
                found = StateRange(placement.first, placement.end)
                state.on_recovered(found, decode_control(placed), ())
                return state
        return await recover(self, record, base)

    patch.setattr(StateRecovery, "recover", _recover)
    serve_beyond(patch)


async def _held_beyond(recovery: Any, record: LogRecord, base: Offset) -> list[bytes]:
    """What the segment that ended at `base` has left beyond it, the newest of each server first."""
    return [
        placed
        for segment in record.chain
        if segment.end == base
        for replica in segment.nodeset
        for placed in reversed(
            await held_beyond(recovery._history, record.loglet(segment), base, replica)
        )
    ]


@mutant(
    "a placement does not name the batches of named producers behind the control batch",
    mix="moves",
    kinds="producer",
)
def range_of_the_state_too_short(patch: Patch) -> None:
    on_records = LogState.on_records

    def _on_records(self: LogState, *args: Any) -> None:
        known = self.range
        on_records(self, *args)
        self.range = known

    patch.setattr(LogState, "on_records", _on_records)


# Named producers.


@mutant("a life goes on although a newer one has begun", mix="moves", kinds="producer")
def older_life_goes_on(patch: Patch) -> None:
    go_on = LogState.go_on

    def _go_on(self: LogState, name: str, epoch: int, next_sequence: int, *rest: Any) -> Life:
        known = self.producer(name)
        if known is not None and known.epoch > epoch:
            return Life(producer_id_of(name), epoch, next_sequence, is_new=False)
        return go_on(self, name, epoch, next_sequence, *rest)

    patch.setattr(LogState, "go_on", _go_on)


@mutant(
    "a named producer sends what is behind a record that failed",
    mix="three of three",
    kinds="producer",
    first=14,
)
def sends_behind_a_failed_record(patch: Patch) -> None:
    patch.setattr(AppendQueue, "_fail_behind", lambda _: None)
    patch.setattr(AppendQueue, "refuse_if_stopped", lambda _: None)


# What is told too early.


@mutant(
    "a refusal does not wait until what it rests on is committed",
    mix="full disks",
    kinds="match fence",
)
def refusal_before_its_commit(patch: Patch) -> None:
    patch.setattr(LogletSequencer, "newest", property(lambda _: None))


@mutant("a refusal is not confirmed by a write quorum", mix="lone clients", kinds="match fence")
def refusal_not_confirmed(patch: Patch) -> None:
    ask = Replication.ask_for_tail

    def ask_for_tail(self: Replication, active: Any, caller: Any) -> None:
        if any(refusal.tail is caller for refusal in active.refusals):
            caller.set_result(active.core.committed_tail)
        else:
            ask(self, active, caller)

    patch.setattr(Replication, "ask_for_tail", ask_for_tail)


@mutant(
    "a condition is looked at before the repetition",
    mix="stale sequencers",
    kinds="not-definite match",
)
def condition_before_the_repetition(patch: Patch) -> None:
    submit = Admission.submit

    def _submit(self: Admission, active: Any, sender: Any, *rest: Any) -> None:
        _, conditions, ticket = rest
        try:
            admission._check(active, conditions)
        except ConditionFailed as error:
            self._refused(sender, error)
            self._refuse(active, ticket, error)
            return
        submit(self, active, sender, *rest)

    patch.setattr(Admission, "submit", _submit)


@mutant("a life is told before it is in the log", mix="zombies", kinds="producer")
def life_told_before_it_is_in_the_log(patch: Patch) -> None:
    async def _is_said(self: Openings, active: Any, life: Any) -> bool:
        if life.is_new or not active.known_state.is_counted:
            said = asyncio.get_running_loop().create_future()
            said.add_done_callback(lambda done: done.cancelled() or done.exception())
            self._admission.control(active, PRODUCER, FutureTicket(said))
        return True

    patch.setattr(Openings, "_is_said", _is_said)
