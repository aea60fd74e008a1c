"""Defects of a log server: seals, stores, repairs, what it finds at a start."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from helpers.sim import log_store
from helpers.sim.mutants.registry import Patch, mutant

from loglet import core as loglet_core
from loglet import held as loglet_held
from loglet.core import LogServerCore
from loglet.group import Checked, Decision, Group
from loglet.messages import (
    OpenLoglet,
    RepairRequest,
    RepairResponse,
    SealRequest,
    SealResponse,
    Stored,
    StoreRequest,
    StoreResponse,
)
from loglet.service import LogServer
from loglet.store import LogletState, PutLoglet
from metadata import reconfiguration
from metadata.records import NodeRecord, Replica
from sharedlog.batch import Placement, parse_placement
from sharedlog.errors import SharedLogError
from sharedlog.ids import SequencerId


@mutant(
    "recovery counts answers of unsealed nodes (field note 2)",
    mix="seals under load",
    first=28,
    kinds="lost real-time",
)
def seal_answers_without_sealing(patch: Patch) -> None:
    seal = LogServerCore._seal

    def _seal(self: LogServerCore, request: SealRequest, group: Group) -> Any:
        state = self._loglets.get(request.loglet)
        if state is None or state.sealed:
            return seal(self, request, group)
        return SealResponse(state.local_tail, state.committed_tail, state.last_timestamp_ms)

    patch.setattr(LogServerCore, "_seal", _seal)


@mutant(
    "the check for a seal and the write are not one step (field note 3)",
    mix="seals under load",
    kinds="lost real-time early",
)
def seal_races_the_write(patch: Patch) -> None:
    serve = LogServer._serve_seal

    async def _serve_seal(self: LogServer, request: SealRequest) -> SealResponse:
        durable = {state.loglet: state for state in self._store.loglets()}
        answer = await serve(self, request)  # what was checked before lands, and is acknowledged
        before = durable.get(request.loglet)
        if before is not None and not before.sealed:
            answer = replace(answer, local_tail=before.local_tail, damaged=[])
        return answer

    patch.setattr(LogServer, "_serve_seal", _serve_seal)


@mutant("ack before fsync (field note 25)", mix="power cuts", kinds="early lost")
def answers_leave_before_the_sync(patch: Patch) -> None:
    async def _commit(self: Any, decision: Decision) -> None:
        running = getattr(self, "_mutant_commit", None)
        if running is not None:
            await running
        self._mutant_commit = asyncio.ensure_future(self._store.commit(decision.writes))

    patch.setattr(LogServer, "_commit", _commit)


@mutant(
    "a wiped node votes in a seal (field note 20)",
    mix="lost copies",
    kinds="lost real-time changed copies",
)
def wiped_node_votes(patch: Patch) -> None:
    _ask_whatever_store(patch, SealRequest)
    right = reconfiguration.replica_state

    def replica_state(replica: Replica, node: NodeRecord | None) -> reconfiguration.ReplicaState:
        state = right(replica, node)
        return "present" if state == "lost" and node is not None and node.storage_id else state

    for module in list(sys.modules.values()):
        if getattr(module, "replica_state", None) is right:
            patch.setattr(module, "replica_state", replica_state)


@mutant(
    "no storage_id check on stores (field note 20)",
    mix="wipes",
    kinds="early lost copies",
)
def no_storage_check_on_stores(patch: Patch) -> None:
    _ask_whatever_store(patch, StoreRequest)


def _ask_whatever_store(patch: Patch, kind: type[Any]) -> None:
    plan = LogServerCore.plan

    def _plan(self: LogServerCore, requests: Sequence[Any]) -> Any:
        mine = self.storage_id
        return plan(
            self, [replace(it, storage_id=mine) if isinstance(it, kind) else it for it in requests]
        )

    patch.setattr(LogServerCore, "plan", _plan)


@mutant(
    "a sealed server acks a duplicate that it holds",
    mix="rival repairs",
    kinds="lost real-time early",
)
def sealed_server_acks_a_duplicate(patch: Patch) -> None:
    store = LogServerCore._store

    def _store(
        self: LogServerCore, request: StoreRequest, checked: Checked, group: Group
    ) -> StoreResponse:
        acked: list[Stored] = []
        left: list[tuple[bytes, Any]] = []
        for placed, (placement, corrupt) in zip(request.batches, checked, strict=True):
            state = self._loglets.get(placement.loglet)
            sealed = state is not None and state.sealed
            held = group.overlapping(placement.loglet, placement.first, placement.end)
            if sealed and corrupt is None and len(held) == 1:
                acked.append(Stored(placement.loglet, placement.first, placement.end))
            else:
                left.append((placed, (placement, corrupt)))
        opens = [it for it in request.opens if not self._is_sealed(it)]  # type: ignore[attr-defined]
        rest = replace(request, opens=opens, batches=[placed for placed, _ in left])
        response = store(self, rest, [it for _, it in left], group)
        response.stored.extend(acked)
        return response

    def _is_sealed(self: LogServerCore, opened: OpenLoglet) -> bool:
        state = self._loglets.get(opened.loglet)
        return state is not None and state.sealed

    patch.setattr(LogServerCore, "_store", _store)
    patch.setattr(LogServerCore, "_is_sealed", _is_sealed, raising=False)


@mutant(
    "a repair raises the committed tail (field note 7)",
    mix="rival repairs",
    kinds="changed real-time invented",
)
def repair_raises_the_committed_tail(patch: Patch) -> None:
    serve = LogServer._serve_repair

    async def _serve_repair(self: LogServer, request: RepairRequest) -> RepairResponse:
        answer = await serve(self, request)
        ends = [parse_placement(placed).end for placed in request.batches]
        if self._core.raise_committed_tail(request.loglet, max(ends)):
            self._watchers.wake([request.loglet])
        return answer

    patch.setattr(LogServer, "_serve_repair", _serve_repair)


@mutant("the prefix rule is off", mix="full disks", kinds="early copies lost", first=18)
def prefix_rule_off(patch: Patch) -> None:
    take = LogServerCore._take

    def _take(self: LogServerCore, placement: Placement, placed: bytes, group: Group) -> None:
        state = self._loglets[placement.loglet]
        known = state.committed_tail
        state.committed_tail = max(known, placement.first)
        try:
            take(self, placement, placed, group)
        finally:
            state.committed_tail = max(known, placement.committed_tail)

    patch.setattr(LogServerCore, "_take", _take)


@mutant(
    "the seal of an unknown loglet is not recorded",
    mix="zombies",
    kinds="lost real-time",
)
def seal_of_an_unknown_loglet_is_not_recorded(patch: Patch) -> None:
    seal = LogServerCore._seal

    def _seal(self: LogServerCore, request: SealRequest, group: Group) -> Any:
        if self._loglets.get(request.loglet) is None:
            return SealResponse(request.base, request.base)
        return seal(self, request, group)

    patch.setattr(LogServerCore, "_seal", _seal)


@mutant("a seal is answered before its fsync", mix="crashes at seals", kinds="early lost real-time")
def seal_answered_before_the_sync(patch: Patch) -> None:
    write, commit = LogServer._write, LogServer._commit

    async def _write(self: Any, group: Sequence[Any]) -> Any:
        self._mutant_group = group
        return await write(self, group)

    async def _commit(self: Any, decision: Decision) -> None:
        for queued, answer in zip(self._mutant_group, decision.answers, strict=True):
            if isinstance(answer, SealResponse) and not queued.to.done():
                queued.to.set_result(answer)
        await commit(self, decision)

    patch.setattr(LogServer, "_write", _write)
    patch.setattr(LogServer, "_commit", _commit)


@mutant("an open clears a seal", mix="zombies", kinds="lost real-time early")
def open_clears_a_seal(patch: Patch) -> None:
    opened_by = LogServerCore._open

    def _open(
        self: LogServerCore, opened: OpenLoglet, sequencer: SequencerId, group: Group
    ) -> None:
        state = self._loglets.get(opened.loglet)
        if state is not None and state.sealed:
            state.sealed, state.opened_by, state.told_end = False, sequencer, None
            group.decision.writes.append(loglet_core._record(state))
        opened_by(self, opened, sequencer, group)

    patch.setattr(LogServerCore, "_open", _open)


@mutant(
    "a repair store counts as an ack to the sequencer",
    mix="rival repairs",
    kinds="lost real-time early",
)
def repair_store_counts_as_an_ack(patch: Patch) -> None:
    serve = LogServer._serve_repair

    async def _serve_repair(self: LogServer, request: RepairRequest) -> RepairResponse:
        answer = await serve(self, request)
        (checked,) = self._core.plan([request]).checked
        assert not isinstance(checked, SharedLogError)
        for answers in self._streams:
            stored = [Stored(request.loglet, it.first, it.end) for it, _ in checked]
            answers._ready.append(StoreResponse(stored=stored))
            answers._notify()
        return answer

    patch.setattr(LogServer, "_serve_repair", _serve_repair)


@mutant(
    "a damaged batch is forgotten at a restart (field note 5)",
    mix="damaged copies",
    kinds="lost real-time changed copies crash early",
)
def damaged_batch_forgotten_at_restart(patch: Patch) -> None:
    restored = loglet_held.restored

    def _restored(record: PutLoglet, newest: Any) -> LogletState:
        sound = [
            (first, end, placed)
            for first, end, placed in newest
            if loglet_held.verified(record.loglet, first, end, placed).placement_bytes is not None
        ]
        return restored(record, sound)

    patch.setattr(loglet_held, "restored", _restored)
    patch.setattr(log_store, "restored", _restored)
