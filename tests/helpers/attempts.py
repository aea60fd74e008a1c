"""Attempts at ending a segment over in-memory log servers, one request at a time.

`AttemptRun` is what `node/reconfigure.py` is in a node: it asks servers, tells the core, and takes
the next step; but each of its steps is one request, so that a test can put anything in between, and
it writes down what it does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from helpers.memory_log_server import MemoryLogServer

from loglet.messages import SealResponse
from loglet.recovery import SegmentRecovery
from loglet.recovery_steps import (
    AwaitAnswers,
    CopyRange,
    EndSegment,
    SealReplacements,
    StopAttempt,
)
from metadata.records import Replica, Segment
from sharedlog.errors import LogUnavailable, SharedLogError
from sharedlog.ids import LogId, LogletId, NodeId, Offset, SequencerId

LOG_ID = LogId(7)


@dataclass
class MemoryChain:
    """A chain under compare-and-swap. Only the last segment is open."""

    segments: list[Segment]
    # Where each loglet ended, also those that ended empty and left the chain.
    ends: dict[int, Offset] = field(default_factory=dict)

    @property
    def open_segment(self) -> Segment:
        return self.segments[-1]

    def end(self, segment: Segment, ending: EndSegment, sequencer: SequencerId) -> bool:
        """End `segment`, if it is the open one; whether it was."""
        if self.open_segment.index != segment.index:
            return False
        self.ends[segment.index] = ending.end
        was = self.segments.pop()
        if ending.end > was.base:
            self.segments.append(replace(was, end=ending.end, nodeset=ending.nodeset))
        follower = Segment(
            index=was.index + 1,
            base=ending.end,
            sequencer=sequencer,
            nodeset=ending.nodeset,
            write_quorum=was.write_quorum,
            spread=was.spread,
            timestamp_ms=ending.last_timestamp_ms,
        )
        self.segments.append(follower)
        return True


def loglet_of(segment: Segment) -> LogletId:
    return LogletId(LOG_ID, segment.index)


class AttemptRun:
    """One reconfiguration: attempts, one after the other, until the segment has an end."""

    def __init__(
        self,
        name: str,
        segment: Segment,
        servers: Mapping[NodeId, MemoryLogServer],
        chain: MemoryChain,
        *,
        sequencer: SequencerId,
        candidates: Sequence[Replica] = (),
        note: Callable[[str], None] = lambda _: None,
        batches_max: int = 100,
    ) -> None:
        self.name = name
        self.segment = segment
        self.chain = chain
        self.error: LogUnavailable | None = None
        self.won: bool | None = None  # None: not known yet
        self.ending: EndSegment | None = None
        self._servers = servers
        self._sequencer = sequencer
        self._candidates = candidates
        self._note = note
        self._batches_max = batches_max
        self._left_out: frozenset[int] = frozenset()
        self._unsent: list[int] = []  # members to be asked to seal
        self._writes: list[Callable[[], None]] = []
        self.core = self._begin()

    @property
    def over(self) -> bool:
        return self.won is not None or self.error is not None

    @property
    def loglet(self) -> LogletId:
        return loglet_of(self.segment)

    def _begin(self) -> SegmentRecovery:
        core = SegmentRecovery(
            "orders", self.segment, left_out=self._left_out, candidates=self._candidates
        )
        self._unsent = core.unanswered()
        self._writes = []
        return core

    def seals(self) -> Sequence[int]:
        """Members that this attempt has still to ask."""
        return self._unsent

    def seal(self, member: int, *, answer_lost: bool = False) -> None:
        """Ask one member."""
        self._unsent.remove(member)
        self._seal(member, answer_lost=answer_lost)

    def impatient(self) -> None:
        """Wait for nobody any more."""
        self._note(f"{self.name}: no more waiting")
        self._unsent = []
        self.core.on_patience_over()

    def step(self) -> bool:
        """Do what is next but asking members to seal; False if that has to come first."""
        if self._writes:
            self._writes.pop(0)()
            return True
        self.core.check_invariants()
        step = self.core.advance()
        self.core.check_invariants()
        match step:
            case AwaitAnswers(spare):
                if spare and not self._unsent:
                    self.core.on_grace_over()
                    return True
                return False
            case SealReplacements(servers):
                self._seal(servers[0])
            case CopyRange():
                self._copy(step)
            case EndSegment():
                self._end(step)
            case StopAttempt():
                self._stop(step)
        return True

    def finish(self) -> None:
        """Run to the end: ask everyone, then go on with those who answer."""
        while not self.over:
            if self._unsent:
                self.seal(self._unsent[0])
            elif not self.step():
                self.impatient()

    def _server(self, number: int) -> tuple[MemoryLogServer, Replica]:
        replica = self.core.servers[number]
        return self._servers[replica.node_id], replica

    def _name(self, number: int) -> str:
        name = self.core.servers[number].node_id
        return f"{name} as a replacement" if number in self.core.replacements else name

    def _seal(self, number: int, *, answer_lost: bool = False) -> None:
        server, replica = self._server(number)
        name = self._name(number)
        try:
            answer = server.seal(replica, self.loglet, self.segment.base)
        except SharedLogError as error:
            self._note(f"{self.name}: seal {name}: {type(error).__name__}")
            self.core.on_seal_failed(number, error)
            return
        if answer_lost:
            self._note(f"{self.name}: seal {name}: sealed, answer lost")
            return
        self._note(f"{self.name}: seal {name}: {describe(answer)}")
        self.core.on_sealed(number, answer)

    def _copy(self, step: CopyRange) -> None:
        source, replica = self._server(step.sources[0])
        try:
            batches, gap, kind = source.read(
                replica, self.loglet, step.first, step.end, batches_max=self._batches_max
            )
        except SharedLogError as error:
            self._note(f"{self.name}: read {source.node_id}: {type(error).__name__}")
            self.core.on_source_silent(step.sources[0], error)
            return
        if gap is not None:
            self._note(f"{self.name}: read {source.node_id}: {kind} [{gap[0]}, {gap[1]})")
            self.core.on_source_lacks(
                step.sources[0], *gap, damaged=kind == "damaged", trimmed=kind == "trimmed"
            )
            return
        first, end = batches[0][0][0], batches[-1][0][1]
        self._note(f"{self.name}: read {source.node_id}: [{first}, {end})")
        placed = [it for _, it in batches]
        committed = step.committed_tail
        for target in step.targets:
            self._writes.append(partial(self._repair, target, first, end, committed, placed))

    def _repair(
        self, target: int, first: Offset, end: Offset, committed: Offset, placed: list[bytes]
    ) -> None:
        server, replica = self._server(target)
        what = f"{self.name}: repair {self._name(target)} [{first}, {end})"
        try:
            server.repair(replica, self.loglet, committed, placed)
        except SharedLogError as error:
            self._note(f"{what}: {type(error).__name__}")
            self.core.on_target_failed(target, error)
            return
        self._note(f"{what}: held")
        self.core.on_copied(target, first, end)

    def _end(self, step: EndSegment) -> None:
        self.ending = step
        self.won = self.chain.end(self.segment, step, self._sequencer)
        if self.won:
            nodeset = ", ".join(it.node_id for it in step.nodeset)
            self._note(
                f"{self.name}: CAS wins: segment {self.segment.index} ends at {step.end} "
                f"on {nodeset}"
            )
        else:
            end = self.chain.ends[self.segment.index]
            self._note(
                f"{self.name}: CAS loses with end {step.end}: adopts the chain, where segment "
                f"{self.segment.index} ends at {end}"
            )

    def _stop(self, step: StopAttempt) -> None:
        if step.leave_out:
            self._left_out |= step.leave_out
            names = ", ".join(self.core.servers[it].node_id for it in sorted(self._left_out))
            self._note(f"{self.name}: begins anew without the tail of {names}")
            self.core = self._begin()
            return
        self._note(f"{self.name}: stops: {type(step.error).__name__}: {step.error}")
        self.error = step.error


def describe(answer: SealResponse) -> str:
    """A seal's answer in one line."""
    damaged = "".join(f", damaged [{first}, {end})" for first, end in answer.damaged)
    return f"sealed, tail {answer.local_tail}, committed {answer.committed_tail}{damaged}"
