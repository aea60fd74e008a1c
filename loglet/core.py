"""What a log server answers and writes: the rules of one store, without I/O.

Every request of every loglet passes through here in one queue, group by group: what was checked in
a group is written by that group's one commit, and the next group is looked at only after it. So
"not sealed" and "written" are one step, and there is no moment between them for a seal to slip in.

**How a group goes.** The shell takes what has queued and calls `plan`, which verifies the batches
and says which held ranges must be read from the store. With those it calls `decide`, which changes
the state in memory and returns the writes and one answer for each request. The shell commits the
writes and only then lets the answers out. If the store had no room, nothing was written: the shell
calls `reload` with what is on disk and decides the same group anew with no room for batches.

**The rules of a store** (DESIGN.md §4), in the order they are checked:

1. The request names this storage_id, or all of it is refused with `WrongStorage`: a wiped disk
   never answers for what the old one knew.
2. The loglet was opened explicitly (`LogletNotOpen`), is not sealed (`Sealed`, also for what is
   held), and was opened by exactly this sequencer (`WrongSequencer`).
3. Batch and placement match their checksums (`CorruptBatch`).
4. Offsets that are held: the stored placement is compared. Equal is an acknowledgement again;
   different means that one offset was given to two batches, which no correct sequencer does, so the
   server stops (`StoreFailed`). The placed bytes are made once, so equal is byte-equal, committed
   tail included. Offsets beyond an end that was told here are refused as `Sealed`.
5. Prefix rule: N is taken if N is the base, or N-1 is held, or N-1 is known to be committed
   (`MissingPrefix` otherwise). A replica that was skipped thus resumes at the committed tail and
   leaves a legal hole.
6. There is room (`StoreReadOnly`). Records of loglets, seals above all, may use the reserve.

After a loglet's first refusal in a message the rest of that loglet in that message is refused with
it; other loglets go on.

**Held offsets.** What lies at or above the local tail is new, so the common case needs no look-up
at all. Below it the store is asked, for the range and the offset before it, so that a duplicate is
compared and a hole is told apart from it. A batch that is damaged on disk keeps its place but
proves nothing: a store of it is refused as corrupt rather than acknowledged. A repair overwrites
it; `loglet/repair_rules.py` has the rules of repairs.

**Seals.** One way, idempotent. An unknown loglet is created sealed, so that an open that was on its
way finds it so. The answer carries the local tail at that point of the queue; it leaves after the
commit that holds the seal and every batch below that tail. From then on nothing but repairs changes
what is held, so the shell may look for damage in it at leisure before the answer leaves.

**Ends.** The chain's winner tells where a segment ends (`TellEndsRequest`); that is kept, fsynced,
and never changes. It proves everything below committed, for readers here. It is kept apart from the
committed tail, which alone is told to sealers: had a sealer taken an end for a committed tail, it
would have no need to repair what lies below. An ended loglet that nobody sealed here takes stores
of its sequencer below the end, so that fewer holes remain; it is not confirmed as unsealed.

**Committed tails** are hints from the loglet's own sequencer, on their own or within a placement.
They are applied in memory, only ever rise, and write nothing by themselves. They may run ahead of
what is held. A sealed loglet takes them too: they are true, and the model was checked with it. One
beyond a told end is passed over.

**Trims** raise the local start, as far as is known to be committed (`loglet/trim_rules.py`). What
is stored or repaired below it is answered as held, and not written: it was committed.

Deliberately not here: tombstones; the deletion of what was trimmed; reads; anything that waits.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import assert_never

from loglet.group import (
    BATCH_OVERHEAD_BYTES,
    Answer,
    Checked,
    Decision,
    Group,
    Held,
    LookUp,
    Plan,
    Request,
    is_held,
)
from loglet.messages import (
    CommittedTail,
    Confirmed,
    ConfirmUnsealed,
    OpenLoglet,
    RepairRequest,
    SealRequest,
    SealResponse,
    Stored,
    StoreRefused,
    StoreRequest,
    StoreResponse,
    TellEndsRequest,
    TellEndsResponse,
    TrimLoglets,
    TrimmedLoglets,
)
from loglet.repair_rules import repair
from loglet.store import LogletState, PutBatch, PutLoglet
from loglet.trim_rules import trim
from sharedlog.batch import Placement, check_placed, parse_placement
from sharedlog.errors import (
    CorruptBatch,
    LogletNotOpen,
    MissingPrefix,
    ProtocolError,
    Sealed,
    SharedLogError,
    StoreFailed,
    StoreReadOnly,
    WrongSequencer,
    WrongStorage,
)
from sharedlog.ids import LogletId, Offset, SequencerId, StorageId

_OFFSET_MAX = 2**63


class LogServerCore:
    """See the module's docstring."""

    def __init__(self, storage_id: StorageId, states: Iterable[LogletState]) -> None:
        self.storage_id = storage_id
        self._loglets = {state.loglet: replace(state) for state in states}
        # What `check_invariants` saw last, to catch what must never go back.
        self._seen: dict[LogletId, LogletState] = {}

    def loglet(self, loglet: LogletId) -> LogletState | None:
        """What is known of a loglet; not to be changed. Ahead of the disk while a commit runs."""
        return self._loglets.get(loglet)

    def loglets(self) -> Collection[LogletState]:
        """All of them; not to be changed."""
        return self._loglets.values()

    def check_storage(self, storage_id: StorageId) -> None:
        """Raise `WrongStorage` unless this is the store that was asked for."""
        if storage_id != self.storage_id:
            raise WrongStorage(
                f"storage {storage_id} was asked for; the one here is {self.storage_id}: "
                "the disk was swapped or wiped"
            )

    def raise_committed_tail(self, loglet: LogletId, tail: Offset) -> bool:
        """Take a tail that was proved to be committed; whether it says anything new.

        For a loglet whose sequencer is gone and can't tell it. An unknown loglet is passed over.
        """
        state = self._loglets.get(loglet)
        return state is not None and _raise(state, tail)

    def reload(self, states: Iterable[LogletState]) -> None:
        """After a failed commit: forget what was decided, take what is on disk.

        Committed tails are kept: they are true whatever this disk holds.
        """
        known = self._loglets
        self._loglets = {}
        self._seen.clear()
        for state in states:
            was = known.get(state.loglet)
            tail = state.committed_tail if was is None else was.committed_tail
            committed = max(tail, state.committed_tail)
            self._loglets[state.loglet] = replace(state, committed_tail=committed)

    def plan(self, requests: Sequence[Request]) -> Plan:
        """Verify a group's batches and say what must be looked up. Changes nothing."""
        plan = Plan(requests, [], [])
        ranges: dict[LogletId, LookUp] = {}  # the last of each loglet, which the next may prolong
        for request in requests:
            try:
                self.check_storage(request.storage_id)
                batches = (
                    request.batches if isinstance(request, StoreRequest | RepairRequest) else ()
                )
                found = [_check(placed) for placed in batches]
            except SharedLogError as error:
                plan.checked.append(error)
                continue
            plan.checked.append(found)
            for placement, _ in found:
                state = self._loglets.get(placement.loglet)
                if state is None or placement.end <= state.local_start:
                    continue
                if placement.first < state.local_tail:
                    wanted = LookUp(
                        placement.loglet, Offset(max(placement.first - 1, 0)), placement.end
                    )
                    last = ranges.get(placement.loglet)
                    if last is not None and last.start <= wanted.start <= last.end:
                        wanted = replace(last, end=max(last.end, wanted.end))
                    elif last is not None:
                        plan.look_ups.append(last)
                    ranges[placement.loglet] = wanted
        plan.look_ups.extend(ranges.values())
        return plan

    def decide(
        self, plan: Plan, held: Held, *, room_bytes: int, repair_room_bytes: int | None = None
    ) -> Decision:
        """Answer a planned group, given what was looked up and the room there is for batches.

        `repair_room_bytes` is the room for repairs, at least `room_bytes`, and that if not given.

        Raises:
            StoreFailed: an offset was given to two batches. Nothing may be committed; the server
            stops.
        """
        repair_room = room_bytes if repair_room_bytes is None else repair_room_bytes
        group = Group(held, room_bytes, repair_room, Decision([], [], set()))
        for request, checked in zip(plan.requests, plan.checked, strict=True):
            group.decision.answers.append(self._answer(request, checked, group))
        return group.decision

    def _answer(self, request: Request, checked: Checked | SharedLogError, group: Group) -> Answer:
        if isinstance(checked, SharedLogError):
            return checked
        match request:
            case StoreRequest():
                return self._store(request, checked, group)
            case SealRequest():
                return self._seal(request, group)
            case RepairRequest():
                return repair(self._loglets.get(request.loglet), request, checked, group)
            case TellEndsRequest():
                return self._tell_ends(request, group)
            case TrimLoglets():
                return self._trim(request, group)
        assert_never(request)

    def refuse(self, plan: Plan, error: StoreReadOnly) -> list[Answer]:
        """Answers for a group of which nothing could be written, not even the loglets' records."""
        answers: list[Answer] = []
        for request, checked in zip(plan.requests, plan.checked, strict=True):
            if isinstance(checked, SharedLogError):
                answers.append(checked)
            elif isinstance(request, StoreRequest):
                firsts = {opened.loglet: opened.base for opened in request.opens}
                for placement, _ in checked:
                    firsts.setdefault(placement.loglet, placement.first)
                refused = [StoreRefused(loglet, first, error) for loglet, first in firsts.items()]
                answers.append(StoreResponse([], refused, self._confirm(request.confirms)))
            else:
                answers.append(error)
        return answers

    def _store(
        self,
        request: StoreRequest,
        checked: Checked,
        group: Group,
    ) -> StoreResponse:
        response = StoreResponse()
        refused: set[LogletId] = set()
        for opened in request.opens:
            try:
                self._open(opened, request.sequencer, group)
            except SharedLogError as error:
                _refuse(response, refused, opened.loglet, opened.base, error)
                continue
            response.stored.append(Stored(opened.loglet, opened.base, opened.base))
        for hint in request.committed:
            self._learn(hint, request.sequencer, group)
        run: Stored | None = None  # the answer that the next batch may prolong
        for placed, (placement, corrupt) in zip(request.batches, checked, strict=True):
            loglet, first, end = placement.loglet, placement.first, placement.end
            if loglet in refused:
                continue
            try:
                self._check_writer(loglet, request.sequencer)
                if corrupt is not None:
                    raise corrupt
                self._take(placement, placed, group)
            except StoreFailed:
                raise
            except SharedLogError as error:
                _refuse(response, refused, loglet, first, error)
                continue
            if run is not None and run.loglet == loglet and run.end == first:
                run.end = end
            else:
                run = Stored(loglet, first, end)
                response.stored.append(run)
        if request.confirms:
            response.confirmed = self._confirm(request.confirms)
        return response

    def _open(self, opened: OpenLoglet, sequencer: SequencerId, group: Group) -> None:
        state = self._loglets.get(opened.loglet)
        if state is None:
            base = opened.base
            if not 0 <= base < _OFFSET_MAX:
                raise ProtocolError(f"loglet {opened.loglet} can't begin at {base}")
            self._create(opened.loglet, base, group, opened_by=sequencer)
            return
        self._check_writer(opened.loglet, sequencer)
        if state.base != opened.base:
            raise ProtocolError(f"loglet {opened.loglet} begins at {state.base}, not {opened.base}")
        if state.told_end is not None:
            raise _ended(state)

    def _create(
        self, loglet: LogletId, base: Offset, group: Group, *, opened_by: SequencerId | None
    ) -> LogletState:
        """A new loglet: opened, or sealed if nobody opened it."""
        state = LogletState(loglet, base, opened_by, opened_by is None, base, base, base)
        self._loglets[loglet] = state
        group.decision.writes.append(_record(state))
        group.decision.advanced.add(loglet)
        return state

    def _check_writer(self, loglet: LogletId, sequencer: SequencerId) -> None:
        state = self._loglets.get(loglet)
        if state is None:
            raise LogletNotOpen(f"loglet {loglet} was never opened on this log server")
        if state.sealed:
            raise Sealed(f"loglet {loglet} is sealed")
        if state.opened_by != sequencer:
            raise WrongSequencer(f"loglet {loglet} belongs to {state.opened_by}, not {sequencer}")

    def _learn(self, hint: CommittedTail, sequencer: SequencerId, group: Group) -> None:
        state = self._loglets.get(hint.loglet)
        if state is not None and state.opened_by == sequencer and _raise(state, hint.tail):
            group.decision.advanced.add(hint.loglet)

    def _take(self, placement: Placement, placed: bytes, group: Group) -> None:
        """Rules 4 to 6 for a batch whose writer and checksum are right."""
        loglet, first, end = placement.loglet, placement.first, placement.end
        state = self._loglets[loglet]
        if first < state.base:
            raise ProtocolError(f"loglet {loglet} begins at {state.base}; {first} is below")
        if state.told_end is not None and end > state.told_end:
            raise _ended(state)
        if placement.committed_tail > state.committed_tail and _raise(
            state, placement.committed_tail
        ):
            group.decision.advanced.add(loglet)
        follows = first == state.local_tail or state.committed_tail >= first or first == state.base
        if first < state.local_tail:
            if end <= state.local_start:
                return  # trimmed: it was committed, so an acknowledgement adds nothing
            held = group.overlapping(loglet, first, end)
            if held:
                if not is_held(placement, placed, held):
                    raise CorruptBatch(f"loglet {loglet}: what is held at {first} is damaged")
                return
            follows = follows or group.holds_before(loglet, first)
        if not follows:
            raise MissingPrefix(
                f"loglet {loglet}: {first} does not follow what is held (tail {state.local_tail}) "
                f"or known to be committed (tail {state.committed_tail})"
            )
        if len(placed) + BATCH_OVERHEAD_BYTES > group.room_bytes:
            raise StoreReadOnly("the log server's store is full")
        group.take(state, placement, PutBatch(loglet, first, end, placed))

    def _confirm(self, confirms: Iterable[ConfirmUnsealed]) -> list[Confirmed]:
        """Sealed or ended at this point of the queue; a loglet that is not known is neither."""
        answers = []
        for confirm in confirms:
            state = self._loglets.get(confirm.loglet)
            sealed = state is not None and (state.sealed or state.told_end is not None)
            answers.append(Confirmed(confirm.loglet, confirm.round_id, sealed))
        return answers

    def _seal(self, request: SealRequest, group: Group) -> SealResponse | ProtocolError:
        state = self._loglets.get(request.loglet)
        if state is None:
            if not 0 <= request.base < _OFFSET_MAX:
                return ProtocolError(f"loglet {request.loglet} can't begin at {request.base}")
            state = self._create(request.loglet, request.base, group, opened_by=None)
        elif state.base != request.base:
            return ProtocolError(
                f"loglet {request.loglet} begins at {state.base}, not {request.base}"
            )
        elif not state.sealed:
            state.sealed = True
            group.decision.writes.append(_record(state))
        return SealResponse(
            state.local_tail,
            state.committed_tail,
            state.last_timestamp_ms,
            local_start=state.local_start if state.local_start > state.base else Offset(0),
        )

    def _tell_ends(
        self, request: TellEndsRequest, group: Group
    ) -> TellEndsResponse | ProtocolError:
        """Keep the ends that can be true. One that can't be is refused, the others are kept."""
        refused: ProtocolError | None = None
        for loglet, end in request.ends:
            state = self._loglets.get(loglet)
            if state is None or state.told_end == end:
                continue
            if state.told_end is not None:
                refused = ProtocolError(f"loglet {loglet} ends at {state.told_end}, not {end}")
            elif not max(state.base, state.committed_tail) <= end < _OFFSET_MAX:
                refused = ProtocolError(
                    f"loglet {loglet} can't end at {end}: it begins at {state.base} and is "
                    f"committed to {state.committed_tail}"
                )
            else:
                state.told_end = end
                group.decision.writes.append(_record(state))
                group.decision.advanced.add(loglet)
        return refused or TellEndsResponse()

    def _trim(self, request: TrimLoglets, group: Group) -> TrimmedLoglets:
        """Raise local starts; the answer has copies, of this point of the queue."""
        answer = TrimmedLoglets()
        for loglet, local_start in request.starts:
            state = self._loglets.get(loglet)
            if state is None:
                continue
            committed_tail = state.committed_tail
            if trim(state, local_start):
                group.decision.writes.append(_record(state))
                group.decision.trimmed[loglet] = state.local_start
                if state.committed_tail > committed_tail:
                    group.decision.advanced.add(loglet)
            answer.loglets.append(replace(state))
        return answer

    def check_invariants(self) -> None:
        """Assert what must hold between any two groups."""
        for loglet, state in self._loglets.items():
            assert state.loglet == loglet
            assert 0 <= state.base <= state.local_start <= state.local_tail
            assert state.local_start <= state.committed_tail
            assert state.sealed or state.opened_by is not None, "created by a seal, so sealed"
            assert state.told_end is None or state.committed_tail <= state.told_end
            was = self._seen.get(loglet)
            if was is not None:
                assert state.base == was.base, "a segment's base is immutable"
                assert state.opened_by == was.opened_by, "a loglet has one sequencer for ever"
                assert state.sealed or not was.sealed, "a seal is one-way"
                assert state.local_start >= was.local_start
                assert state.local_tail >= was.local_tail
                assert state.committed_tail >= was.committed_tail
                assert state.last_timestamp_ms >= was.last_timestamp_ms
                assert was.told_end in (None, state.told_end), "a segment's end never changes"
            self._seen[loglet] = replace(state)
        assert self._seen.keys() <= self._loglets.keys(), "a loglet is never forgotten"


def _check(placed: bytes) -> tuple[Placement, CorruptBatch | None]:
    """A batch's placement, and what is wrong with the batch.

    Raises:
        CorruptBatch: the placement itself is damaged, so nobody can say whose batch it is.
    """
    try:
        placement = check_placed(placed)
    except CorruptBatch as error:
        return parse_placement(placed), error
    if placement.record_count == 0 or placement.end > _OFFSET_MAX:
        return placement, CorruptBatch("a placed batch without records, or beyond the last offset")
    return placement, None


def _refuse(
    response: StoreResponse,
    refused: set[LogletId],
    loglet: LogletId,
    first: Offset,
    error: SharedLogError,
) -> None:
    if loglet not in refused:
        refused.add(loglet)
        # Without its traceback, whose frames hold the whole group: a receiver may keep the error.
        response.refused.append(StoreRefused(loglet, first, error.with_traceback(None)))


def _raise(state: LogletState, tail: Offset) -> bool:
    """Take a committed tail; whether it says anything new. Nothing is committed beyond an end."""
    if tail <= state.committed_tail or (state.told_end is not None and tail > state.told_end):
        return False
    state.committed_tail = tail
    return True


def _ended(state: LogletState) -> Sealed:
    return Sealed(f"loglet {state.loglet} has ended at {state.told_end}")


def _record(state: LogletState) -> PutLoglet:
    return PutLoglet(
        state.loglet,
        state.base,
        state.opened_by,
        state.sealed,
        state.local_start,
        state.told_end,
        state.last_timestamp_ms if state.local_start > state.base else 0,
    )
