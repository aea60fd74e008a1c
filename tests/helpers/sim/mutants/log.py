"""Defects above the log servers: readers, quorums, outcomes, recovery."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from helpers.sim.mutants.beyond import held_beyond, serve_beyond
from helpers.sim.mutants.registry import Patch, mutant

from loglet.messages import (
    SealResponse,
)
from loglet.reads import ReadService
from loglet.recovery import SegmentRecovery
from loglet.store import LogletState
from metadata.encoding import encode_log, log_key
from metadata.quorum import QuorumRule
from node.move import Move
from sequencer.core import FailAppends, LogletSequencer
from sequencer.find_tail import AnswerTail, FindTailRounds
from sequencer.history import HistoryPage, LogHistory
from sequencer.producers import ProducerTable
from sequencer.state_recovery import StateRecovery
from sharedlog.batch import parse_placement, parse_producer
from sharedlog.errors import CorruptBatch, SharedLogError
from sharedlog.ids import Offset

# Readers.


@mutant(
    "a reader trusts the sealed flag and the local tail as the segment's end (field note 8)",
    mix="rival repairs",
    kinds="changed invented gap real-time stuck short",
)
def sealed_flag_is_the_end(patch: Patch) -> None:
    limits = ReadService._limits

    def _limits(self: ReadService, query: Any, state: LogletState | None) -> Any:
        if state is not None and state.sealed and state.told_end is None:
            state = replace(state, told_end=state.local_tail, committed_tail=state.local_tail)
            return limits(self, query._replace(segment_end=None), state)
        return limits(self, query, state)

    patch.setattr(ReadService, "_limits", _limits)


# Quorums and find-tail.


@mutant("the seal quorum is one too small", mix="stale sequencers", kinds="lost real-time")
def seal_quorum_one_too_small(patch: Patch) -> None:
    right = QuorumRule.is_seal_quorum

    def is_seal_quorum(self: QuorumRule, members: Any) -> bool:
        chosen = set(members)
        return right(self, chosen) or any(
            right(self, chosen | {other}) for other in range(self.replicas)
        )

    patch.setattr(QuorumRule, "is_seal_quorum", is_seal_quorum)


@mutant("find-tail joins a running round", mix="tails", kinds="real-time")
def find_tail_joins_a_running_round(patch: Patch) -> None:
    begin = FindTailRounds.on_find_tail

    def on_find_tail(self: FindTailRounds, caller: object, committed: Offset) -> Any:
        if self._running:
            self._running.append(caller)
            return []
        return begin(self, caller, committed)

    patch.setattr(FindTailRounds, "on_find_tail", on_find_tail)


@mutant("find-tail is not confirmed", mix="zombies", kinds="real-time")
def find_tail_not_confirmed(patch: Patch) -> None:
    def on_find_tail(self: FindTailRounds, caller: object, committed: Offset) -> Any:
        return [AnswerTail([caller], committed)]

    patch.setattr(FindTailRounds, "on_find_tail", on_find_tail)


@mutant("find-tail is confirmed by a seal quorum (3 of 3)", mix="three of three", kinds="real-time")
def find_tail_confirmed_by_a_seal_quorum(patch: Patch) -> None:
    confirmed = FindTailRounds.on_unsealed

    def on_unsealed(self: FindTailRounds, replica: int, round_id: int, committed: Offset) -> Any:
        if self._running and round_id == self.round_id:
            self._confirmed.add(replica)
            if self.rule.is_seal_quorum(self._confirmed):
                self._confirmed.update(range(self.rule.replicas))
        return confirmed(self, replica, round_id, committed)

    patch.setattr(FindTailRounds, "on_unsealed", on_unsealed)


# Outcomes.


@mutant(
    "SEALED is taken as a definite failure (field note 17)",
    mix="stale sequencers",
    kinds="not-definite twice",
)
def sealed_taken_as_definite(patch: Patch) -> None:
    ended = LogletSequencer.on_ended

    def on_ended(self: LogletSequencer, reason: SharedLogError) -> Any:
        effects = ended(self, reason)
        for effect in effects:
            if isinstance(effect, FailAppends):
                # Of a class that says of itself that it is definite: no other is believed.
                effect.error = CorruptBatch(str(effect.error))  # type: ignore[assignment]  # the defect
        return effects

    patch.setattr(LogletSequencer, "on_ended", on_ended)


@mutant(
    "a batch fails definitely when the write quorum is out of reach (field note 41)",
    mix="quorum lost",
    kinds="not-definite twice",
)
def definite_when_the_quorum_is_out_of_reach(patch: Patch) -> None:
    out_of_step = LogletSequencer.on_out_of_step

    def on_out_of_step(self: Any, replica: int) -> None:
        out_of_step(self, replica)
        able = {member for member in range(self.rule.replicas) if self.in_step(member)}
        if self.rule.is_write_quorum(able):
            return
        for batch in self._in_flight:
            batch.ticket.ticket.failed(CorruptBatch("a write quorum of the log can't be reached"))

    patch.setattr(LogletSequencer, "on_out_of_step", on_out_of_step)


@mutant("timestamps run back across sequencers (field note 43)", mix="clocks", kinds="time")
def timestamps_run_back(patch: Patch) -> None:
    append = LogletSequencer.on_append

    def on_append(self: LogletSequencer, *args: Any, **named: Any) -> Any:
        self.last_timestamp_ms = 0
        return append(self, *args, **named)

    patch.setattr(LogletSequencer, "on_append", on_append)


@mutant(
    "repeated batches are not recognised (field note 36)", mix="stale sequencers", kinds="twice"
)
def dedupe_off(patch: Patch) -> None:
    check, opened = ProducerTable.check, ProducerTable.open

    def _open(self: ProducerTable, opening: Any, next_offset: Offset) -> Any:
        return opened(self, opening._replace(unresolved=False), next_offset)

    def _check(self: ProducerTable, session: Any, by: Any) -> Any:
        producer = self._producers[session.producer_id]
        producer.batches.clear()
        producer.last_sequence = -1
        return check(self, session, by)

    patch.setattr(ProducerTable, "open", _open)
    patch.setattr(ProducerTable, "check", _check)


# Recovery.


@mutant(
    "a repair brings records to one server only",
    mix="rival repairs",
    kinds="early lost copies",
)
def repair_to_one_server_only(patch: Patch) -> None:
    uncovered = SegmentRecovery._uncovered

    def _uncovered(self: Any, committed: Offset, end: Offset, *, filled: Any = ()) -> Any:
        rule = self._rule
        self._rule = replace(rule, write_quorum=1, spread=(), places=())
        segment, self.segment = self.segment, replace(self.segment, write_quorum=1, spread=())
        try:
            return uncovered(self, committed, end, filled=filled)
        finally:
            self._rule, self.segment = rule, segment

    patch.setattr(SegmentRecovery, "_uncovered", _uncovered)


@mutant("M is the lowest local tail", mix="stale sequencers", kinds="lost real-time changed")
def lowest_local_tail(patch: Patch) -> None:
    find = SegmentRecovery._find_tail

    def _find_tail(self: SegmentRecovery) -> Any:
        voters = self._voters()
        if self._rule.is_seal_quorum(voters):
            answers = self._answers
            committed = max(it.committed_tail for it in answers.values())
            low = max(committed, min(answers[it].local_tail for it in voters))
            self._answers = {
                member: replace(answer, local_tail=min(low, answer.local_tail))
                for member, answer in answers.items()
            }
        return find(self)

    patch.setattr(SegmentRecovery, "_find_tail", _find_tail)


@mutant(
    "a repair truncates on an unknown: damage is taken for absence (field note 5)",
    mix="damaged copies",
    kinds="lost real-time changed early",
)
def damage_taken_for_absence(patch: Patch) -> None:
    sealed = SegmentRecovery.on_sealed

    def on_sealed(self: SegmentRecovery, server: int, answer: SealResponse) -> None:
        if answer.damaged:
            first = min(first for first, _ in answer.damaged)
            answer = replace(answer, local_tail=first, damaged=[])
        sealed(self, server, answer)

    patch.setattr(SegmentRecovery, "on_sealed", on_sealed)


@mutant(
    "a repair truncates on an unknown: silence is taken for absence (field note 5)",
    mix="lost copies",
    kinds="lost real-time changed",
)
def silence_taken_for_absence(patch: Patch) -> None:
    over = SegmentRecovery.on_patience_over

    def on_patience_over(self: SegmentRecovery) -> None:
        base = self.segment.base
        for member in self.unanswered():
            self.on_sealed(member, SealResponse(base, base))
        over(self)

    patch.setattr(SegmentRecovery, "on_patience_over", on_patience_over)


@mutant(
    "the search for a producer's batches reads beyond the chain's end (field note 7)",
    mix="rival repairs",
    kinds="lost gap order not-definite twice real-time",
)
def state_recovered_beyond_the_end(patch: Patch) -> None:
    scan = LogHistory.scan

    async def _scan(self: Any, record: Any, start: Offset, end: Offset) -> Any:
        for segment in record.chain:
            if segment.end is None or segment.end < start:
                continue
            for replica in segment.nodeset:
                held = await held_beyond(self, record.loglet(segment), segment.end, replica)
                if held:
                    found = [(parse_placement(it), parse_producer(it)) for it in held]
                    yield HistoryPage(found, start)
        async for page in scan(self, record, start, end):
            yield page

    def _scan_state(self: Any, record: Any, start: Offset, end: Offset) -> Any:
        return scan(self._history, record, start, end)  # another defect: `state.py`

    patch.setattr(LogHistory, "scan", _scan)
    patch.setattr(StateRecovery, "_scan", _scan_state)
    serve_beyond(patch)


@mutant(
    "the loser moves the end (field note 7)",
    mix="rival repairs",
    kinds="stuck chain lost changed unreadable",
)
def loser_moves_the_end(patch: Patch) -> None:
    extend = Move._extend

    async def _extend(self: Any, record: Any, version: Any, plan: Any, sealed: Any) -> Any:
        done = await extend(self, record, version, plan, sealed)
        chain = list(done.record.chain)
        end = sealed.ending.end
        if len(chain) < 2 or not done.adopted:
            return done
        ended, opened = chain[-2:]
        if ended.index == self._segment.index and ended.end != end and end > ended.base:
            chain[-2:] = [replace(ended, end=end), replace(opened, base=end)]
            moved = encode_log(replace(done.record, chain=tuple(chain)))
            await self._tools.store.put(log_key(record.name), moved, expected=done.version)
        return done

    patch.setattr(Move, "_extend", _extend)
