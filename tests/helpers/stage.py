"""A stage for transcripts: real cores that do what a script says, and a text of all that happens.

A sequencer's stores reach a log server when the script says so, and its answers are heard at once
unless they are held back. Attempts are `attempts.py`'s.
"""

from __future__ import annotations

from collections.abc import Sequence

from helpers.attempts import AttemptRun, MemoryChain, loglet_of
from helpers.memory_log_server import MemoryLogServer

from loglet.messages import CommittedTail, OpenLoglet, StoreRequest, StoreResponse
from loglet.ranges import OffsetRanges
from metadata.quorum import QuorumRule
from metadata.records import Segment
from sequencer.core import (
    Acknowledge,
    Effect,
    FailAppends,
    LogletSequencer,
    PublishTail,
    ResumeReplica,
    StoreBatch,
)
from sharedlog.batch import check_batch, encode_records
from sharedlog.errors import Sealed, SharedLogError, WrongSequencer
from sharedlog.ids import Generation, NodeId, Offset, SequencerId


class Writer:
    """The sequencer of one segment."""

    def __init__(self, stage: Stage, segment: Segment) -> None:
        self.segment = segment
        self.name = str(segment.sequencer)
        self._stage = stage
        self._core = LogletSequencer(
            loglet_of(segment), base=segment.base, rule=QuorumRule.of(segment)
        )
        self._unsent: dict[str, list[StoreRequest]] = {it.node_id: [] for it in segment.nodeset}
        self._unheard: list[tuple[int, StoreResponse]] = []
        self._count = 0
        for member in range(len(segment.nodeset)):
            self._apply(self._core.on_ready(member))

    def append(self, records: int = 1) -> None:
        """Give the next offsets to a batch and send it to everyone; nothing arrives yet."""
        if self._core.ended is not None:
            self._stage.note(f"{self.name}: takes no append: {self._core.ended}")
            return
        self._count += 1
        value = f"{self.segment.index}/{self._count}".encode()
        batch = encode_records((value, None, None) for _ in range(records))
        effects = self._core.on_append(check_batch(batch), batch, None, 1_000 + self._count)
        first = self._core.next_offset - records
        self._stage.note(f"{self.name}: append [{first}, {self._core.next_offset})")
        self._apply(effects)

    def arrive(self, *names: str, unheard: bool = False) -> None:
        """All that was sent to these log servers arrives; with `unheard` the answers do not."""
        for name in names or tuple(self._unsent):
            requests, self._unsent[name] = self._unsent[name], []
            for request in requests:
                self._store(name, request, unheard=unheard)

    def hear(self) -> None:
        """The answers that were held back arrive."""
        unheard, self._unheard = self._unheard, []
        for member, answer in unheard:
            self._take(member, answer)

    def _store(self, name: str, request: StoreRequest, *, unheard: bool) -> None:
        member = [it.node_id for it in self.segment.nodeset].index(NodeId(name))
        try:
            answer = self._stage.servers[NodeId(name)].store(request)
        except SharedLogError as error:
            if request.batches:
                self._stage.note(f"  {name}: {type(error).__name__}")
            self._core.on_out_of_step(member)
            return
        for stored in answer.stored:
            if stored.end > stored.first:
                held_back = ", answer on its way" if unheard else ""
                self._stage.note(f"  {name}: stores [{stored.first}, {stored.end}){held_back}")
        for refused in answer.refused:
            if request.batches or not isinstance(refused.error, Sealed):
                kind = type(refused.error).__name__
                self._stage.note(f"  {name}: refuses what begins at {refused.first}: {kind}")
        if unheard:
            self._unheard.append((member, answer))
        else:
            self._take(member, answer)

    def _take(self, member: int, answer: StoreResponse) -> None:
        for stored in answer.stored:
            self._apply(self._core.on_stored(member, stored.first, stored.end))
        for refused in answer.refused:
            if isinstance(refused.error, Sealed | WrongSequencer):
                self._apply(self._core.on_ended(refused.error))
        self._core.check_invariants()

    def _apply(self, effects: Sequence[Effect]) -> None:
        loglet = loglet_of(self.segment)
        for effect in effects:
            match effect:
                case StoreBatch(members, batch):
                    for member in members:
                        self._send(member).batches.append(batch.placed)
                case ResumeReplica(member, _, batches):
                    request = self._send(member)
                    request.opens.append(OpenLoglet(loglet, self.segment.base))
                    request.batches += [it.placed for it in batches]
                case PublishTail(members, committed):
                    for member in members:
                        self._send(member).committed.append(CommittedTail(loglet, committed))
                case Acknowledge(batches):
                    first, end = batches[0].first, batches[-1].end
                    self._stage.note(f"  {self.name}: [{first}, {end}) acknowledged")
                case FailAppends(batches, _):
                    first, end = batches[0].first, batches[-1].end
                    self._stage.note(f"  {self.name}: [{first}, {end}) indefinite")

    def _send(self, member: int) -> StoreRequest:
        replica = self.segment.nodeset[member]
        request = StoreRequest(replica.storage_id, self.segment.sequencer)
        self._unsent[replica.node_id].append(request)
        return request


class Stage:
    """See the module's docstring. `text` is the transcript."""

    def __init__(
        self, title: str, *, replicas: int, write_quorum: int, servers: int | None = None
    ) -> None:
        self._lines = [f"# {title}", ""]
        names = [f"n{it + 1}" for it in range(servers or replicas)]
        self.servers = {NodeId(it): MemoryLogServer(it) for it in names}
        segment = Segment(
            index=0,
            base=Offset(0),
            sequencer=SequencerId(NodeId("n1"), Generation(1)),
            nodeset=tuple(self.servers[NodeId(it)].replica for it in names[:replicas]),
            write_quorum=write_quorum,
        )
        self.chain = MemoryChain([segment])
        self.note(
            f"segment 0 of log orders begins at 0 on {', '.join(names[:replicas])}; "
            f"a write quorum is {write_quorum}; {segment.sequencer} orders it"
        )

    @property
    def text(self) -> str:
        return "\n".join(self._lines) + "\n"

    def say(self, text: str) -> None:
        """A remark of the script."""
        self._lines += ["", f"-- {text}"]

    def note(self, text: str) -> None:
        self._lines.append(text)

    def writer(self) -> Writer:
        """The sequencer of the open segment opens its loglet on all log servers that are up."""
        writer = Writer(self, self.chain.open_segment)
        writer.arrive()
        return writer

    def late_writer(self, segment: Segment) -> Writer:
        """The sequencer of a segment that has ended, which does not know that."""
        writer = Writer(self, segment)
        writer.arrive()
        return writer

    def attempt(self, name: str, *, sequencer: str = "n2", batches_max: int = 100) -> AttemptRun:
        """A reconfiguration that has done nothing yet."""
        return AttemptRun(
            name,
            self.chain.open_segment,
            self.servers,
            self.chain,
            sequencer=SequencerId(NodeId(sequencer), Generation(1)),
            candidates=[it.replica for it in self.servers.values() if it.up],
            note=self.note,
            batches_max=batches_max,
        )

    def down(self, *names: str) -> None:
        for name in names:
            self.servers[NodeId(name)].up = False
            self.note(f"{name} is down")

    def up(self, *names: str) -> None:
        for name in names:
            self.servers[NodeId(name)].crash()
            self.note(f"{name} is up again")

    def wipe(self, name: str) -> None:
        self.servers[NodeId(name)].wipe()
        self.note(f"{name} is back with an empty disk")

    def damage(self, name: str, first: int, *, segment: Segment | None = None) -> None:
        loglet = loglet_of(segment or self.chain.open_segment)
        self.servers[NodeId(name)].damage(loglet, Offset(first))
        self.note(f"{name}: the batch at {first} is damaged on disk")

    def show(self, segment: Segment | None = None) -> None:
        """What every log server holds of a segment, and what the chain says."""
        of = segment or self.chain.open_segment
        loglet = loglet_of(of)
        for name, server in self.servers.items():
            state = server.state(loglet)
            if state is None:
                continue
            stored = server.disk.get(loglet, {}).items()
            held = OffsetRanges((first, end) for first, (end, _) in stored)
            ranges = " ".join(f"[{first}, {end})" for first, end in held) or "nothing"
            damaged = server.damaged(loglet, state.base, state.local_tail)
            spoiled = "".join(f", damaged [{first}, {end})" for first, end in damaged)
            sealed = ", sealed" if state.sealed else ""
            known = f", committed {state.committed_tail}{sealed}"
            self.note(f"    {name}: holds {ranges}{spoiled}{known}")
        chain = "; ".join(
            f"{it.index}: [{it.base}, {'' if it.end is None else it.end}) by {it.sequencer} on "
            + ", ".join(member.node_id for member in it.nodeset)
            for it in self.chain.segments
        )
        self.note(f"    chain: {chain}")
