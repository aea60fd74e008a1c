"""Faults that are made of several, in an order that is rare by chance and hard on the protocol.

Each is a plot of the model's shortest traces, left loose: who, when and how long is drawn. They use
nothing that the single faults of `nemesis.py` could not do.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from helpers.sim.cluster import SimNode
from helpers.sim.metadata_store import METADATA_HOST
from helpers.sim.nemesis import Nemesis, fault

from metadata.records import Segment
from sharedlog.errors import SharedLogError
from sharedlog.ids import Offset
from sharedlog.rpc.methods import RECONFIGURE
from sharedlog.v1 import admin_pb2


def _members(it: Nemesis, segment: Segment) -> list[SimNode] | None:
    """The nodeset's nodes, if all of them serve the disks that it names."""
    nodes = [it.cluster.nodes[str(replica.node_id)] for replica in segment.nodeset]
    disks = [replica.storage_id for replica in segment.nodeset]
    if [node.disk.storage_id for node in nodes] != disks:
        return None
    return nodes if all(node.serves and not node.host.paused for node in nodes) else None


def _sequencer(it: Nemesis, segment: Segment) -> SimNode | None:
    node = it.cluster.nodes[str(segment.sequencer.node_id)]
    return node if node.serves and not node.host.paused else None


async def _reconfigure_at(
    it: Nemesis, node: SimNode, after_s: float, *, segment: Segment | None = None
) -> None:
    """Have this very node end the segment, whoever orders the log."""
    await asyncio.sleep(after_s)
    request = admin_pb2.ReconfigureRequest(log=it.log, direct_only=True, reason="a plot")
    if segment is not None:
        request.segment_index = segment.index
    with suppress(SharedLogError):
        await it.transport.call(node.address, RECONFIGURE, request, timeout_s=5.0)


@fault
async def rivals(it: Nemesis) -> bool:
    """Two nodes end one segment at once, and only one of them sees its last records.

    The records lie on one log server, for the sequencer does not reach the others. One rival does
    not reach that server, the other sees it and copies on. Then the sequencer reaches all again.
    """
    draw, network = it.draw, it.cluster.network
    segment = it.budget.record().open_segment
    members, sequencer = _members(it, segment), _sequencer(it, segment)
    if members is None or sequencer is None or len(members) < 3:
        return False
    lone = sequencer if sequencer in members else draw.choice(members)
    others = [node for node in members if node is not lone]
    far = draw.choice(others)
    nodes = [node for node in it.cluster.nodes.values() if node.serves]
    blind = draw.choice([node for node in nodes if node not in (lone, sequencer)] or others)
    seeing = draw.choice([node for node in nodes if node not in (far, blind)])
    pairs = [(str(sequencer.node_id), str(node.node_id)) for node in others]
    rest = [(str(blind.node_id), str(lone.node_id)), (str(seeing.node_id), str(far.node_id))]
    if draw.random() < 0.7:
        rest.append((str(sequencer.node_id), METADATA_HOST))
    for one, other in pairs:
        network.cut(one, other, both_ways=draw.random() < 0.3)
    await asyncio.sleep(draw.uniform(0.1, 0.8))
    for one, other in rest:
        network.cut(one, other)
    moment_s = sum(it.cluster.config.tempo)  # about what a step of an attempt takes
    async with asyncio.TaskGroup() as tasks:
        for rival, latest_s in ((seeing, 0.2 * moment_s), (blind, 2 * moment_s)):
            run = _reconfigure_at(it, rival, latest_s * draw.random(), segment=segment)
            tasks.create_task(run, name="rival")
        await asyncio.sleep(0.4 * moment_s)
        if draw.random() < 0.7:  # by now it has read the chain, and will be late to change it
            rest.append((str(seeing.node_id), METADATA_HOST))
            network.cut(*rest[-1])
        await asyncio.sleep(draw.choice((4 * moment_s, 4 * moment_s, 1.0)) * draw.random())
        for one, other in pairs:
            if draw.random() < 0.3:
                network.break_connections(one, other)
            network.mend(one, other)
            await asyncio.sleep(draw.choice((0.02, 0.2)) * draw.random())
    await asyncio.sleep(draw.uniform(0, 1.0))
    for one, other in rest:
        network.mend(one, other)
    return True


@fault
async def zombie(it: Nemesis) -> bool:
    """A sequencer that only clients, and maybe some log servers, still reach; then all others.

    The metadata store comes last, so that it hears of its end from log servers, if at all.
    """
    draw, network = it.draw, it.cluster.network
    segment = it.budget.record().open_segment
    sequencer = _sequencer(it, segment)
    if sequencer is None:
        return False
    own = str(sequencer.node_id)
    others = [name for name in it.cluster.nodes if name != own]
    draw.shuffle(others)
    cut = others[draw.choice((0, 0, 1)) :]
    network.cut(own, METADATA_HOST)
    for other in cut:
        network.cut(own, other)
    await asyncio.sleep(draw.uniform(0.1, 0.6))
    usurper = it.cluster.nodes[draw.choice(others)]
    if usurper.serves:
        await _reconfigure_at(it, usurper, 0)
        if draw.random() < 0.5:
            await _reconfigure_at(it, usurper, draw.uniform(0, 0.1))
    await asyncio.sleep(draw.choice((0.1, 1.0, 4.0)) * draw.random())
    for other in cut:
        if draw.random() < 0.5:
            network.break_connections(own, other)
        network.mend(own, other)
        await asyncio.sleep(draw.uniform(0, 0.1))
    await asyncio.sleep(draw.uniform(0, 1.5))
    network.mend(own, METADATA_HOST)
    return True


@fault
async def lone_client(it: Nemesis) -> bool:
    """A sequencer that only one client reaches, which slept while all others had it replaced.

    What that client does next it does at a sequencer that has been passed, and has nothing in
    flight that would tell it so.
    """
    draw, network = it.draw, it.cluster.network
    sequencer = _sequencer(it, it.budget.record().open_segment)
    awake = [client for client in it.clients if not client.host.paused]
    rivals = [node for node in it.cluster.nodes.values() if node.serves and node is not sequencer]
    if sequencer is None or not awake or not rivals:
        return False
    own, client = str(sequencer.node_id), draw.choice(awake)
    network.pause(client.name)
    client.host.pause()
    others = [name for name in it._hosts() if name not in (own, client.name)]
    for other in others:
        network.cut(own, other)
        network.break_connections(own, other)
    await _reconfigure_at(it, draw.choice(rivals), 0)
    await asyncio.sleep(draw.uniform(0.5, 2.5))
    if client.host.paused:
        network.resume(client.name)
        client.host.resume()
    await asyncio.sleep(draw.uniform(0.2, 2.0))
    for other in others:
        network.mend(own, other)
    return True


@fault
async def lost_copy(it: Nemesis) -> bool:
    """Records reach just a write quorum; one disk is lost, and all other copies go away.

    What is left can tell nothing of them, and must not pretend that it can, even if it is not told
    yet that the disk is another one.
    """
    return await _bad_luck(it, wipe=True)


@fault
async def damaged_copy(it: Nemesis) -> bool:
    """The same, but the one copy is damaged, and found so at a start."""
    return await _bad_luck(it, wipe=False)


async def _bad_luck(it: Nemesis, *, wipe: bool) -> bool:
    draw, network = it.draw, it.cluster.network
    record = it.budget.record()
    segment = record.open_segment
    members, sequencer = _members(it, segment), _sequencer(it, segment)
    if members is None or sequencer is None or len(members) == segment.write_quorum:
        return False
    draw.shuffle(members)
    members.sort(key=lambda node: node is not sequencer)  # its own copy is there in any case
    holders, lacking = members[: segment.write_quorum], members[segment.write_quorum :]
    pairs = [(str(sequencer.node_id), str(node.node_id)) for node in lacking]
    for one, other in pairs:
        network.cut(one, other, both_ways=False)
    await asyncio.sleep(draw.uniform(0.2, 1.0))
    victim = draw.choice(holders)
    newest = victim.disk.read(record.loglet(segment), segment.base, Offset(1 << 62))
    able = newest and victim.serves and not victim.host.paused and it.budget.takes(victim)
    if able:
        gone = [node for node in holders if node is not victim and node.serves]
        for node in gone:
            await node.crash(silent=draw.random() < 0.5)
        last = newest[-1]
        still_held = victim.disk.read(record.loglet(segment), last.first, last.end)
        if not wipe and still_held:  # another fault may have taken the disk meanwhile
            victim.disk.damage(record.loglet(segment), last.first, bit=draw.getrandbits(20))
        await victim.crash()
        if wipe:
            victim.wipe()
        await _meanwhile(it, victim, pairs, late=wipe and draw.random() < 0.8)
        for node in gone:
            if not node.up:
                node.launch()
    for one, other in pairs:
        network.mend(one, other)
    return bool(able)


async def _meanwhile(
    it: Nemesis, victim: SimNode, pairs: list[tuple[str, str]], *, late: bool
) -> None:
    """The victim is back, the other holders are not."""
    others = [name for name in it.cluster.nodes if name != str(victim.node_id)]
    if late:
        it.cluster.metadata.lag_s |= dict.fromkeys(others, 10.0)
    victim.launch()
    for one, other in pairs:
        it.cluster.network.mend(one, other)
    await asyncio.sleep(it.draw.uniform(0.5, 6.0))
    if late:
        for name in others:
            it.cluster.metadata.lag_s.pop(name, None)


@fault
async def hiccup(it: Nemesis) -> bool:
    """A log server refuses one store for want of room and takes the next; then the segment ends.

    The sequencer does not reach the others, so what was refused is nowhere else.
    """
    draw, network = it.draw, it.cluster.network
    segment = it.budget.record().open_segment
    members, sequencer = _members(it, segment), _sequencer(it, segment)
    if members is None or sequencer is None or len(members) < 3:
        return False
    victim = draw.choice([node for node in members if node is not sequencer])
    others = [node for node in members if node not in (victim, sequencer)]
    pairs = [(str(sequencer.node_id), str(node.node_id)) for node in others]
    for one, other in pairs:
        network.cut(one, other, both_ways=False)
    for _ in range(draw.randint(1, 6)):
        await asyncio.sleep(draw.uniform(0.02, 0.2))
        victim.disk.full = True
        await asyncio.sleep(draw.uniform(0.005, 0.06))
        victim.disk.full = False
    usurper = draw.choice(others)
    if usurper.serves:
        await _reconfigure_at(it, usurper, draw.choice((0.0, 0.05)) * draw.random())
    for one, other in pairs:
        network.mend(one, other)
    return True
