"""AdminService: what is asked, where it goes, and what is answered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from helpers.movers import NAME, Mover, MoverWorld, batch, run_in

from metadata.reconfiguration import Change
from node.admin_service import AdminService, CheckStream, DigestStream, read_change
from node.move import Reconfigured
from sharedlog.errors import (
    InvalidArgument,
    InvalidLogName,
    LogNotFound,
    LogUnavailable,
    NotSequencer,
)
from sharedlog.ids import NodeId
from sharedlog.rpc import methods
from sharedlog.v1 import admin_pb2


class Others:
    """What stands behind the methods that are passed on."""

    def __init__(self) -> None:
        self.helped: list[tuple[str, Change, int, str]] = []

    async def digest_log(self, stream: DigestStream) -> None:
        request = await stream.receive()
        assert request is not None
        await stream.send(admin_pb2.DigestLogResponse(end=len(request.log)))

    async def check_log(self, stream: CheckStream) -> None:
        await stream.receive()
        await stream.send(admin_pb2.CheckLogResponse(total=7))

    async def help(
        self, name: str, change: Change, *, segment_index: int, reason: str
    ) -> Reconfigured:
        self.helped.append((name, change, segment_index, reason))
        raise LogUnavailable("can't help")

    async def accept_loss(
        self, request: admin_pb2.AcceptLossRequest
    ) -> admin_pb2.AcceptLossResponse:
        return admin_pb2.AcceptLossResponse(chain_version=request.segment_index)

    async def set_node_state(
        self, request: admin_pb2.SetNodeStateRequest
    ) -> admin_pb2.SetNodeStateResponse:
        return admin_pb2.SetNodeStateResponse(state=request.state)

    async def remove_node(
        self, request: admin_pb2.RemoveNodeRequest
    ) -> admin_pb2.RemoveNodeResponse:
        return admin_pb2.RemoveNodeResponse(removed=request.node_id == "n3")


@asynccontextmanager
async def admin(world: MoverWorld, name: str) -> AsyncIterator[tuple[AdminService, Mover]]:
    """A node's AdminService, served at that node's address."""
    async with world.mover(name) as mover:
        others = Others()
        service = AdminService(
            me=mover.me,
            view=mover.view,
            transport=world.network.transport(name),
            reconfigurer=mover.reconfigurer,
            sequencer=mover.sequencer,
            helper=others,
            integrity=others,
            losses=others,
            states=others,
        )
        server = world.servers[name].grpc
        assert server is not None
        service.register(server)
        yield service, mover


def ask(**fields: object) -> admin_pb2.ReconfigureRequest:
    return admin_pb2.ReconfigureRequest(log=NAME, **fields)  # type: ignore[arg-type]  # any field


def test_the_process_that_orders_the_log_does_it_as_planned() -> None:
    """It drains first, and the answer says what became of it."""
    world = MoverWorld(1)
    world.put_log()

    async def main() -> None:
        for name in ("n1", "n2", "n3"):
            await world.store(name, [batch(0), batch(1)])
        async with admin(world, "n1") as (service, mover):
            answer = await service.reconfigure(ask(sequencer="n2", reason="why not"))
            assert mover.sequencer.calls[0] == "prepare 0"
            assert (answer.ended.end, answer.opened.base, answer.opened.index) == (2, 2, 1)
            assert answer.opened.sequencer.node_id == "n2"
            assert answer.chain_version == mover.view.log(NAME)[1]  # type: ignore[index]  # known
            assert answer.pause_ms > 0
            assert not answer.adopted

    run_in(world, main)


def test_another_node_passes_it_on() -> None:
    """Once, to the process that orders the log; it is drained there."""
    world = MoverWorld(2)
    world.put_log()

    async def main() -> None:
        async with admin(world, "n1") as (_, owner), admin(world, "n4") as (service, asked):
            answer = await service.reconfigure(ask(replicas=4))
            assert len(answer.opened.nodeset) == 4
            assert owner.sequencer.calls == ["prepare 0", "chain 1"]
            assert asked.sequencer.calls == []

    run_in(world, main)


def test_a_node_does_it_itself_if_the_sequencer_is_away() -> None:
    """Refused, or silent: then unplanned, by whoever was asked."""
    world = MoverWorld(3)
    world.put_log()

    async def main() -> None:
        async with admin(world, "n4") as (service, asked):
            world.network.cut("n4", "n1")
            began_s = asyncio.get_running_loop().time()
            answer = await service.reconfigure(ask())
            assert asyncio.get_running_loop().time() - began_s < 1
            assert answer.opened.index == 1
            assert asked.sequencer.calls == ["chain 1"]

    run_in(world, main)


def test_direct_only_is_never_passed_on() -> None:
    """Two nodes with old views never send a request round in circles."""
    world = MoverWorld(4)
    world.put_log()

    async def main() -> None:
        async with admin(world, "n1") as (_, owner), admin(world, "n4") as (service, asked):
            await service.reconfigure(ask(direct_only=True))
            assert owner.sequencer.calls == []
            assert asked.sequencer.calls == ["chain 1"]

    run_in(world, main)


def test_a_call_for_help_goes_to_those_who_keep_the_pace() -> None:
    """A sequencer that is not to go on has its segment ended by the asked node's failover."""
    world = MoverWorld(9)
    world.put_log()

    async def main() -> None:
        async with admin(world, "n4") as (service, mover):
            request = ask(
                sequencer="n4", not_sequencer=["n1"], segment_index=0, direct_only=True, reason="r"
            )
            with pytest.raises(LogUnavailable, match="can't help"):
                await service.reconfigure(request)
            assert service._helper.helped == [  # type: ignore[attr-defined]
                (NAME, read_change(request), 0, "r")
            ]
            assert mover.sequencer.calls == []

    run_in(world, main)


def test_a_move_that_fails_lets_the_sequencer_go_on() -> None:
    """It stopped admitting for another node's move: it is told that nothing came of it, and need
    not wait until it finds out by itself."""
    world = MoverWorld(10)
    world.put_log()

    async def main() -> None:
        async with admin(world, "n1") as (_, owner), admin(world, "n4") as (_, mover):
            for server in ("n2", "n3"):
                world.network.cut("n4", server)
            with pytest.raises(LogUnavailable, match="no seal quorum"):
                await mover.reconfigurer.reconfigure(NAME, reason="r", planned=True)
            await asyncio.sleep(0.1)
            assert owner.sequencer.calls == ["prepare 0", "resume 0"]

    run_in(world, main)


def test_a_segment_that_has_ended_is_not_ended_again() -> None:
    """With `segment_index` a repeated request adopts what is there."""
    world = MoverWorld(5)
    world.put_log()

    async def main() -> None:
        async with admin(world, "n1") as (service, _):
            first = await service.reconfigure(ask(segment_index=0))
            second = await service.reconfigure(ask(segment_index=0))
            assert (first.adopted, second.adopted) == (False, True)
            assert second.opened == first.opened

    run_in(world, main)


def test_a_dry_run_says_what_would_be() -> None:
    """And does nothing."""
    world = MoverWorld(6)
    world.put_log()

    async def main() -> None:
        async with admin(world, "n4") as (service, _):
            answer = await service.reconfigure(ask(replicas=4, dry_run=True))
            assert (answer.chain_version, len(answer.opened.nodeset)) == (0, 4)
            assert not answer.ended.HasField("end")
            assert (await world.chain()).open_segment.index == 0

    run_in(world, main)


def test_prepare_move_is_for_the_process_that_orders_the_segment() -> None:
    """Anyone else says so, and so does the right process of another segment."""
    world = MoverWorld(7)
    world.put_log()

    async def main() -> None:
        request = admin_pb2.PrepareMoveRequest(log=NAME, segment_index=0)
        async with admin(world, "n1") as (service, mover), admin(world, "n4") as (other, _):
            answer = await service.prepare_move(request)
            assert (answer.drained, answer.committed_tail) == (True, 0)
            assert mover.sequencer.calls == ["prepare 0"]
            with pytest.raises(NotSequencer):
                await other.prepare_move(request)
            request.segment_index = 3
            with pytest.raises(NotSequencer):
                await service.prepare_move(request)
            with pytest.raises(LogNotFound):
                await service.prepare_move(admin_pb2.PrepareMoveRequest(log="other"))

    run_in(world, main)


def test_the_rest_is_passed_to_those_who_do_it() -> None:
    """Over the wire, as clients ask."""
    world = MoverWorld(8)
    world.put_log()

    async def main() -> None:
        async with admin(world, "n1"):
            transport = world.network.transport("client")
            stream = transport.stream("n1:1", methods.DIGEST_LOG)
            await stream.send(admin_pb2.DigestLogRequest(log=NAME))
            digest = await stream.receive()
            assert digest is not None
            assert digest.end == len(NAME)
            check = transport.stream("n1:1", methods.CHECK_LOG)
            await check.send(admin_pb2.CheckLogRequest(log=NAME))
            assert (await check.receive()) == admin_pb2.CheckLogResponse(total=7)
            loss = admin_pb2.AcceptLossRequest(log=NAME, segment_index=4)
            accepted = await transport.call("n1:1", methods.ACCEPT_LOSS, loss, timeout_s=1)
            assert accepted.chain_version == 4
            state = admin_pb2.SetNodeStateRequest(node_id="n2", state="draining")
            found = await transport.call("n1:1", methods.SET_NODE_STATE, state, timeout_s=1)
            assert found.state == "draining"
            removal = admin_pb2.RemoveNodeRequest(node_id="n3")
            assert (await transport.call("n1:1", methods.REMOVE_NODE, removal, timeout_s=1)).removed
            for it in (stream, check):
                it.cancel()

    run_in(world, main)


def test_what_is_asked_for_becomes_a_change() -> None:
    """0 and empty are "as before"."""
    assert read_change(ask()) == Change()
    assert read_change(ask(not_sequencer=["n1"])).not_sequencer == {"n1"}
    found = read_change(ask(nodeset=["n2", "n3"], write_quorum=2, sequencer="n3"))
    assert found == Change(
        nodeset=(NodeId("n2"), NodeId("n3")),
        write_quorum=2,
        sequencer=NodeId("n3"),
    )
    assert read_change(ask(set_spread=True)).spread == ()
    assert read_change(ask(set_spread=True, spread={"zone": 2})).spread == (("zone", 2),)
    assert read_change(ask(spread={"zone": 2})).spread is None
    for wrong in (ask(replicas=8), ask(set_spread=True, spread={"planet": 2})):
        with pytest.raises(InvalidArgument):
            read_change(wrong)


def test_a_name_that_is_none_is_refused() -> None:
    """Before anything is looked up."""
    world = MoverWorld(9)

    async def main() -> None:
        async with admin(world, "n1") as (service, _):
            with pytest.raises(InvalidLogName):
                await service.reconfigure(admin_pb2.ReconfigureRequest(log="no name"))

    run_in(world, main)
