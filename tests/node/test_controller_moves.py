"""What the controller does by itself: failover, replacement, re-replication, drain, balance, scrub.

Real log servers, the real reconfiguration procedure, virtual time.
"""

from __future__ import annotations

import pytest
from helpers.care_parts import Caretaker, Cluster, cluster_of, running, virtually

from metadata.records import STATE_DATA_LOSS, STATE_DRAINING, STATE_GONE, Segment
from metadata.registry import set_node_state
from node.replica_door import ReplicaDoor
from sharedlog.errors import InvalidArgument
from sharedlog.ids import NodeId, Offset
from sharedlog.v1 import admin_pb2


async def filled(cluster: Cluster, segment: Segment, end: int, *, log_id: int = 7) -> None:
    for replica in segment.nodeset:
        await cluster.put(replica.node_id, segment, (segment.base, end), log_id=log_id)


def members(segment: Segment) -> list[str]:
    return sorted(replica.node_id for replica in segment.nodeset)


async def _a_wiped_store_is_left() -> None:
    """Field notes 20 and 31: after a wipe, closed segments are copied to another log server, and
    only then does the chain name it; the open segment is rolled off the lost store."""
    async with cluster_of("n1", "n2", "n3", "n4") as cluster:
        closed, open_ = cluster.segment(0, 0, 8), cluster.segment(1, 8)
        await filled(cluster, closed, 8)
        await filled(cluster, open_, 12)
        await cluster.put_log(closed, open_)
        await cluster.wipe("n3")
        caretaker = Caretaker(cluster, "n1")
        async with running(caretaker.runs()):
            await cluster.until(lambda: len(cluster.chain()) >= 3 and _left(cluster))
        for segment in cluster.chain()[:-1]:
            for replica in segment.nodeset:
                found = cluster.held(replica.node_id, segment)
                assert found == list(range(segment.base, segment.end or 0)), replica


async def _a_wiped_member_of_three_takes_its_own_place() -> None:
    """Three nodes, one of them back with an empty disk: its new store takes the place of the old
    one, in open and in closed segments, and gets all that the others have."""
    async with cluster_of("n1", "n2", "n3") as cluster:
        closed, open_ = cluster.segment(0, 0, 8), cluster.segment(1, 8)
        await filled(cluster, closed, 8)
        await filled(cluster, open_, 12)
        await cluster.put_log(closed, open_)
        await cluster.wipe("n3")
        caretaker = Caretaker(cluster, "n1")
        async with running(caretaker.runs()):
            await cluster.until(lambda: len(cluster.chain()) == 3 and _left(cluster))
        for segment in cluster.chain()[:-1]:
            assert cluster.held("n3", segment) == list(range(segment.base, segment.end or 0))


async def _a_half_made_seal_is_rolled_forward() -> None:
    """Field note 10: somebody sealed the open segment and is gone. The controller finishes it."""
    async with cluster_of("n1", "n2", "n3") as cluster:
        segment = cluster.segment(0, 0)
        await filled(cluster, segment, 5)
        record = await cluster.put_log(segment)
        caretaker = Caretaker(cluster, "n2", backfill_every_s=20)
        door = ReplicaDoor(view=cluster.view, transport=cluster.doors)
        async with running(caretaker.runs()):
            await cluster.until(lambda: caretaker.care.controller.leads)
            await cluster.clock.sleep(3)
            assert cluster.chain() == (segment,)
            await door.seal(segment.nodeset[2], record.loglet(segment), segment.base)
            await cluster.until(lambda: len(cluster.chain()) == 2)
        assert cluster.chain()[0].end == 5


def _left(cluster: Cluster) -> bool:
    """No closed segment names a store that its node has no more."""
    return all(
        cluster.replica(replica.node_id) == replica
        for segment in cluster.chain()
        for replica in segment.nodeset
    )


async def _the_chain_waits_for_the_copies() -> None:
    """Field note 31: while the new store can't be filled, the chain goes on naming the old one."""
    async with cluster_of("n1", "n2", "n3", "n4") as cluster:
        closed, open_ = cluster.segment(0, 0, 8), cluster.segment(1, 8, nodes=("n1", "n2", "n4"))
        await cluster.put("n1", closed, (0, 8))
        await cluster.put("n2", closed, (0, 8))
        await filled(cluster, open_, 8)
        await cluster.damage("n1", closed, 5)
        await cluster.damage("n2", closed, 5)
        await cluster.put_log(closed, open_)
        await cluster.wipe("n3")
        caretaker = Caretaker(cluster, "n1")
        async with running(caretaker.runs()):
            await cluster.until(lambda: caretaker.care.controller.leads)
            await cluster.clock.sleep(10)
            assert cluster.chain()[0].nodeset == closed.nodeset
            term = caretaker.care.controller.term
            assert term is not None
            ((_, lost),) = term.ledger.losses(10)
            assert lost == {0: ((5, 6),)}


async def _a_drain_ends_by_itself() -> None:
    """Field note 33: a draining node gives up open and closed segments and the logs that it orders,
    shows how far it is, and is gone in the end; nothing was lost on the way."""
    async with cluster_of("n1", "n2", "n3", "n4") as cluster:
        closed, open_ = cluster.segment(0, 0, 8), cluster.segment(1, 8, sequencer="n3")
        await filled(cluster, closed, 8)
        await filled(cluster, open_, 10)
        await cluster.put_log(closed, open_)
        caretaker = Caretaker(cluster, "n1")
        shown: set[str] = set()
        async with running(caretaker.runs()):
            await cluster.until(lambda: caretaker.care.controller.leads)
            request = admin_pb2.SetNodeStateRequest(node_id="n3", state=STATE_DRAINING)
            answer = await caretaker.care.states.set_node_state(request)
            assert answer.safe
            assert (answer.segments, answer.sequenced_logs) == (2, 1)

            def gone() -> bool:
                shown.update(it.kind for it in caretaker.board.shown())
                node = cluster.view.node(NodeId("n3"))
                return node is not None and node.state == STATE_GONE

            await cluster.until(gone)
        assert "drain" in shown
        for segment in cluster.chain():
            assert "n3" not in members(segment)
            assert segment.sequencer.node_id != "n3" or segment.index < 2
        for segment in cluster.chain()[:-1]:
            for name in members(segment):
                assert cluster.held(name, segment) == list(range(segment.base, segment.end or 0))


async def _a_drain_without_a_place_says_so() -> None:
    """Three nodes and three replicas: the verdict says that it can't end, and so does the work; a
    fourth node lets it end."""
    async with cluster_of("n1", "n2", "n3") as cluster:
        closed, open_ = cluster.segment(0, 0, 4), cluster.segment(1, 4)
        await filled(cluster, closed, 4)
        await filled(cluster, open_, 4)
        await cluster.put_log(closed, open_)
        caretaker = Caretaker(cluster, "n1")
        async with running(caretaker.runs()):
            await cluster.until(lambda: caretaker.care.controller.leads)
            request = admin_pb2.SetNodeStateRequest(
                node_id="n3", state=STATE_DRAINING, dry_run=True
            )
            answer = await caretaker.care.states.set_node_state(request)
            assert not answer.safe
            assert answer.state == "read-write"
            assert answer.uses[0].obstacle
            request.dry_run = False
            await caretaker.care.states.set_node_state(request)
            await cluster.until(
                lambda: any(it.message.startswith("waits: ") for it in caretaker.board.shown())
            )
            await cluster.clock.sleep(5)
            assert len(cluster.chain()) == 2  # no reconfiguration that would change nothing
            await cluster.start("n4")
            await cluster.until(lambda: _state(cluster, "n3") == STATE_GONE)


def _state(cluster: Cluster, name: str) -> str:
    node = cluster.view.node(NodeId(name))
    assert node is not None
    return node.state


async def _a_dead_sequencer_is_replaced() -> None:
    """A process that ended, and one that went silent: each of its logs gets another sequencer
    without anybody complaining."""
    async with cluster_of("n1", "n2", "n3") as cluster:
        for number in range(20):
            segment = cluster.segment(0, 0, sequencer="n2")
            await filled(cluster, segment, 2, log_id=100 + number)
            await cluster.put_log(segment, name=f"log{number:02}", log_id=100 + number)
        caretaker = Caretaker(cluster, "n1")
        async with running(caretaker.runs()):
            await cluster.until(lambda: caretaker.care.controller.leads)
            await cluster.clock.sleep(2)
            begun_s = cluster.clock.monotonic_s()
            cluster.doors.silent.add("n2:1")
            await cluster.until(lambda: not _ordered_by(cluster, "n2"))
            assert cluster.clock.monotonic_s() - begun_s < 6
        for record, _ in cluster.view.logs():
            assert record.chain[0].end == 2


def _ordered_by(cluster: Cluster, name: str) -> list[str]:
    return [
        record.name
        for record, _ in cluster.view.logs()
        if record.open_segment.sequencer.node_id == name
    ]


async def _an_away_log_server_is_replaced_in_time() -> None:
    """Not at once, for it may come back; after `replace_after_s` in the open segment only; after
    `rereplicate_after_s` in closed ones too."""
    async with cluster_of("n1", "n2", "n3", "n4") as cluster:
        closed, open_ = cluster.segment(0, 0, 4), cluster.segment(1, 4)
        await filled(cluster, closed, 4)
        await filled(cluster, open_, 6)
        await cluster.put_log(closed, open_)
        caretaker = Caretaker(cluster, "n1", replace_after_s=20, rereplicate_after_s=60)
        async with running(caretaker.runs()):
            await cluster.until(lambda: caretaker.care.controller.leads)
            await cluster.clock.sleep(1)
            await cluster.stop("n3")
            await cluster.clock.sleep(17)
            assert cluster.chain() == (closed, open_)
            await cluster.until(lambda: len(cluster.chain()) == 3)
            assert members(cluster.chain()[-1]) == ["n1", "n2", "n4"]
            assert cluster.chain()[0].nodeset == closed.nodeset
            await cluster.until(lambda: members(cluster.chain()[0]) == ["n1", "n2", "n4"])
            assert cluster.held("n4", closed) == list(range(4))


async def _sequencers_are_spread() -> None:
    """Nine logs on one of three nodes: some are moved, one at a time, until no node orders much
    more than another; not before the cluster has settled."""
    async with cluster_of("n1", "n2", "n3") as cluster:
        for number in range(9):
            segment = cluster.segment(0, 0, sequencer="n1")
            await filled(cluster, segment, 2, log_id=100 + number)
            await cluster.put_log(segment, name=f"log{number}", log_id=100 + number)
        caretaker = Caretaker(cluster, "n2", balance_after_s=30)
        async with running(caretaker.runs()):
            await cluster.until(lambda: caretaker.care.controller.leads)
            await cluster.clock.sleep(25)
            assert len(_ordered_by(cluster, "n1")) == 9
            await cluster.clock.sleep(25)
            spread = sorted(len(_ordered_by(cluster, name)) for name in cluster.servers)
            assert spread[-1] - spread[0] <= 2
            assert sum(spread) == 9
            moved = [len(record.chain) for record, _ in cluster.view.logs()]
            assert max(moved) <= 2, "no log was moved twice"


async def _the_lease_passes_on() -> None:
    """One of two is the controller; when it dies the other takes over within a few seconds, and
    after a resignation at once."""
    async with cluster_of("n1", "n2", "n3") as cluster:
        first, second = Caretaker(cluster, "n1"), Caretaker(cluster, "n2")
        async with running(first.runs()) as tasks, running(second.runs()):
            await cluster.until(lambda: first.care.controller.leads or second.care.controller.leads)
            await cluster.clock.sleep(10)
            both = [first.care.controller, second.care.controller]
            assert [it.leads for it in both].count(True) == 1
            if second.care.controller.leads:
                await second.care.controller.resign()
                await cluster.until(lambda: first.care.controller.leads, within_s=3)
            else:
                tasks["controller"].cancel()
                await cluster.until(lambda: second.care.controller.leads, within_s=8)
                assert second.care.controller.holder == "n2"


async def _without_metadata_the_term_ends() -> None:
    """Field note 52: a controller that can't renew its lease stops, and one is there again when the
    store is back."""
    async with cluster_of("n1", "n2", "n3") as cluster:
        caretaker = Caretaker(cluster, "n1")
        async with running(caretaker.runs()):
            await cluster.until(lambda: caretaker.care.controller.leads)
            cluster.metadata.up = False
            await cluster.until(lambda: caretaker.care.controller.term is None, within_s=10)
            cluster.metadata.up = True
            await cluster.until(lambda: caretaker.care.controller.term is not None)


async def _two_controllers_do_no_harm() -> None:
    """Both believe that they lead and move the same segments: the chain stays valid, and every
    store that it names holds what it should."""
    async with cluster_of("n1", "n2", "n3", "n4", "n5") as cluster:
        closed, open_ = cluster.segment(0, 0, 8), cluster.segment(1, 8)
        await filled(cluster, closed, 8)
        await filled(cluster, open_, 12)
        await cluster.put_log(closed, open_)
        await cluster.wipe("n3")
        first, second = Caretaker(cluster, "n1"), Caretaker(cluster, "n2")
        runs = [*first.parts(), *second.parts()]
        runs += [("term", it.care.controller.new_term().run()) for it in (first, second)]
        names = [(f"{number} {name}", run) for number, (name, run) in enumerate(runs)]
        async with running(names):
            await cluster.until(lambda: len(cluster.chain()) >= 3 and _left(cluster))
        for segment in cluster.chain()[:-1]:
            for replica in segment.nodeset:
                found = cluster.held(replica.node_id, segment)
                assert found == list(range(segment.base, segment.end or 0))


async def _scrub_repairs_a_flipped_bit() -> None:
    """Field note 24: damage that no reader met is found by the node itself and repaired from a
    peer, in closed and in open segments; the pass is shown while it lasts."""
    async with cluster_of("n1", "n2", "n3") as cluster:
        closed, open_ = cluster.segment(0, 0, 6), cluster.segment(1, 6)
        await filled(cluster, closed, 6)
        for name in ("n1", "n2", "n3"):
            await cluster.put(name, open_, (6, 9), committed=9)
        await cluster.put_log(closed, open_)
        for segment, offset in ((closed, 2), (open_, 7)):
            await cluster.damage("n2", segment, offset)
        await cluster.put("n1", open_, (6, 9), committed=9)
        caretaker = Caretaker(cluster, "n2", scrub_every_s=50)
        scrub = caretaker.care.scrub
        assert scrub is not None
        async with running([*caretaker.parts(), ("scrub", scrub.run())]):
            await cluster.until(lambda: not cluster.servers["n2"].disk.damaged)
            assert {it.kind for it in caretaker.board.shown()} <= {"scrub"}


async def _damage_that_a_reader_meets_is_repaired() -> None:
    """Long before the scrub comes by: the log server tells, and the node repairs it from a peer."""
    async with cluster_of("n1", "n2", "n3") as cluster:
        closed, open_ = cluster.segment(0, 0, 6), cluster.segment(1, 6)
        await filled(cluster, closed, 6)
        record = await cluster.put_log(closed, open_)
        await cluster.damage("n2", closed, 4)
        caretaker = Caretaker(cluster, "n2", scrub_bytes_per_s=0)
        scrub = caretaker.care.scrub
        assert scrub is not None
        server = cluster.servers["n2"].log_server
        assert server is not None
        server.on_damage(scrub.on_damage)
        door = ReplicaDoor(view=cluster.view, transport=cluster.doors)
        async with running([*caretaker.parts(), ("scrub", scrub.run())]):
            await cluster.clock.sleep(5)
            assert cluster.servers["n2"].disk.damaged

            async def take(_: object) -> None: ...

            gap = await door.read(
                cluster.replica("n2"),
                record.loglet(closed),
                Offset(0),
                Offset(6),
                segment_end=Offset(6),
                take=take,
            )
            assert gap is not None
            assert (gap.first, gap.end) == (4, 5)
            await cluster.until(lambda: not cluster.servers["n2"].disk.damaged, within_s=3)


async def _states_that_cannot_be_set() -> None:
    """An unknown node or state, and "gone" by hand, are refused; data-loss is taken."""
    async with cluster_of("n1", "n2", "n3") as cluster:
        caretaker = Caretaker(cluster, "n1")
        async with running(caretaker.parts()):
            for node_id, state in (("n9", STATE_DRAINING), ("n1", STATE_GONE), ("n1", "tired")):
                request = admin_pb2.SetNodeStateRequest(node_id=node_id, state=state)
                with pytest.raises(InvalidArgument):
                    await caretaker.care.states.set_node_state(request)
            request = admin_pb2.SetNodeStateRequest(node_id="n3", state=STATE_DATA_LOSS)
            assert (await caretaker.care.states.set_node_state(request)).state == STATE_DATA_LOSS
            await set_node_state(cluster.store, NodeId("n3"), "read-write")


test_a_wiped_store_is_left = virtually(_a_wiped_store_is_left)
test_a_wiped_member_of_three = virtually(_a_wiped_member_of_three_takes_its_own_place)
test_a_half_made_seal = virtually(_a_half_made_seal_is_rolled_forward)
test_the_chain_waits_for_the_copies = virtually(_the_chain_waits_for_the_copies)
test_a_drain_ends_by_itself = virtually(_a_drain_ends_by_itself)
test_a_drain_without_a_place_says_so = virtually(_a_drain_without_a_place_says_so)
test_a_dead_sequencer_is_replaced = pytest.mark.slow(virtually(_a_dead_sequencer_is_replaced))
test_an_away_log_server_is_replaced = pytest.mark.slow(
    virtually(_an_away_log_server_is_replaced_in_time)
)
test_sequencers_are_spread = pytest.mark.slow(virtually(_sequencers_are_spread))
test_the_lease_passes_on = virtually(_the_lease_passes_on)
test_without_metadata_the_term_ends = virtually(_without_metadata_the_term_ends)
test_two_controllers_do_no_harm = virtually(_two_controllers_do_no_harm)
test_scrub_repairs_a_flipped_bit = virtually(_scrub_repairs_a_flipped_bit)
test_damage_that_a_reader_meets = virtually(_damage_that_a_reader_meets_is_repaired)
test_states_that_cannot_be_set = virtually(_states_that_cannot_be_set)
