"""Ending a segment whose prefix was trimmed: nobody is asked for it, and nobody is given it."""

from __future__ import annotations

from collections.abc import Sequence

from loglet.messages import SealResponse
from loglet.recovery import SegmentRecovery
from loglet.recovery_steps import CopyRange, EndSegment, SealReplacements
from metadata.records import Replica, Segment
from sharedlog.errors import Unreachable
from sharedlog.ids import Generation, NodeId, Offset, SequencerId, StorageId

SILENT = Unreachable("connection refused")


def replica(number: int) -> Replica:
    return Replica(node_id=NodeId(f"n{number}"), storage_id=StorageId(f"s{number}"))


def segment(replicas: int = 3, write_quorum: int = 2) -> Segment:
    return Segment(
        index=3,
        base=Offset(0),
        sequencer=SequencerId(NodeId("n1"), Generation(1)),
        nodeset=tuple(replica(it + 1) for it in range(replicas)),
        write_quorum=write_quorum,
    )


def answer(local: int, committed: int, local_start: int = 0) -> SealResponse:
    return SealResponse(Offset(local), Offset(committed), local_start=Offset(local_start))


def replacing(replicas: int, write_quorum: int, lost: Sequence[int]) -> SegmentRecovery:
    spare = [replica(8), replica(9)]
    return SegmentRecovery(
        "orders", segment(replicas, write_quorum), lost=lost, candidates=spare[: len(lost)]
    )


def finish(core: SegmentRecovery) -> tuple[EndSegment, list[tuple[int, int, tuple[int, ...], int]]]:
    """Carry out every copy: [first, end), its targets, and what goes along as committed."""
    copies: list[tuple[int, int, tuple[int, ...], int]] = []
    core.on_patience_over()
    while not isinstance(step := core.advance(), EndSegment):
        core.check_invariants()
        if isinstance(step, SealReplacements):
            for server in step.servers:
                core.on_sealed(server, answer(0, 0))
            continue
        assert isinstance(step, CopyRange), step
        copies.append((step.first, step.end, tuple(step.targets), step.committed_tail))
        for target in step.targets:
            core.on_copied(target, step.first, step.end)
    core.check_invariants()
    return step, copies


def test_a_replacement_is_filled_from_the_local_start_on() -> None:
    """Of two one is lost. The survivor can't give what it has trimmed, and need not."""
    core = replacing(2, 2, lost=[0])
    core.on_sealed(1, answer(20, 15, local_start=12))
    ending, copies = finish(core)
    assert copies == [(12, 20, (1, 2), 15)]
    assert ending.end == 20
    assert [it.node_id for it in ending.nodeset] == ["n8", "n2"]


def test_one_local_start_is_enough() -> None:
    """Another one has not dropped it yet: it is not copied for that."""
    core = replacing(3, 3, lost=[0])
    core.on_sealed(1, answer(20, 15, local_start=5))
    core.on_sealed(2, answer(20, 15, local_start=12))
    _, copies = finish(core)
    assert copies[0][0] == 12


def test_a_segment_that_is_trimmed_whole_needs_no_copy() -> None:
    """Nor a replacement, to end: what is committed needs none."""
    core = replacing(2, 2, lost=[0])
    core.on_sealed(1, answer(20, 20, local_start=20))
    ending, copies = finish(core)
    assert (ending.end, copies) == (20, [])
    assert [it.node_id for it in ending.nodeset] == ["n1", "n2"]


def test_a_source_that_is_trimmed_meanwhile() -> None:
    """The tail was fixed before; what the source has dropped is committed, and the rest is copied.

    The evidence for the prefix rule goes along with it.
    """
    core = SegmentRecovery("orders", segment())
    core.on_sealed(0, answer(20, 4))
    core.on_sealed(1, answer(4, 4))
    core.on_patience_over()
    step = core.advance()
    assert isinstance(step, CopyRange)
    assert (step.first, step.end, step.sources[0]) == (4, 20, 0)
    core.on_source_lacks(0, Offset(4), Offset(11), damaged=False, trimmed=True)
    ending, copies = finish(core)
    assert copies == [(11, 20, (1,), 11)]
    assert (ending.end, ending.committed_tail) == (20, 4)


def test_an_answer_that_comes_late_with_a_local_start() -> None:
    """As if the source had said so."""
    core = SegmentRecovery("orders", segment())
    core.on_sealed(0, answer(20, 4))
    core.on_sealed(1, answer(4, 4))
    core.on_seal_failed(2, SILENT)
    core.on_grace_over()
    assert isinstance(core.advance(), CopyRange)
    core.on_sealed(2, answer(16, 16, local_start=16))
    ending, copies = finish(core)
    assert ending.end == 20
    assert copies[0][0] == 16
    assert all(first >= 16 for first, *_ in copies)
