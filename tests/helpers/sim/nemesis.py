"""What goes wrong in a run: faults drawn from the seed, one after the other and several at once.

Each fault is a coroutine that breaks something, waits, and mends it. Which faults a run knows, and
how likely each is, its `Profile` says; a seed that is not told draws one (*swarm*: each seed has
its own mix, for a fault that is rare in a mix of all is never met by another rare one).

**The budget of losses** keeps a run within what is promised (DESIGN.md §1: an acknowledged record
survives any write_quorum - 1 lost disks). A lost disk, or one with a damaged batch, counts from the
moment of the loss until nothing that the chains name is missing or damaged any more and
`Profile.cool_down_s` have passed; the next loss is allowed only if each segment of each log bears
it, whoever its members are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from random import Random
from typing import Final

from helpers.sim.archive_watch import ArchiveWatch
from helpers.sim.cluster import SimCluster, SimNode
from helpers.sim.metadata_store import METADATA_HOST
from helpers.sim.object_store import ARCHIVE_HOST
from helpers.sim.transport import SimTransport
from helpers.sim.workload import SimClient
from helpers.sim.world import World

from metadata.encoding import decode_log, log_key
from metadata.records import LogRecord
from sharedlog.errors import SharedLogError


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """The mix of faults: weights by the name of the fault, and how often one begins."""

    weights: dict[str, float]
    mean_pause_s: float = 2.0
    at_once_max: int = 3
    repeat_probability: float = 0.05
    wait_max_s: float = 12.0  # longest fault
    cool_down_s: float = 25.0
    """Between two losses of a disk; longer than any pause, for what stands still may act late."""


class Budget:
    """How many disks may be lost, now. See the module's docstring."""

    def __init__(self, cluster: SimCluster, logs: Sequence[str], cool_down_s: float) -> None:
        self._cluster = cluster
        self._logs = logs
        self._cool_down_s = cool_down_s
        self._lost_at_s: dict[str, float] = {}  # node → when it last lost something
        self.harmed: set[tuple[str, int]] = set()  # segments whose members ever lost something

    def record(self, log: str = "") -> LogRecord:
        """The chain of a log, by default the first one, as it is."""
        return decode_log(self._cluster.metadata.entries[log_key(log or self._logs[0])])

    def takes(self, victim: SimNode) -> bool:
        """One more loss, on this node, is within what is promised; if so, it counts from now on."""
        now_s = asyncio.get_running_loop().time()
        segments = [(log, segment) for log in self._logs for segment in self.record(log).chain]
        node_id = str(victim.node_id)
        fresh = {it for it, at_s in self._lost_at_s.items() if now_s - at_s < self._cool_down_s}
        for _, segment in segments:
            missing = {
                str(replica.node_id)
                for replica in segment.nodeset
                if self._is_harmed(replica.node_id, replica.storage_id)
            }
            if len(missing | fresh | {node_id}) > segment.write_quorum - 1:
                return False
        self._lost_at_s[node_id] = now_s
        self.harmed.update(
            (log, segment.index)
            for log, segment in segments
            for replica in segment.nodeset
            if replica.storage_id == victim.disk.storage_id
        )
        return True

    def _is_harmed(self, node_id: str, storage_id: str) -> bool:
        disk = self._cluster.present_disk(node_id, storage_id)  # type: ignore[arg-type]  # ids
        return disk is None or bool(disk.damaged)


@dataclass(slots=True)
class Nemesis:
    """Breaks things until it is cancelled; `heal` mends all that is broken then."""

    world: World
    cluster: SimCluster
    client: SimClient  # the operator's
    transport: SimTransport  # the same, for what no client can ask
    log: str
    profile: Profile
    clients: Sequence[SimClient]  # those that work
    budget: Budget
    watch: ArchiveWatch | None = None
    draw: Random = field(init=False)
    _running: int = 0
    counts: dict[str, int] = field(default_factory=dict)  # faults that came to their end

    def __post_init__(self) -> None:
        self.draw = self.world.random("nemesis")

    async def run(self) -> None:
        """One fault after the other, some at once, for ever."""
        names = sorted(self.profile.weights)
        weights = [self.profile.weights[name] for name in names]
        async with asyncio.TaskGroup() as tasks:
            while True:
                await asyncio.sleep(self.draw.expovariate(1 / self.profile.mean_pause_s))
                if self._running < self.profile.at_once_max:
                    (name,) = self.draw.choices(names, weights)
                    tasks.create_task(self._one(name), name=f"nemesis {name}")

    async def _one(self, name: str) -> None:
        self._running += 1
        self.world.trace.add(f"nemesis {name}")
        try:
            if await FAULTS[name](self):
                self.counts[name] = self.counts.get(name, 0) + 1
        finally:
            self._running -= 1

    async def heal(self) -> None:
        """Everything works again: call after `run` was cancelled."""
        cluster = self.cluster
        cluster.metadata.up = True
        cluster.metadata.unknown_probability = 0
        cluster.metadata.lag_s.clear()
        if cluster.objects is not None:
            cluster.objects.heal()
        hosts = self._hosts()
        for index, one in enumerate(hosts):
            for other in hosts[index + 1 :]:
                if cluster.network.is_troubled(one, other):
                    cluster.network.mend(one, other)
                    cluster.network.slow(one, other, 0)
                    cluster.network.slow(other, one, 0)
        for client in self.clients:
            if client.host.paused:
                cluster.network.resume(client.name)
                client.host.resume()
        for node in cluster.nodes.values():
            node.disk.full = node.disk.fail_next_commit = False
            node.disk.commit_max_s = cluster.config.commit_max_s
            if node.up and node.host.paused:
                node.resume()
            await node.ended()
            if not node.up:
                node.launch()
            with suppress(SharedLogError):
                await self.client.cluster.admin.set_node_state(str(node.node_id), "read-write")

    # What faults are made of.

    async def wait(self, *, least_s: float = 0.05) -> None:
        """Some time, more often short than long."""
        longest_s = self.profile.wait_max_s
        await asyncio.sleep(least_s + longest_s * self.draw.random() ** 3)

    def node(self, *, up: bool = True) -> SimNode | None:
        """A node that runs (or not) and is not paused; the sequencer's more often than others."""
        found = [
            node
            for node in self.cluster.nodes.values()
            if (node.serves and not node.host.paused if up else not node.up)
        ]
        if not found:
            return None
        first = self.draw.choice(found)
        sequencer = self.budget.record().open_segment.sequencer.node_id
        if self.draw.random() < 0.35:
            return next((node for node in found if node.node_id == sequencer), first)
        return first

    def _hosts(self) -> list[str]:
        stores = [METADATA_HOST] if self.cluster.objects is None else [METADATA_HOST, ARCHIVE_HOST]
        return [*self.cluster.nodes, *(client.name for client in self.clients), *stores]


Fault = Callable[[Nemesis], Awaitable[bool]]
"""Returns whether there was anything to break."""

FAULTS: dict[str, Fault] = {}


def fault(function: Fault) -> Fault:
    """Make a fault known by its name."""
    FAULTS[function.__name__] = function
    return function


@fault
async def crash(it: Nemesis) -> bool:
    """`kill -9` or a power cut of a node, the sequencer's or another; it is started again."""
    victim = it.node()
    if victim is None:
        return False
    await victim.crash(silent=it.draw.random() < 0.4)
    await it.wait()
    if not victim.up:
        victim.launch()
    return True


@fault
async def stop(it: Nemesis) -> bool:
    """SIGTERM, and a start."""
    victim = it.node()
    if victim is None:
        return False
    await victim.stop()
    await it.wait()
    if not victim.up:
        victim.launch()
    return True


@fault
async def crash_all(it: Nemesis) -> bool:
    """The power fails for all of them."""
    for victim in it.cluster.nodes.values():
        if victim.up:
            await victim.crash(silent=True)
    for victim in it.cluster.nodes.values():
        await asyncio.sleep(it.draw.uniform(0, 0.5))
        if not victim.up:
            victim.launch()
    return True


@fault
async def pause(it: Nemesis) -> bool:
    """SIGSTOP and SIGCONT."""
    victim = it.node()
    if victim is None:
        return False
    host = victim.host
    victim.pause()
    await it.wait(least_s=0.2)
    if victim.host is host and host.paused:
        victim.resume()
    return True


@fault
async def pause_client(it: Nemesis) -> bool:
    """A client stands still: what it is told it hears late."""
    client = it.draw.choice([client for client in it.clients if not client.host.paused])
    it.cluster.network.pause(client.name)
    client.host.pause()
    await it.wait(least_s=0.2)
    if client.host.paused:
        it.cluster.network.resume(client.name)
        client.host.resume()
    return True


@fault
async def wipe(it: Nemesis) -> bool:
    """A node loses its disk and comes back with an empty one."""
    victim = it.node()
    if victim is None or not it.budget.takes(victim):
        return False
    await victim.crash(silent=it.draw.random() < 0.4)
    victim.wipe()
    await it.wait()
    if not victim.up:
        victim.launch()
    return True


@fault
async def flip_bit(it: Nemesis) -> bool:
    """A bit flips in a stored batch; sometimes the node starts again, and finds it so."""
    victim = it.node()
    if victim is None:
        return False
    held = [
        (loglet, first)
        for loglet, found in sorted(victim.disk._loglets.items())
        for first in found.firsts
    ]
    if not held or not it.budget.takes(victim):
        return False
    loglet, first = it.draw.choice(held) if it.draw.random() < 0.5 else held[-1]
    victim.disk.damage(loglet, first, bit=it.draw.randrange(1 << 20))
    if it.draw.random() < 0.6:
        await victim.crash()
        await asyncio.sleep(it.draw.uniform(0.05, 1.0))
        if not victim.up:
            victim.launch()
    return True


@fault
async def fill_disk(it: Nemesis) -> bool:
    """A disk has no room for a while."""
    victim = it.node()
    if victim is None:
        return False
    disk = victim.disk
    disk.full = True
    await it.wait()
    disk.full = False
    return True


@fault
async def slow_disk(it: Nemesis) -> bool:
    """A disk takes long to sync."""
    victim = it.node()
    if victim is None:
        return False
    disk = victim.disk
    disk.commit_max_s = it.draw.choice((0.05, 0.3, 1.5))
    await it.wait()
    disk.commit_max_s = it.cluster.config.commit_max_s
    return True


@fault
async def fail_disk(it: Nemesis) -> bool:
    """A sync fails: the process stops, and is started again."""
    victim = it.node()
    if victim is None:
        return False
    victim.disk.fail_next_commit = True
    await it.wait()
    victim.disk.fail_next_commit = False
    if not victim.up:
        victim.launch()
    return True


@fault
async def cut(it: Nemesis) -> bool:
    """One pair of hosts, in one direction or both."""
    one, other = it.draw.sample(it._hosts(), 2)
    it.cluster.network.cut(one, other, both_ways=it.draw.random() < 0.4)
    await it.wait()
    it.cluster.network.mend(one, other)
    return True


@fault
async def refuse(it: Nemesis) -> bool:
    """One pair of hosts, by a firewall that says so."""
    one, other = it.draw.sample(it._hosts(), 2)
    it.cluster.network.refuse(one, other)
    await it.wait()
    it.cluster.network.mend(one, other)
    return True


@fault
async def partition(it: Nemesis) -> bool:
    """Two sets of hosts, the metadata store on either side or on both."""
    hosts = it._hosts()
    if it.draw.random() < 0.5:
        hosts.remove(METADATA_HOST)
    it.draw.shuffle(hosts)
    at = it.draw.randint(1, len(hosts) - 1)
    both_ways = it.draw.random() < 0.7
    pairs = [(one, other) for one in hosts[:at] for other in hosts[at:]]
    for one, other in pairs:
        it.cluster.network.cut(one, other, both_ways=both_ways)
    await it.wait(least_s=0.3)
    for one, other in pairs:
        it.cluster.network.mend(one, other)
    return True


@fault
async def isolate(it: Nemesis) -> bool:
    """One node from all other nodes; clients and the metadata store still reach it, or not."""
    victim = it.node()
    if victim is None:
        return False
    others = it._hosts() if it.draw.random() < 0.3 else list(it.cluster.nodes)
    others.remove(str(victim.node_id))
    for other in others:
        it.cluster.network.cut(str(victim.node_id), other)
    await it.wait(least_s=0.3)
    for other in others:
        it.cluster.network.mend(str(victim.node_id), other)
    return True


@fault
async def break_connections(it: Nemesis) -> bool:
    """What is under way between two hosts is lost."""
    one, other = it.draw.sample(it._hosts(), 2)
    it.cluster.network.break_connections(one, other)
    return True


@fault
async def slow_link(it: Nemesis) -> bool:
    """One direction between two hosts takes long."""
    one, other = it.draw.sample(it._hosts(), 2)
    it.cluster.network.slow(one, other, it.draw.choice((0.02, 0.2, 2.0)))
    await it.wait()
    it.cluster.network.slow(one, other, 0)
    return True


@fault
async def jump_clock(it: Nemesis) -> bool:
    """A node's clock is set, forward or back."""
    node = it.draw.choice(list(it.cluster.nodes.values()))
    node.clock.skew_ms += it.draw.choice((-60_000, -500, 500, 60_000))
    return True


@fault
async def metadata_outage(it: Nemesis) -> bool:
    """The metadata store does not answer."""
    it.cluster.metadata.up = False
    await it.wait()
    it.cluster.metadata.up = True
    return True


@fault
async def metadata_unknown(it: Nemesis) -> bool:
    """Changes of the metadata store end with an outcome that nobody learns."""
    it.cluster.metadata.unknown_probability = it.draw.choice((0.2, 0.6))
    await it.wait(least_s=0.5)
    it.cluster.metadata.unknown_probability = 0
    return True


@fault
async def metadata_lag(it: Nemesis) -> bool:
    """A node is told late of what changes."""
    node = it.draw.choice(list(it.cluster.nodes))
    it.cluster.metadata.lag_s[node] = it.draw.choice((0.5, 5.0))
    await it.wait(least_s=0.5)
    it.cluster.metadata.lag_s.pop(node, None)
    return True


@fault
async def reconfigure(it: Nemesis) -> bool:
    """An operator changes something of the log, or just moves it on."""
    admin, draw = it.client.cluster.admin, it.draw
    nodes = list(it.cluster.nodes)
    change = draw.choice(("nothing", "nothing", "sequencer", "nodeset", "replicas", "quorum"))
    with suppress(SharedLogError):
        match change:
            case "nothing":
                await admin.reconfigure(it.log, timeout_s=8.0)
            case "sequencer":
                await admin.reconfigure(it.log, sequencer=draw.choice(nodes), timeout_s=8.0)
            case "nodeset":
                replicas = it.budget.record().replicas
                chosen = draw.sample(nodes, min(replicas, len(nodes)))
                await admin.reconfigure(it.log, nodeset=chosen, timeout_s=8.0)
            case "replicas":
                replicas = draw.choice([n for n in (3, 5) if n <= len(nodes)])
                await admin.reconfigure(it.log, replicas=replicas, timeout_s=8.0)
            case "quorum":
                replicas = it.budget.record().replicas
                least = replicas // 2 + 1
                quorum = draw.randint(max(2, least), max(2, min(replicas, least + 1)))
                await admin.reconfigure(it.log, write_quorum=quorum, timeout_s=8.0)
    return True


@fault
async def reconfigure_at_once(it: Nemesis) -> bool:
    """Several operators at the same time."""
    async with asyncio.TaskGroup() as tasks:
        for _ in range(it.draw.randint(2, 4)):
            tasks.create_task(_as_task(reconfigure(it)), name="operator")
    return True


async def _as_task(run: Awaitable[object]) -> None:
    await run


@fault
async def drain(it: Nemesis) -> bool:
    """A node is drained for a while."""
    admin, node = it.client.cluster.admin, it.draw.choice(list(it.cluster.nodes))
    with suppress(SharedLogError):
        await admin.set_node_state(node, "draining")
    await it.wait(least_s=1.0)
    with suppress(SharedLogError):
        await admin.set_node_state(node, "read-write")
    return True


USUAL: Final = {
    "crash": 3.0,
    "stop": 1.0,
    "crash_all": 0.3,
    "pause": 2.0,
    "pause_client": 0.5,
    "wipe": 0.7,
    "flip_bit": 1.0,
    "fill_disk": 0.5,
    "slow_disk": 0.7,
    "fail_disk": 0.4,
    "cut": 2.0,
    "refuse": 0.7,
    "partition": 1.5,
    "isolate": 1.5,
    "break_connections": 1.5,
    "slow_link": 1.0,
    "jump_clock": 0.5,
    "metadata_outage": 0.7,
    "metadata_unknown": 0.7,
    "metadata_lag": 0.7,
    "reconfigure": 3.0,
    "reconfigure_at_once": 1.0,
    "drain": 0.5,
    "rivals": 0.7,
    "zombie": 0.7,
    "lone_client": 0.4,
    "lost_copy": 0.4,
    "damaged_copy": 0.4,
    "hiccup": 0.5,
}
"""All faults but the archive's."""

OF_THE_ARCHIVE: Final = {
    "archive_outage": 0.7,
    "archive_trouble": 2.0,
    "archive_damage": 1.0,
    "archive_lag": 0.5,
    "archive_cut": 1.0,
}


def swarm(world: World, *, archive: bool = False) -> Profile:
    """The seed's own mix: some of the faults, each more or less likely than usual."""
    draw = world.random("profile")
    known = USUAL | OF_THE_ARCHIVE if archive else USUAL
    names = [name for name in sorted(known) if draw.random() < 0.6] or ["crash", "reconfigure"]
    weights = {name: known[name] * draw.choice((0.5, 1.0, 3.0)) for name in names}
    return Profile(
        weights=weights,
        mean_pause_s=draw.choice((0.7, 1.5, 3.0)),
        at_once_max=draw.choice((1, 2, 4)),
        repeat_probability=draw.choice((0.0, 0.05, 0.3)),
        wait_max_s=draw.choice((3.0, 12.0, 20.0)),
    )


def only(profile: Profile, **weights: float) -> Profile:
    """Another mix with the same rest."""
    return replace(profile, weights=weights)
