"""Digest, check and accept-loss over real log servers: what is told, and what is given up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from helpers.care_parts import Caretaker, Cluster, cluster_of, running, virtually

from metadata.archive_registry import set_archived_end
from metadata.archive_rules import Committed
from metadata.records import STATE_DATA_LOSS, LogRecord, LostRange
from metadata.registry import register_node, set_node_state
from sharedlog.errors import InvalidArgument, Unrepairable
from sharedlog.ids import NodeId, Offset, StorageId
from sharedlog.v1 import admin_pb2

HOLDS = admin_pb2.DigestRange.HOLDING_HOLDS
HOLE = admin_pb2.DigestRange.HOLDING_HOLE
DAMAGED = admin_pb2.DigestRange.HOLDING_DAMAGED
NO_ANSWER = admin_pb2.DigestRange.HOLDING_NO_ANSWER
LOST = admin_pb2.DigestRange.HOLDING_LOST


class Stream:
    """The server's side of a stream: one request, and what is sent."""

    def __init__(self, request: Any) -> None:
        self._request = request
        self.sent: list[Any] = []

    async def receive(self) -> Any:
        request, self._request = self._request, None
        return request

    async def send(self, message: Any) -> None:
        self.sent.append(message)


async def digest(
    caretaker: Caretaker, segment: int | None = None
) -> list[admin_pb2.DigestLogResponse]:
    request = admin_pb2.DigestLogRequest(log="orders", segment_index=segment)
    stream = Stream(request)
    await caretaker.care.integrity.digest_log(stream)
    return stream.sent


async def check(caretaker: Caretaker) -> list[admin_pb2.CheckLogResponse]:
    stream = Stream(admin_pb2.CheckLogRequest(log="orders"))
    await caretaker.care.integrity.check_log(stream)
    return stream.sent


def findings(messages: list[admin_pb2.CheckLogResponse]) -> list[tuple[str, int, int, str]]:
    name = admin_pb2.CheckFinding.Kind.Name
    return [
        (name(it.kind).removeprefix("KIND_"), it.first, it.end, it.node_id)
        for message in messages
        for it in message.findings
    ]


async def _digest_shows_each_replica() -> None:
    """Held, hole, damaged, no answer and lost, cut where the picture changes, and nothing beyond a
    segment's end or an open one's committed tail (field note 7)."""
    async with cluster_of("n1", "n2", "n3", "n4", "n5") as cluster:
        closed = cluster.segment(0, 0, 8, nodes=("n1", "n2", "n3", "n4", "n5"))
        open_ = cluster.segment(1, 8)
        await cluster.put("n1", closed, (0, 11))
        await cluster.put("n2", closed, (0, 2), (5, 8))
        for name in ("n3", "n4", "n5"):
            await cluster.put(name, closed, (0, 8))
        for name in ("n1", "n2", "n3"):
            await cluster.put(name, open_, (8, 12), committed=10 if name == "n1" else 8)
        await cluster.damage("n3", closed, 4)
        await cluster.put("n1", open_, (8, 12), committed=10)
        await cluster.put_log(closed, open_)
        await cluster.stop("n4")
        await cluster.wipe("n5")
        caretaker = Caretaker(cluster, "n1")
        first, second = await digest(caretaker)
        told = [(it.first, it.end, list(it.holdings), it.under_replicated) for it in first.ranges]
        rest = [NO_ANSWER, LOST]
        assert first.end == 8
        assert told == [
            (0, 2, [HOLDS, HOLDS, HOLDS, *rest], True),
            (2, 4, [HOLDS, HOLE, HOLDS, *rest], True),
            (4, 5, [HOLDS, HOLE, DAMAGED, *rest], True),
            (5, 8, [HOLDS, HOLDS, HOLDS, *rest], True),
        ]
        assert [bool(it.error) for it in first.replicas] == [False, False, False, True, True]
        assert second.end == 10
        assert [(it.first, it.end, it.under_replicated) for it in second.ranges] == [(8, 10, False)]
        assert len(await digest(caretaker, 1)) == 1
        await cluster.put_log(cluster.segment(0, 0), name="idle", log_id=8)
        stream = Stream(admin_pb2.DigestLogRequest(log="idle"))
        await caretaker.care.integrity.digest_log(stream)
        (idle,) = stream.sent  # never opened anywhere: an answer with nothing in it
        assert [(it.error, it.status.local_tail) for it in idle.replicas] == [("", 0)] * 3
        assert not idle.ranges
        with pytest.raises(InvalidArgument):
            await digest(caretaker, 5)


async def _check_finds_nothing_in_a_sound_log() -> None:
    """All replicas whole: no finding, and the progress ends where it should."""
    async with cluster_of("n1", "n2", "n3") as cluster:
        closed, open_ = cluster.segment(0, 0, 8), cluster.segment(1, 8)
        for name in cluster.servers:
            await cluster.put(name, closed, (0, 8))
            await cluster.put(name, open_, (8, 10), committed=10)
        await cluster.put_log(closed, open_)
        messages = await check(Caretaker(cluster, "n1"))
        assert findings(messages) == []
        assert messages[-1].done == messages[-1].total == 3 * 10
        assert messages[-1].bytes > 0
        assert [it.done for it in messages] == sorted(it.done for it in messages)


async def _check_tells_what_is_wrong() -> None:
    """Missing, damaged, disagreeing and lost ranges, and who could not be asked."""
    async with cluster_of("n1", "n2", "n3", "n4") as cluster:
        closed = cluster.segment(0, 0, 8, nodes=("n1", "n2", "n3"))
        other = cluster.segment(1, 8, 12, nodes=("n1", "n2", "n4"))
        open_ = cluster.segment(2, 12)
        await cluster.put("n1", closed, (0, 8))
        await cluster.put("n2", closed, (0, 6), text="!")
        await cluster.put("n3", closed, (0, 8))
        await cluster.put("n1", other, (8, 12))
        await cluster.put("n2", other, (8, 10))
        for name in ("n1", "n3"):
            await cluster.damage(name, closed, 7)
        await cluster.put_log(closed, other, open_)
        await cluster.stop("n4")
        found = findings(await check(Caretaker(cluster, "n1")))
        assert sorted(it for it in found if it[0] != "DISAGREE") == [
            ("DAMAGED", 7, 8, "n1"),
            ("DAMAGED", 7, 8, "n3"),
            ("LOST", 7, 8, ""),
            ("MISSING", 6, 8, "n2"),
            ("MISSING", 10, 12, "n2"),
            ("NO_ANSWER", 8, 12, "n4"),
        ]
        disagree = [it for it in found if it[0] == "DISAGREE"]
        assert disagree == [("DISAGREE", at, at + 1, "n2") for at in range(6)]


def loss(segment: int, *, dry_run: bool = False, reason: str = "gone") -> Any:
    return admin_pb2.AcceptLossRequest(
        log="orders", segment_index=segment, reason=reason, dry_run=dry_run
    )


def ranges(lost: Any) -> list[tuple[int, int]]:
    return [(it.first, it.end) for it in lost]


async def with_care(cluster: Cluster, name: str, act: Callable[[Caretaker], Any]) -> None:
    caretaker = Caretaker(cluster, name)
    async with running(caretaker.parts()):
        await act(caretaker)


async def _an_unrepairable_log_goes_on() -> None:
    """Field notes 18 and 19: two of three stores are lost. Nothing but a person can end the
    segment. The answer says what would be lost, the chain keeps it with the reason, what the
    survivor has is copied to the new replicas, and the log has an open segment again."""
    async with cluster_of("n1", "n2", "n3", "n4", "n5") as cluster:
        segment = cluster.segment(0, 0, sequencer="n2")
        for name in ("n1", "n2", "n3"):
            await cluster.put(name, segment, (0, 6), committed=4)
        await cluster.put_log(segment)
        await cluster.wipe("n2")
        await cluster.wipe("n3")

        async def act(caretaker: Caretaker) -> None:
            with pytest.raises(Unrepairable):
                await caretaker.reconfigurer.reconfigure("orders", reason="t", planned=False)
            told = await caretaker.care.losses.accept_loss(loss(0, dry_run=True))
            assert ranges(told.lost) == [(6, 6)]
            assert told.chain_version == 0
            assert cluster.chain() == (segment,)
            done = await caretaker.care.losses.accept_loss(loss(0))
            assert ranges(done.lost) == [(6, 6)]
            assert done.chain_version > 0
            await cluster.until(lambda: len(cluster.chain()) == 2)

        await with_care(cluster, "n1", act)
        ended, opened = cluster.chain()
        assert ended.end == 6
        (lost,) = ended.lost
        assert (lost.first, lost.end, lost.reason) == (6, 6, "gone")
        assert lost.accepted_ms > 0
        assert opened.base == 6
        for replica in ended.nodeset:
            assert cluster.replica(replica.node_id) == replica
            assert cluster.held(replica.node_id, ended) == list(range(6))


async def _what_the_survivor_lacks_is_a_typed_gap() -> None:
    """Field note 19: the survivor knows of a committed tail above what it holds, and has a hole;
    both are named as lost ranges, and the segment ends above them."""
    async with cluster_of("n1", "n2", "n3", "n4", "n5") as cluster:
        segment = cluster.segment(0, 0, sequencer="n2")
        await cluster.put("n1", segment, (0, 3), (5, 7), committed=9)
        await cluster.put_log(segment)
        await cluster.wipe("n2")
        await cluster.wipe("n3")

        async def act(caretaker: Caretaker) -> None:
            done = await caretaker.care.losses.accept_loss(loss(0))
            assert ranges(done.lost) == [(3, 5), (7, 9), (9, 9)]
            assert done.segment.end == 9
            await cluster.until(lambda: len(cluster.chain()) == 2)

        await with_care(cluster, "n1", act)


async def _nothing_is_given_up_that_may_come_back() -> None:
    """A replica that is silent may hold the records: refused, and said what to do; once its store
    is declared lost it is accepted. A log that can mend itself is refused as well."""
    async with cluster_of("n1", "n2", "n3", "n4", "n5") as cluster:
        segment = cluster.segment(0, 0, sequencer="n2")
        for name in ("n1", "n2", "n3"):
            await cluster.put(name, segment, (0, 6), committed=4)
        await cluster.put_log(segment)
        await cluster.wipe("n3")
        caretaker = Caretaker(cluster, "n1")
        async with running(caretaker.parts()):
            accept = caretaker.care.losses.accept_loss
            with pytest.raises(InvalidArgument, match="without a loss"):
                await accept(loss(0))
            await cluster.stop("n2")
            with pytest.raises(InvalidArgument, match="n2 may hold"):
                await accept(loss(0))
            with pytest.raises(InvalidArgument, match="say why"):
                await accept(loss(0, reason=""))
            nodes = cluster.view._nodes  # this node is the last to hear of the declaration
            stale = dict(nodes)
            await set_node_state(cluster.store, NodeId("n2"), STATE_DATA_LOSS)
            nodes.update(stale)
            assert ranges((await accept(loss(0))).lost) == [(6, 6)]


async def _a_store_that_was_declared_lost_and_answers() -> None:
    """Field note 18: one disk is gone, another was declared lost and answers all the same.
    Reconfiguration leaves it out, so nothing but a person can end the segment; what it holds is
    taken, and it leaves the nodeset."""
    async with cluster_of("n1", "n2", "n3", "n4", "n5") as cluster:
        segment = cluster.segment(0, 0)
        await cluster.put("n1", segment, (0, 6), committed=4)
        await cluster.put("n2", segment, (0, 8), committed=4)
        await cluster.put_log(segment)
        await cluster.wipe("n3")
        await set_node_state(cluster.store, NodeId("n2"), STATE_DATA_LOSS)

        async def act(caretaker: Caretaker) -> None:
            await cluster.until(lambda: caretaker.care.losses._door.is_lost(segment.nodeset[1]))
            with pytest.raises(Unrepairable):
                await caretaker.reconfigurer.reconfigure("orders", reason="t", planned=False)
            done = await caretaker.care.losses.accept_loss(loss(0))
            assert ranges(done.lost) == [(8, 8)]
            await cluster.until(lambda: len(cluster.chain()) == 2)

        await with_care(cluster, "n1", act)
        ended = cluster.chain()[0]
        assert segment.nodeset[1] not in ended.nodeset
        assert all(
            cluster.held(replica.node_id, ended) == list(range(8))
            for replica in ended.nodeset
            if replica.node_id != "n1"
        )


async def _a_node_without_its_log_server_has_lost_nothing() -> None:
    """Field note 5: the node runs without the role, its disk is intact. The store is away, so
    nothing is given up; the digest does not call it lost either."""
    async with cluster_of("n1", "n2", "n3", "n4", "n5") as cluster:
        segment = cluster.segment(0, 0, sequencer="n1")
        await cluster.put("n1", segment, (0, 6), committed=4)
        await cluster.put_log(segment)
        await cluster.wipe("n3")
        await cluster.stop("n2")
        await register_node(
            cluster.store,
            node_id=NodeId("n2"),
            storage_id=StorageId(""),
            address="n2:1",
            roles=("sequencer",),
            known_cluster_id="",
            new_id=cluster.world.ids("cluster"),
            now_ms=0,
        )

        async def act(caretaker: Caretaker) -> None:
            with pytest.raises(InvalidArgument, match="n2 may hold"):
                await caretaker.care.losses.accept_loss(loss(0))
            assert not caretaker.care.integrity._door.is_lost(segment.nodeset[1])

        await with_care(cluster, "n1", act)


async def _a_survivor_with_damage_below_the_committed_tail() -> None:
    """One disk of two is lost and the other has a flipped bit below what is committed: what
    reconfiguration can't prove may be given up, else the log would be stuck for ever."""
    async with cluster_of("n1", "n2", "n3", "n4") as cluster:
        segment = cluster.segment(0, 0, nodes=("n1", "n2"), sequencer="n2")
        await cluster.put("n1", segment, (0, 9), committed=7)
        await cluster.put_log(segment)
        await cluster.damage("n1", segment, 4)
        await cluster.put("n1", segment, (0, 4), committed=7)
        await cluster.wipe("n2")

        async def act(caretaker: Caretaker) -> None:
            with pytest.raises(Unrepairable):
                await caretaker.reconfigurer.reconfigure("orders", reason="t", planned=False)
            done = await caretaker.care.losses.accept_loss(loss(0))
            assert ranges(done.lost) == [(4, 5)]
            await cluster.until(lambda: len(cluster.chain()) == 2)

        await with_care(cluster, "n1", act)
        assert cluster.chain()[0].end == 9


async def _nobody_is_left() -> None:
    """All three stores are lost: the segment's records are, the count unknown, and the log goes on
    at the same offset; the mark stands in the new segment."""
    async with cluster_of("n1", "n2", "n3", "n4", "n5", "n6") as cluster:
        segment = cluster.segment(1, 4, nodes=("n1", "n2", "n3"))
        before = cluster.segment(0, 0, 4, nodes=("n4", "n5", "n6"))
        await cluster.put_log(before, segment)
        for name in ("n1", "n2", "n3"):
            await cluster.wipe(name)

        async def act(caretaker: Caretaker) -> None:
            done = await caretaker.care.losses.accept_loss(loss(1))
            assert ranges(done.lost) == [(4, 4)]
            await cluster.until(lambda: cluster.chain()[-1].index == 2)

        await with_care(cluster, "n4", act)
        opened = cluster.chain()[-1]
        assert (opened.base, ranges(opened.lost)) == (4, [(4, 4)])


async def _what_is_archived_is_not_lost() -> None:
    """The survivor of three has less than the archive: the segment ends where that does, nothing
    below is given up or looked for any more; also if whoever archived it had not told the chain."""
    async with cluster_of("n1", "n2", "n3", "n4", "n5", "n6") as cluster:
        segment = cluster.segment(0, 0, nodes=("n1", "n2", "n3"))
        await cluster.put("n1", segment, (0, 4))
        await cluster.put_log(segment, archived_end=Offset(2))
        for name in ("n2", "n3"):
            await cluster.wipe(name)

        async def catch_up(record: LogRecord) -> None:
            at = Offset(8)
            known = Committed(0, at)
            await set_archived_end(
                cluster.store, "orders", record.log_id, at, nonce="a", committed=known
            )

        async def act(caretaker: Caretaker) -> None:
            caretaker.care.losses.ask_first(catch_up)
            told = await caretaker.care.losses.accept_loss(loss(0, dry_run=True))
            assert (told.segment.end, ranges(told.lost)) == (8, [(8, 8)])
            done = await caretaker.care.losses.accept_loss(loss(0))
            assert (done.segment.end, ranges(done.lost)) == (8, [(8, 8)])
            await cluster.until(lambda: len(cluster.chain()) == 2)
            await cluster.until(lambda: len({it.node_id for it in cluster.chain()[0].nodeset}) == 3)
            term = caretaker.care.controller.term
            assert term is None or term.ledger.losses(10) == []

        await with_care(cluster, "n1", act)
        found = cluster.view.log("orders")
        assert found is not None
        assert (found[0].trimmed, found[0].open_segment.base) == (8, 8)


async def _a_closed_segment_loses_what_nobody_has() -> None:
    """Damaged on every replica: given up as ranges; then the rest counts as complete, and is not
    given up twice."""
    async with cluster_of("n1", "n2", "n3") as cluster:
        closed, open_ = cluster.segment(0, 0, 8), cluster.segment(1, 8)
        for name in cluster.servers:
            await cluster.put(name, closed, (0, 8))
        for name in cluster.servers:
            await cluster.damage(name, closed, 3)
        await cluster.put_log(closed, open_)

        async def act(caretaker: Caretaker) -> None:
            done = await caretaker.care.losses.accept_loss(loss(0))
            assert ranges(done.lost) == [(3, 4)]
            await cluster.until(lambda: bool(cluster.chain()[0].lost))
            with pytest.raises(InvalidArgument, match="nothing is lost"):
                await caretaker.care.losses.accept_loss(loss(0))
            with pytest.raises(InvalidArgument, match="no segment 9"):
                await caretaker.care.losses.accept_loss(loss(9))
            assert findings(await check(caretaker)) == []

        await with_care(cluster, "n1", act)
        (lost,) = cluster.chain()[0].lost
        assert isinstance(lost, LostRange)
        assert (lost.first, lost.end) == (Offset(3), Offset(4))


async def _the_controller_tells_of_a_loss() -> None:
    """A closed segment that nobody has all of is found by the controller's look, and after the loss
    was accepted nothing is wrong any more."""
    async with cluster_of("n1", "n2", "n3") as cluster:
        closed, open_ = cluster.segment(0, 0, 8), cluster.segment(1, 8)
        await cluster.put("n1", closed, (0, 5), (6, 8))
        await cluster.put_log(closed, open_)
        caretaker = Caretaker(cluster, "n1")

        def losses() -> list[Any]:
            term = caretaker.care.controller.term
            return [] if term is None else term.ledger.losses(10)

        async with running(caretaker.runs()):
            await cluster.until(losses)
            assert losses() == [(7, {0: ((5, 6),)})]
            await caretaker.care.losses.accept_loss(loss(0))
            await caretaker.care.controller.resign()
            await cluster.until(lambda: bool(cluster.chain()[0].lost))
        again = Caretaker(cluster, "n1")
        async with running(again.runs()):
            await cluster.until(lambda: again.care.controller.leads)
            await cluster.clock.sleep(5)
            term = again.care.controller.term
            assert term is not None
            assert term.ledger.losses(10) == []
            assert term.ledger.lacking == 0


test_digest_shows_each_replica = virtually(_digest_shows_each_replica)
test_check_of_a_sound_log = virtually(_check_finds_nothing_in_a_sound_log)
test_check_tells_what_is_wrong = virtually(_check_tells_what_is_wrong)
test_an_unrepairable_log_goes_on = virtually(_an_unrepairable_log_goes_on)
test_what_the_survivor_lacks = virtually(_what_the_survivor_lacks_is_a_typed_gap)
test_nothing_that_may_come_back = virtually(_nothing_is_given_up_that_may_come_back)
test_a_store_declared_lost = virtually(_a_store_that_was_declared_lost_and_answers)
test_a_node_without_its_log_server = virtually(_a_node_without_its_log_server_has_lost_nothing)
test_a_survivor_with_damage = virtually(_a_survivor_with_damage_below_the_committed_tail)
test_nobody_is_left = virtually(_nobody_is_left)
test_what_is_archived_is_not_lost = virtually(_what_is_archived_is_not_lost)
test_a_closed_segment = virtually(_a_closed_segment_loses_what_nobody_has)
test_the_controller_tells_of_a_loss = virtually(_the_controller_tells_of_a_loss)
