"""Attempts, sequencers and log servers in random interleavings: the real cores, no network.

The world is that of the protocol's model: a store that was sent may arrive at any later time, in
any order and again, or never, and so may its acknowledgement; servers crash and forget what they
knew to be committed; so many of them as no write quorum consists of are wiped or damaged; any
number of attempts run at once and are abandoned anywhere. In some histories what is committed is
trimmed, at some servers earlier than at others. After each run everybody who is left comes back,
and one more attempt has to succeed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from random import Random

from helpers.attempts import AttemptRun, MemoryChain, loglet_of
from helpers.memory_log_server import MemoryLogServer

from loglet.messages import (
    CommittedTail,
    OpenLoglet,
    StoreRequest,
    StoreResponse,
)
from metadata.quorum import QuorumRule
from metadata.records import Segment, Spread
from sequencer.core import (
    Acknowledge,
    Effect,
    LogletSequencer,
    PublishTail,
    ResumeReplica,
    StoreBatch,
)
from sharedlog.batch import check_batch, encode_records, parse_placement
from sharedlog.errors import (
    LogletNotOpen,
    Sealed,
    SharedLogError,
    WrongSequencer,
)
from sharedlog.ids import Generation, LogletId, NodeId, Offset, SequencerId

ATTEMPTS_AT_ONCE_MAX = 3
BATCHES_PER_SEGMENT_MAX = 8
Acked = dict[Offset, bytes]


class Writer:
    """A sequencer of one segment, and everything that it sent and that is still on its way."""

    def __init__(self, segment: Segment) -> None:
        self.segment = segment
        self.core = LogletSequencer(
            loglet_of(segment),
            base=segment.base,
            rule=QuorumRule.of(segment),
            last_timestamp_ms=segment.timestamp_ms,
        )
        self.requests: list[tuple[int, StoreRequest]] = []
        self.answers: list[tuple[int, StoreResponse]] = []
        self.batches = 0
        self.acked: Acked = {}


class World:
    """One random history."""

    def __init__(
        self,
        seed: int,
        *,
        replicas: int,
        write_quorum: int,
        spread: Spread = (),
        trims: bool = False,
    ) -> None:
        self.trims = trims
        # By segment: what was copied elsewhere before anybody was told to trim it, by offset; all
        # of [base, base + its length).
        self.archive: dict[int, dict[Offset, bytes]] = {}
        self.random = Random(seed)
        self.trace: list[str] = []
        zones = ("a", "b", "c", "a", "b", "c", "a")
        nodes = [MemoryLogServer(f"n{it + 1}", location=zones[it]) for it in range(replicas + 2)]
        self.servers = {it.node_id: it for it in nodes}
        first = Segment(
            index=0,
            base=Offset(0),
            sequencer=SequencerId(NodeId("n1"), Generation(1)),
            nodeset=tuple(it.replica for it in nodes[:replicas]),
            write_quorum=write_quorum,
            spread=spread,
        )
        self.chain = MemoryChain([first])
        self.writers: dict[int, Writer] = {0: Writer(first)}
        self.attempts: list[AttemptRun] = []
        self.attempts_made = 0
        self.now = 0  # counts what has happened
        self.faulty: dict[NodeId, int] = {}  # and when they failed last
        self.begun: dict[str, int] = {}  # attempts, by name: when
        self.ended: dict[int, Segment] = {}

    # What may happen next.

    def run(self, steps: int) -> None:
        acts = [
            *[self.append] * 3,
            *[self.deliver_request] * 16,
            *[self.deliver_answer] * 12,
            self.begin_attempt,
            *[self.step_attempt] * 10,
            *[self.bring_into_step] * 2,
            self.abandon_attempt,
            self.crash,
            self.go_down,
            self.come_up,
            self.wipe,
            self.damage,
            *[self.trim] * (4 if self.trims else 0),
            *[self.sweep] * (4 if self.trims else 0),
        ]
        for _ in range(steps):
            self.now += 1
            self.random.choice(acts)()
            self.check()

    def append(self) -> None:
        writer = self._writer()
        if writer is None or writer.core.ended is not None:
            return
        if writer.batches >= BATCHES_PER_SEGMENT_MAX:
            return
        writer.batches += 1
        count = self.random.randint(1, 2)
        value = f"{writer.segment.index}/{writer.batches}".encode()
        batch = encode_records((value, None, None) for _ in range(count))
        now_ms = self.random.randint(1, 1_000)
        self.apply(writer, writer.core.on_append(check_batch(batch), batch, None, now_ms))

    def bring_into_step(self) -> None:
        writer = self._writer()
        if writer is not None:
            for member in range(len(writer.segment.nodeset)):
                if self.random.random() < 0.5:
                    self.apply(writer, writer.core.on_ready(member))

    def deliver_request(self) -> None:
        writer = self._writer()
        if writer is None or not writer.requests:
            return
        at = 0 if self.random.random() < 0.7 else self.random.randrange(len(writer.requests))
        member, request = writer.requests[at]
        if self.random.random() < 0.8:  # else it comes again
            del writer.requests[at]
        server = self.servers[writer.segment.nodeset[member].node_id]
        try:
            answer = server.store(request)
        except SharedLogError:
            writer.core.on_out_of_step(member)
            return
        if self.random.random() < 0.9:
            writer.answers.append((member, answer))

    def deliver_answer(self) -> None:
        writer = self._writer()
        if writer is None or not writer.answers:
            return
        member, answer = writer.answers.pop(self.random.randrange(len(writer.answers)))
        for stored in answer.stored:
            self.apply(writer, writer.core.on_stored(member, stored.first, stored.end))
        for refused in answer.refused:
            if isinstance(refused.error, Sealed | WrongSequencer):
                self.apply(writer, writer.core.on_ended(refused.error))
            elif isinstance(refused.error, LogletNotOpen) or self.random.random() < 0.5:
                writer.core.on_out_of_step(member)

    def apply(self, writer: Writer, effects: Sequence[Effect]) -> None:
        segment = writer.segment
        for effect in effects:
            match effect:
                case StoreBatch(members, batch):
                    for member in members:
                        request = self._request(segment, member)
                        request.batches.append(batch.placed)
                        writer.requests.append((member, request))
                case ResumeReplica(member, committed, batches):
                    request = self._request(segment, member)
                    request.opens.append(OpenLoglet(loglet_of(segment), segment.base))
                    request.committed.append(CommittedTail(loglet_of(segment), committed))
                    request.batches += [it.placed for it in batches]
                    writer.requests.append((member, request))
                case PublishTail(members, committed):
                    for member in members:
                        request = self._request(segment, member)
                        request.committed.append(CommittedTail(loglet_of(segment), committed))
                        writer.requests.append((member, request))
                case Acknowledge(batches):
                    for batch in batches:
                        writer.acked[batch.first] = batch.placed
                        self.trace.append(f"segment {segment.index}: {batch.first} acked")

    def _request(self, segment: Segment, member: int) -> StoreRequest:
        return StoreRequest(segment.nodeset[member].storage_id, segment.sequencer)

    def begin_attempt(self) -> None:
        if len(self.attempts) >= ATTEMPTS_AT_ONCE_MAX or self.random.random() < 0.5:
            return
        # Sometimes one that is behind begins with a segment that has ended already.
        stale = self.random.random() < 0.1
        segment = self.chain.open_segment
        if stale and segment.index - 1 in self.writers:
            segment = self.writers[segment.index - 1].segment
        self.attempts.append(self._attempt(segment))

    def _attempt(self, segment: Segment) -> AttemptRun:
        self.attempts_made += 1
        number = self.attempts_made
        self.begun[f"R{number}"] = self.now
        nodes = list(self.servers.values())
        self.random.shuffle(nodes)
        return AttemptRun(
            f"R{number}",
            segment,
            self.servers,
            self.chain,
            sequencer=SequencerId(NodeId("n1"), Generation(1 + number)),
            candidates=[it.replica for it in nodes if it.up],
            note=self.trace.append,
            batches_max=self.random.choice([1, 2, 100]),
        )

    def step_attempt(self) -> None:
        if not self.attempts:
            return
        attempt = self.random.choice(self.attempts)
        if attempt.seals() and self.random.random() < 0.6:
            member = self.random.choice(attempt.seals())
            attempt.seal(member, answer_lost=self.random.random() < 0.05)
        elif not attempt.step() and not attempt.seals():
            attempt.impatient()
        if attempt.over:
            self.attempts.remove(attempt)
            self._note_end(attempt)

    def abandon_attempt(self) -> None:
        if self.attempts and self.random.random() < 0.5:
            self.attempts.remove(self.random.choice(self.attempts))

    def _note_end(self, attempt: AttemptRun) -> None:
        assert attempt.error is None or "known to be committed" not in str(attempt.error), "I8"
        if not attempt.won:
            return
        ending = attempt.ending
        assert ending is not None
        segment = replace(attempt.segment, end=ending.end, nodeset=ending.nodeset)
        self.ended[segment.index] = segment
        follower = self.chain.open_segment
        self.writers[follower.index] = Writer(follower)
        self.check_copies(segment, since=self.begun[attempt.name])

    def crash(self) -> None:
        self._server().crash()

    def go_down(self) -> None:
        server = self._server()
        if self.random.random() < 0.5:
            server.up = False

    def come_up(self) -> None:
        for server in self.servers.values():
            if not server.up:
                server.crash()
                return

    def wipe(self) -> None:
        server = self._server()
        if self.random.random() < 0.3 and self._may_fail(server):
            self.trace.append(f"{server.node_id} is wiped")
            server.wipe()

    def damage(self) -> None:
        server = self._server()
        places = [(loglet, first) for loglet, held in server.disk.items() for first in held]
        if places and self._may_fail(server):
            loglet, first = self.random.choice(places)
            self.trace.append(f"{server.node_id}: {loglet} {first} is damaged")
            server.damage(loglet, first)

    def trim(self) -> None:
        """Somebody archives some of a segment, all of which is committed, and tells one server.

        Which may be behind, and may be told how far the segment is committed.
        """
        index = self.random.choice(list(self.writers))
        segment = self.writers[index].segment
        upto = self._archive(segment) if self.random.random() < 0.7 else self._archived(segment)
        server = self._server()
        if not server.up or upto == segment.base:
            return
        loglet = loglet_of(segment)
        if self.random.random() < 0.5:
            server.core.raise_committed_tail(loglet, upto)
        start = server.trim(server.replica, loglet, upto)
        assert start is None or start <= upto
        self.trace.append(f"{server.node_id}: {loglet} is trimmed to {start} of {upto}")

    def _archived(self, segment: Segment) -> Offset:
        return Offset(segment.base + len(self.archive.get(segment.index, ())))

    def _archive(self, segment: Segment) -> Offset:
        """Copy more of what is committed; returns how far that goes now."""
        end = self.chain.ends.get(segment.index, self.writers[segment.index].core.committed_tail)
        start = self._archived(segment)
        archive = self.archive.setdefault(segment.index, {})
        upto = Offset(self.random.randint(start, max(start, end)))
        for offset in range(start, upto):
            copies = set(self._copies(loglet_of(segment), Offset(offset)))
            assert len(copies) == 1, f"{len(copies)} different batches at {offset}"
            archive[Offset(offset)] = copies.pop()
        return upto

    def sweep(self) -> None:
        server = self._server()
        for loglet in server.records:
            server.sweep(loglet, self.random.randint(0, 3))

    def _may_fail(self, server: MemoryLogServer) -> bool:
        """Durability is promised as long as no write quorum of any segment has failed."""
        failed = {*self.faulty, server.node_id}
        for segment in (*self.chain.segments, *(it.segment for it in self.writers.values())):
            members = {at for at, it in enumerate(segment.nodeset) if it.node_id in failed}
            if QuorumRule.of(segment).is_write_quorum(members):
                return False
        self.faulty[server.node_id] = self.now
        return True

    def _server(self) -> MemoryLogServer:
        return self.random.choice(list(self.servers.values()))

    def _writer(self) -> Writer | None:
        # The present one most often, now and then one of the past that has woken up.
        if self.random.random() < 0.8:
            return self.writers[self.chain.open_segment.index]
        return self.random.choice(list(self.writers.values()))

    # What must be true.

    def check(self) -> None:
        """After each step: what is acknowledged lies below the end, and no tail above it."""
        for index, end in self.chain.ends.items():
            writer = self.writers[index]
            writer.core.check_invariants()
            for first, placed in writer.acked.items():
                assert parse_placement(placed).end <= end, f"acked {first} is above the end {end}"
            for server in self.servers.values():
                state = server.state(loglet_of(writer.segment))
                assert state is None or state.committed_tail <= end, "I5: a tail above the end"

    def check_copies(self, segment: Segment, *, since: int) -> None:
        """At the compare-and-swap: every offset is on a write quorum of the segment's nodeset.

        Of those who hold it, or have failed: of what was committed, ever; else since the attempt
        began, for what was damaged before is no copy.
        """
        assert segment.end is not None
        rule = QuorumRule.of(segment)
        loglet = loglet_of(segment)
        committed = self.writers[segment.index].core.committed_tail
        for offset in range(self._archived(segment), segment.end):
            excused = {it for it, at in self.faulty.items() if offset < committed or at >= since}
            holders = {
                at
                for at, replica in enumerate(segment.nodeset)
                if self.servers[replica.node_id].storage_id == replica.storage_id
                and self.servers[replica.node_id].holds(loglet, Offset(offset)) is not None
            }
            members = {at for at, it in enumerate(segment.nodeset) if it.node_id in excused}
            assert holders, f"{loglet}: nobody has {offset}"
            assert rule.is_write_quorum(holders | members), f"{loglet}: {offset} is on {holders}"

    def finish(self) -> None:
        """Everybody comes back, and the log goes on: an attempt must succeed."""
        for server in self.servers.values():
            if not server.up:
                server.crash()
        for attempt in self.attempts:
            attempt.finish()
            self._note_end(attempt)
        last = self._attempt(self.chain.open_segment)
        last.finish()
        assert last.won, f"the log can't go on: {last.error}"
        self._note_end(last)
        self.check()
        self.check_log()

    def check_log(self) -> None:
        """The whole log can be read, and whatever was acknowledged is what is read."""
        for index, segment in self.ended.items():
            assert segment.end is not None
            acked = self.writers[index].acked
            copies: dict[Offset, set[bytes]] = {}
            for offset in range(segment.base, segment.end):
                found = set(self._copies(loglet_of(segment), Offset(offset)))
                if offset < self._archived(segment):
                    found.add(self.archive[index][Offset(offset)])
                assert len(found) == 1, f"{len(found)} different batches at {offset}"
                copies[Offset(offset)] = found
            for first, placed in acked.items():
                assert copies[first] == {placed}, f"acked {first} is not what is read"
        bases = [it.base for it in self.chain.segments[1:]]
        assert bases == [it.end for it in self.chain.segments[:-1]], "offsets are dense"

    def _copies(self, loglet: LogletId, offset: Offset) -> Iterator[bytes]:
        for server in self.servers.values():
            held = server.holds(loglet, offset)
            if held is not None:
                yield held


CONFIGURATIONS: list[tuple[int, int, Spread]] = [
    (3, 2, ()),
    (2, 2, ()),
    (3, 3, ()),
    (4, 3, ()),
    (5, 3, ()),
    (5, 4, ()),
    (4, 3, (("zone", 2),)),
    (5, 3, (("zone", 3),)),
]
STEPS = 320


def run(seed: int, *, trims: bool = False) -> World:
    replicas, write_quorum, spread = CONFIGURATIONS[seed % len(CONFIGURATIONS)]
    world = World(seed, replicas=replicas, write_quorum=write_quorum, spread=spread, trims=trims)
    try:
        world.run(STEPS)
        world.finish()
    except AssertionError as error:
        story = "\n".join(world.trace)
        raise AssertionError(f"seed {seed}: {error}\n{story}") from error
    return world
