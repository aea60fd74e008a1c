"""A log server's core with a disk of its own: a group in, the decision out, invariants checked."""

from __future__ import annotations

from bisect import bisect_left

from helpers.log_servers import LOGLET, STORAGE, request

from loglet.core import LogServerCore
from loglet.group import Answer, Decision, LookUp, Request
from loglet.messages import (
    CommittedTail,
    RepairRequest,
    SealRequest,
    StoreResponse,
    TellEndsRequest,
    TrimLoglets,
    TrimmedLoglets,
)
from loglet.store import HeldBatch, LogletState, PutBatch, PutRepaired
from sharedlog.batch import PLACEMENT_BYTES
from sharedlog.errors import SharedLogError
from sharedlog.ids import LogletId, Offset

ROOM = 1 << 40


class CoreDisk:
    """Commits everything, answers look-ups, checks the invariants."""

    def __init__(self, *states: LogletState) -> None:
        self.core = LogServerCore(STORAGE, states)
        self.batches: dict[LogletId, list[HeldBatch]] = {}  # in the order of offsets
        self.look_ups: list[LookUp] = []

    def group(
        self, *requests: Request, room: int = ROOM, repair_room: int | None = None
    ) -> Decision:
        plan = self.core.plan(requests)
        self.look_ups = plan.look_ups
        held = {
            it.loglet: [
                batch
                for batch in self.batches.get(it.loglet, [])
                if any(
                    batch.first < other.end and batch.end > other.start
                    for other in plan.look_ups
                    if other.loglet == it.loglet
                )
            ]
            for it in plan.look_ups
        }
        decision = self.core.decide(plan, held, room_bytes=room, repair_room_bytes=repair_room)
        for write in decision.writes:
            if isinstance(write, PutBatch):
                self._put(write)
        self.core.check_invariants()
        return decision

    def _put(self, write: PutBatch) -> None:
        batch = HeldBatch(write.first, write.end, write.placed[:PLACEMENT_BYTES])
        held = self.batches.setdefault(write.loglet, [])
        if isinstance(write, PutRepaired) and write.overwrites:
            held.remove(HeldBatch(write.first, write.end, None))
        at = bisect_left(held, batch.first, key=lambda it: it.first)
        assert not any(
            it.first < batch.end and it.end > batch.first for it in held[max(at, 1) - 1 : at + 1]
        )
        held.insert(at, batch)

    def damage(self, first: int, end: int) -> None:
        """What is held of LOGLET at [first, end) no longer matches its checksum."""
        held = self.batches[LOGLET]
        (index,) = (at for at, it in enumerate(held) if (it.first, it.end) == (first, end))
        held[index] = HeldBatch(Offset(first), Offset(end), None)

    def state(self, loglet: LogletId = LOGLET) -> LogletState:
        state = self.core.loglet(loglet)
        assert state is not None
        return state

    def store(self, *batches: bytes, room: int = ROOM) -> StoreResponse:
        return stored_answer(self.group(request(batches), room=room).answers[0])

    def seal(self, loglet: LogletId = LOGLET, base: int = 0) -> Answer:
        return self.group(SealRequest(STORAGE, loglet, Offset(base))).answers[0]

    def learn(self, tail: int) -> Decision:
        message = request()
        message.committed = [CommittedTail(LOGLET, Offset(tail))]
        return self.group(message)

    def repair(self, *batches: bytes, committed: int = 0, loglet: LogletId = LOGLET) -> Answer:
        return self.group(repair(*batches, committed=committed, loglet=loglet)).answers[0]

    def trim(self, local_start: int, loglet: LogletId = LOGLET) -> Decision:
        return self.group(trim((loglet, local_start)))

    def trimmed(self, local_start: int, loglet: LogletId = LOGLET) -> int:
        """Where the local start is after a trim."""
        (answer,) = self.trim(local_start, loglet).answers
        assert isinstance(answer, TrimmedLoglets)
        assert answer.loglets == [self.state(loglet)]
        return answer.loglets[0].local_start

    def tell(self, end: int, loglet: LogletId = LOGLET) -> Answer:
        return self.group(tell((loglet, end))).answers[0]


def repair(*batches: bytes, committed: int = 0, loglet: LogletId = LOGLET) -> RepairRequest:
    """A repair's request."""
    return RepairRequest(STORAGE, loglet, Offset(committed), list(batches))


def tell(*ends: tuple[LogletId, int]) -> TellEndsRequest:
    """A message that tells ends."""
    return TellEndsRequest(STORAGE, [(loglet, Offset(end)) for loglet, end in ends])


def trim(*starts: tuple[LogletId, int]) -> TrimLoglets:
    """A message that trims."""
    return TrimLoglets(STORAGE, [(loglet, Offset(start)) for loglet, start in starts])


def stored_answer(answer: Answer) -> StoreResponse:
    assert isinstance(answer, StoreResponse)
    return answer


def ranges(response: StoreResponse) -> list[tuple[int, int]]:
    return [(it.first, it.end) for it in response.stored]


def refusals(response: StoreResponse) -> list[tuple[LogletId, int, type[SharedLogError]]]:
    return [(it.loglet, it.first, type(it.error)) for it in response.refused]
