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
   tail included.
5. Prefix rule: N is taken if N is the base, or N-1 is held, or N-1 is known to be committed
   (`MissingPrefix` otherwise). A replica that was skipped thus resumes at the committed tail and
   leaves a legal hole.
6. There is room (`StoreReadOnly`). Records of loglets, seals above all, may use the reserve.

After a loglet's first refusal in a message the rest of that loglet in that message is refused with
it; other loglets go on.

**Held offsets.** What lies at or above the local tail is new, so the common case needs no look-up
at all. Below it the store is asked, for the range and the offset before it, so that a duplicate is
compared and a hole is told apart from it. A batch that is damaged on disk keeps its place but
proves nothing: a store of it is refused as corrupt rather than acknowledged.

**Seals.** One way, idempotent. An unknown loglet is created sealed, so that an open that was on its
way finds it so. The answer carries the local tail at that point of the queue; it leaves after the
commit that holds the seal and every batch below that tail.

**Committed tails** are hints from the loglet's own sequencer, on their own or within a placement.
They are applied in memory, only ever rise, and write nothing by themselves. They may run ahead of
what is held. A sealed loglet takes them too: they are true, and the model was checked with it.

Deliberately not here: repair stores, trim and tombstones; reads; anything that waits.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter

from loglet.messages import (
    CommittedTail,
    Confirmed,
    ConfirmUnsealed,
    OpenLoglet,
    SealRequest,
    SealResponse,
    Stored,
    StoreRefused,
    StoreRequest,
    StoreResponse,
)
from loglet.store import LogletState, PutBatch, PutLoglet, Write
from sharedlog.batch import PLACEMENT_BYTES, Placement, check_placed, parse_placement
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

Request = StoreRequest | SealRequest
Answer = StoreResponse | SealResponse | SharedLogError
"""An error ends the stream, or fails the call, that the request came by."""

BATCH_OVERHEAD_BYTES = 8192
"""Room that a batch takes beyond its own bytes: a key, and what is lost to whole pages."""

_OFFSET_MAX = 2**63
_FIRST = attrgetter("first")
_END = attrgetter("end")


@dataclass(frozen=True, slots=True)
class LookUp:
    """Held batches that overlap [start, end) must be read before the group is decided."""

    loglet: LogletId
    start: Offset
    end: Offset


@dataclass(frozen=True, slots=True)
class HeldBatch:
    """A batch on disk. `placement_bytes` is None if its checksum no longer matches."""

    first: Offset
    end: Offset
    placement_bytes: bytes | None


Held = Mapping[LogletId, Sequence[HeldBatch]]


@dataclass(slots=True)
class Plan:
    """A group whose batches were verified, and what must be read to decide it."""

    requests: Sequence[Request]
    # For each request: its placements, None where the batch does not match its checksum; or the
    # error that refuses all of it.
    checked: list[list[tuple[Placement, CorruptBatch | None]] | SharedLogError]
    look_ups: list[LookUp]


@dataclass(slots=True)
class Decision:
    """What to do about a group: commit `writes`, then release `answers`, one for each request.

    Readers of `advanced` may go on at once: what is below a committed tail is committed on a write
    quorum, whatever this server's disk does next.
    """

    writes: list[Write]
    answers: list[Answer]
    advanced: set[LogletId]  # loglets whose committed tail rose, or that are new


@dataclass(slots=True)
class _Group:
    """Running state of one `decide`."""

    held: Held
    room_bytes: int
    decision: Decision
    # What was looked up and what this group took, which no store can tell yet; sorted by offset,
    # for a stream that was made anew may repeat thousands of batches. See `_known`.
    known: dict[LogletId, list[HeldBatch]] = field(default_factory=dict)


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

    def loglets(self) -> Iterable[LogletState]:
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
        if state is None or tail <= state.committed_tail:
            return False
        state.committed_tail = tail
        return True

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
                batches = request.batches if isinstance(request, StoreRequest) else ()
                found = [_check(placed) for placed in batches]
            except SharedLogError as error:
                plan.checked.append(error)
                continue
            plan.checked.append(found)
            for placement, _ in found:
                state = self._loglets.get(placement.loglet)
                if state is not None and placement.first < state.local_tail:
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

    def decide(self, plan: Plan, held: Held, *, room_bytes: int) -> Decision:
        """Answer a planned group, given what was looked up and the room there is for batches.

        Raises:
            StoreFailed: an offset was given to two batches. Nothing may be committed; the server
            stops.
        """
        group = _Group(held, room_bytes, Decision([], [], set()))
        for request, checked in zip(plan.requests, plan.checked, strict=True):
            if isinstance(checked, SharedLogError):
                answer: Answer = checked
            elif isinstance(request, SealRequest):
                answer = self._seal(request, group)
            else:
                answer = self._store(request, checked, group)
            group.decision.answers.append(answer)
        return group.decision

    def refuse(self, plan: Plan, error: StoreReadOnly) -> list[Answer]:
        """Answers for a group of which nothing could be written, not even the loglets' records."""
        answers: list[Answer] = []
        for request, checked in zip(plan.requests, plan.checked, strict=True):
            if isinstance(checked, SharedLogError):
                answers.append(checked)
            elif isinstance(request, SealRequest):
                answers.append(error)
            else:
                firsts = {opened.loglet: opened.base for opened in request.opens}
                for placement, _ in checked:
                    firsts.setdefault(placement.loglet, placement.first)
                refused = [StoreRefused(loglet, first, error) for loglet, first in firsts.items()]
                answers.append(StoreResponse([], refused, self._confirm(request.confirms)))
        return answers

    def _store(
        self,
        request: StoreRequest,
        checked: Sequence[tuple[Placement, CorruptBatch | None]],
        group: _Group,
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

    def _open(self, opened: OpenLoglet, sequencer: SequencerId, group: _Group) -> None:
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

    def _create(
        self, loglet: LogletId, base: Offset, group: _Group, *, opened_by: SequencerId | None
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

    def _learn(self, hint: CommittedTail, sequencer: SequencerId, group: _Group) -> None:
        state = self._loglets.get(hint.loglet)
        if state is not None and state.opened_by == sequencer and hint.tail > state.committed_tail:
            state.committed_tail = hint.tail
            group.decision.advanced.add(hint.loglet)

    def _take(self, placement: Placement, placed: bytes, group: _Group) -> None:
        """Rules 4 to 6 for a batch whose writer and checksum are right."""
        loglet, first, end = placement.loglet, placement.first, placement.end
        state = self._loglets[loglet]
        if first < state.base:
            raise ProtocolError(f"loglet {loglet} begins at {state.base}; {first} is below")
        if placement.committed_tail > state.committed_tail:
            state.committed_tail = placement.committed_tail
            group.decision.advanced.add(loglet)
        follows = first == state.local_tail or state.committed_tail >= first or first == state.base
        if first < state.local_tail:
            if end <= state.local_start:
                return  # trimmed: it was committed, so an acknowledgement adds nothing
            held = _overlapping(group, loglet, first, end)
            if held:
                _compare(placement, placed, held)
                return
            before = Offset(first - 1)
            follows = follows or bool(_overlapping(group, loglet, before, first))
        if not follows:
            raise MissingPrefix(
                f"loglet {loglet}: {first} does not follow what is held (tail {state.local_tail}) "
                f"or known to be committed (tail {state.committed_tail})"
            )
        size = len(placed) + BATCH_OVERHEAD_BYTES
        if size > group.room_bytes:
            raise StoreReadOnly("the log server's store is full")
        group.room_bytes -= size
        state.local_tail = max(state.local_tail, end)
        group.decision.writes.append(PutBatch(loglet, first, end, placed))
        known = _known(group, loglet)
        taken = HeldBatch(first, end, placed[:PLACEMENT_BYTES])
        if known and known[-1].first > first:
            insort(known, taken, key=_FIRST)  # it fills a hole
        else:
            known.append(taken)

    def _confirm(self, confirms: Iterable[ConfirmUnsealed]) -> list[Confirmed]:
        """Sealed or not at this point of the queue; a loglet that is not known is not sealed."""
        answers = []
        for confirm in confirms:
            state = self._loglets.get(confirm.loglet)
            sealed = state is not None and state.sealed
            answers.append(Confirmed(confirm.loglet, confirm.round_id, sealed))
        return answers

    def _seal(self, request: SealRequest, group: _Group) -> SealResponse | ProtocolError:
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
        return SealResponse(state.local_tail, state.committed_tail)

    def check_invariants(self) -> None:
        """Assert what must hold between any two groups."""
        for loglet, state in self._loglets.items():
            assert state.loglet == loglet
            assert 0 <= state.base <= state.local_start <= state.local_tail
            assert state.base <= state.committed_tail
            assert state.sealed or state.opened_by is not None, "created by a seal, so sealed"
            was = self._seen.get(loglet)
            if was is not None:
                assert state.base == was.base, "a segment's base is immutable"
                assert state.opened_by == was.opened_by, "a loglet has one sequencer for ever"
                assert state.sealed or not was.sealed, "a seal is one-way"
                assert state.local_start >= was.local_start
                assert state.local_tail >= was.local_tail
                assert state.committed_tail >= was.committed_tail
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


def _record(state: LogletState) -> PutLoglet:
    return PutLoglet(state.loglet, state.base, state.opened_by, state.sealed, state.local_start)


def _overlapping(group: _Group, loglet: LogletId, first: Offset, end: Offset) -> list[HeldBatch]:
    """Held batches, on disk or taken in this group, that have an offset of [first, end)."""
    known = _known(group, loglet)
    found = []
    for index in range(bisect_right(known, first, key=_END), len(known)):
        if known[index].first >= end:
            break
        found.append(known[index])
    return found


def _known(group: _Group, loglet: LogletId) -> list[HeldBatch]:
    known = group.known.get(loglet)
    if known is None:
        known = group.known[loglet] = sorted(group.held.get(loglet, ()), key=_FIRST)
    return known


def _compare(placement: Placement, placed: bytes, held: Sequence[HeldBatch]) -> None:
    """Nothing if the one held batch is this one.

    Raises:
        StoreFailed: another batch has one of its offsets. CorruptBatch: what is held is damaged.
    """
    same = all((it.first, it.end) == (placement.first, placement.end) for it in held)
    for batch in held:
        if batch.placement_bytes is None and same:
            raise CorruptBatch(
                f"loglet {placement.loglet}: what is held at {placement.first} is damaged"
            )
        if not same or batch.placement_bytes != placed[:PLACEMENT_BYTES]:
            raise StoreFailed(
                f"loglet {placement.loglet}: two different batches for the offsets from "
                f"{placement.first} to {placement.end}"
            )
