"""What a log server takes from whoever repairs or backfills: the rules of `RepairRequest`.

A repair copies batches that other log servers hold, byte for byte. It may come while the loglet is
open, sealed or ended, from several actors at once, again and again. What it must meet (DESIGN.md
§6; each sentence was checked by model):

1. This storage_id, and a loglet that is known here: opened or sealed. To a server that never heard
   of it the repairer has to send a seal first (`LogletNotOpen`), or a wiped disk would come back as
   a member that knows nothing of the seal.
2. **It passes a seal.** That is what it is for.
3. Batch and placement match their checksums (`CorruptBatch`): a copy of damage is no copy.
4. It lies at or above the base, and not beyond an end that was told here (`Sealed`): a loser of the
   race for the end may go on repairing beyond it, and what lies there is in no log.
5. Offsets that are held: the same batch, whole, is held already, and nothing is written. The same
   range, damaged, is **overwritten**. Another batch, whole, means that one offset was given twice
   (`StoreFailed`: the server stops); where damage takes other offsets nobody can say
   (`CorruptBatch`).
6. The prefix rule, with the request's `committed_tail` as one more proof: below it everything is
   committed. Without it a member that holds nothing near [C, M) could never be repaired.
7. Room: repairs may use half of what is reserved (Field note 11), for a log on a full disk must be
   able to move away. The other half stays for seals and the like.

**A repair raises no committed tail**, neither by its request nor by what a placement in it says.
Another sealer may win with a lower end, and what was readable must not vanish. What the loglet's
sequencer wrote into a placement is true all the same, so a restart may take it from there
(`loglet/held.py`).

A request is answered once all of it is held. After the first refusal the rest is not looked at;
what came before it is written.

Pure; works on the state and the group that it is handed.
"""

from __future__ import annotations

from loglet.group import BATCH_OVERHEAD_BYTES, Checked, Group, is_held
from loglet.messages import RepairRequest, RepairResponse
from loglet.store import LogletState, PutRepaired
from sharedlog.batch import Placement
from sharedlog.errors import (
    LogletNotOpen,
    MissingPrefix,
    ProtocolError,
    Sealed,
    SharedLogError,
    StoreFailed,
    StoreReadOnly,
)
from sharedlog.ids import Offset


def repair(
    state: LogletState | None, request: RepairRequest, checked: Checked, group: Group
) -> RepairResponse | SharedLogError:
    """Take the batches of a repair, of this storage_id.

    Raises:
        StoreFailed: an offset was given to two batches.
    """
    if state is None:
        return LogletNotOpen(f"loglet {request.loglet} is not known here: seal it first")
    for placed, (placement, corrupt) in zip(request.batches, checked, strict=True):
        try:
            if corrupt is not None:
                raise corrupt
            _take(state, request, placement, placed, group)
        except StoreFailed:
            raise
        except SharedLogError as error:
            # Without its traceback, whose frames hold the whole group.
            return error.with_traceback(None)
    return RepairResponse()


def _take(
    state: LogletState, request: RepairRequest, placement: Placement, placed: bytes, group: Group
) -> None:
    """Rules 4 to 7 for a batch whose checksums are right."""
    loglet, first, end = placement.loglet, placement.first, placement.end
    _check_range(state, request, placement)
    if end <= state.local_start:
        return  # trimmed: it is in the archive
    held = group.overlapping(loglet, first, end) if first < state.local_tail else []
    if held and is_held(placement, placed, held):
        return
    # A damaged batch has its place already, whatever was before it.
    if not held and not _follows(state, request.committed_tail, first, group):
        raise MissingPrefix(
            f"loglet {loglet}: {first} does not follow what is held (tail {state.local_tail}) or "
            f"known to be committed (tail {max(state.committed_tail, request.committed_tail)})"
        )
    if len(placed) + BATCH_OVERHEAD_BYTES > group.repair_room_bytes:
        raise StoreReadOnly("the log server's store is full, its reserve for repairs too")
    group.take(state, placement, PutRepaired(loglet, first, end, placed, overwrites=bool(held)))


def _check_range(state: LogletState, request: RepairRequest, placement: Placement) -> None:
    if placement.loglet != request.loglet:
        raise ProtocolError(
            f"a repair of loglet {request.loglet} has a batch of {placement.loglet}"
        )
    if placement.first < state.base:
        raise ProtocolError(
            f"loglet {state.loglet} begins at {state.base}; {placement.first} is below"
        )
    if state.told_end is not None and placement.end > state.told_end:
        raise Sealed(f"loglet {state.loglet} has ended at {state.told_end}")


def _follows(state: LogletState, committed_tail: Offset, first: Offset, group: Group) -> bool:
    """The prefix rule: N-1 is held, damaged or not, or is known to be committed."""
    if first in (state.base, state.local_tail):
        return True
    if first <= max(state.committed_tail, committed_tail):
        return True
    return first < state.local_tail and group.holds_before(state.loglet, first)
