"""Heartbeats: the controller asks every node, again and again, whether it is there."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from metadata.records import NodeRecord
from metadata.view import ClusterView
from node.controller.config import ControllerConfig
from node.controller.core import Health
from node.liveness import Liveness, free_bytes_of, is_refused
from node.peers import in_parallel
from sharedlog.clock import Clock
from sharedlog.errors import SharedLogError, Unreachable
from sharedlog.ids import Generation, NodeId
from sharedlog.rpc.methods import PING
from sharedlog.rpc.transport import Transport
from sharedlog.v1 import cluster_pb2


class Heartbeats:
    """Keeps a `Health` up to date, and tells the node's `Liveness` what it learns."""

    def __init__(
        self,
        *,
        health: Health,
        liveness: Liveness,
        view: ClusterView,
        transport: Transport,
        clock: Clock,
        random: Random,
        config: ControllerConfig,
        on_news: Callable[[], None],
    ) -> None:
        self._health = health
        self._liveness = liveness
        self._view = view
        self._transport = transport
        self._clock = clock
        self._random = random
        self._config = config
        self._on_news = on_news

    async def run(self) -> None:
        """Ask, until cancelled. `on_news` is called after a beat that changed the picture."""
        every_s = self._config.heartbeat_s
        while True:
            begun_s = self._clock.monotonic_s()
            if any(await in_parallel(self._ask, self._view.nodes())):
                self._on_news()
            spent_s = self._clock.monotonic_s() - begun_s
            pause_s = every_s * self._random.uniform(0.9, 1.1) - spent_s
            await self._clock.sleep(max(pause_s, 0.1 * every_s))

    async def _ask(self, node: NodeRecord) -> bool:
        """One node; whether that is news."""
        try:
            answer = await self._transport.call(
                node.address, PING, cluster_pb2.PingRequest(), timeout_s=self._config.heartbeat_s
            )
        except SharedLogError as error:
            gone = isinstance(error, Unreachable) and is_refused(error)
            return self._missed(node, str(error), gone=gone)
        if answer.node_id != node.node_id:
            return self._missed(node, f"{answer.node_id} answers at its address")
        generation = Generation(answer.generation)
        said = {"stopping": answer.stopping, "read_only": answer.read_only}
        free_bytes = free_bytes_of(answer)
        self._liveness.heard(node.node_id, generation, free_bytes=free_bytes, **said)
        now_s = self._clock.monotonic_s()
        storeless = not answer.storage_id
        return self._health.on_heard(
            NodeId(answer.node_id), generation, now_s, storeless=storeless, **said
        )

    def _missed(self, node: NodeRecord, reason: str, *, gone: bool = False) -> bool:
        missed = self._health.on_gone if gone else self._health.on_missed
        if not missed(node.node_id, self._clock.monotonic_s()):
            return False
        self._liveness.lost(node.node_id, node.generation, reason)
        return True
