"""Which nodes live, as far as this one can tell: a hint, never a proof.

Safety rests on none of this. A node that is taken for dead although it lives costs a needless
reconfiguration; one that is taken for alive although it is dead costs time. So knowledge is cheap,
short-lived and never argued with:

* **Asked on demand**: a ping, `PING_TRIES` times with `ping_timeout_s` each. One answer at any
  other node's id or in another generation, or a refused connection, says at once that the process
  is gone. Two pings and not one, since this process may itself have been the one that slept.
* **Shared**: who asks while a ping is under way waits for it. That a process is dead is good for
  everyone for `DEAD_FRESH_S`; that it lives only for `ALIVE_FRESH_S`, since whoever asks has a
  reason to doubt it that may be younger.
* **Heard by the way**: whoever learns of a node's life or death tells it here (`heard`, `lost`).

A life is one process: (node, generation). What is known of one life says nothing of the next.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

from metadata.records import STATE_GONE, STATE_READ_WRITE, NodeRecord
from metadata.view import ClusterView
from node.flights import Flights
from node.peers import in_parallel
from sharedlog.clock import Clock
from sharedlog.errors import (
    DeadlineExceeded,
    SharedLogError,
    Unreachable,
)
from sharedlog.ids import Generation, NodeId, SequencerId
from sharedlog.rpc.methods import PING
from sharedlog.rpc.transport import Transport
from sharedlog.v1 import cluster_pb2

log = logging.getLogger("node")

PING_TRIES: Final = 2
PING_AGAIN_S: Final = 0.03
"""Pause after a connection that broke, before the next ping: it may have been an old one."""
DEAD_FRESH_S: Final = 0.5
ALIVE_FRESH_S: Final = 0.05
"""So long what was learnt of a process is good for everyone who asks whether it lives."""
HELD_DEAD_S: Final = 5.0
"""So long a node that did not answer is given nothing to do, unless it is heard of."""


class Sign(Enum):
    """What the last attempt to reach a process showed."""

    ALIVE = "alive"
    STOPPING = "stopping"  # alive, hands over what it has
    GONE = "gone"  # it has ended: nobody listens, or another life answers
    SILENT = "silent"  # ended, cut off, paused or overloaded: nobody can say which


@dataclass(frozen=True, slots=True, kw_only=True)
class Life:
    """What is known of one process."""

    generation: Generation
    sign: Sign
    read_only: bool = False  # its log server takes no stores
    free_bytes: int | None = None  # that batches may still take there; None: it has not told
    reason: str = ""  # why it is not alive
    at_s: float  # monotonic: when it was learnt

    @property
    def answers(self) -> bool:
        """The process runs, and can be reached."""
        return self.sign in (Sign.ALIVE, Sign.STOPPING)


def _not_known() -> int | None:
    return None


def free_bytes_of(answer: cluster_pb2.PingResponse) -> int | None:
    """What a node tells of its disk; None: it is no log server, or older than the field."""
    return answer.disk_free_bytes if answer.HasField("disk_free_bytes") else None


class Liveness:
    """See the module's docstring. `run` must be running for anybody to be asked."""

    def __init__(
        self,
        *,
        me: SequencerId,
        view: ClusterView,
        transport: Transport,
        clock: Clock,
        ping_timeout_s: float,
        free_bytes: Callable[[], int | None] = _not_known,
    ) -> None:
        self._me = me
        self._view = view
        self._transport = transport
        self._clock = clock
        self._ping_timeout_s = ping_timeout_s
        self._free_bytes = free_bytes  # of this process's log server
        self._known: dict[NodeId, Life] = {}
        self._pings: Flights[SequencerId, Life] = Flights("ping")
        self.stopping = False
        """This process shuts down: it gets nothing new, and says so to those who ping it."""

    async def run(self) -> None:
        """Own the pings, until cancelled."""
        await self._pings.run()

    # ------------------------------------------------------------------ asking

    async def probe(self, node: NodeRecord) -> Life:
        """Whether the process that `node` names answers, learnt just now.

        **Cancellation:** safe.
        """
        if node.node_id == self._me.node_id:
            return self._own(node.generation)
        known = self._newest(node)
        if known is not None:
            fresh_s = ALIVE_FRESH_S if known.answers else DEAD_FRESH_S
            if known.at_s >= self._clock.monotonic_s() - fresh_s:
                return known
        key = SequencerId(node.node_id, node.generation)
        return await self._pings.join(key, lambda: self._ask(node))

    async def sequencer(self, named: SequencerId) -> Life:
        """The same of a process that a chain names.

        Raises:
            MetadataUnavailable: its node is unknown here, and so it stays for now.
        """
        if named.node_id == self._me.node_id:
            return self._own(named.generation)
        node = await self._view.fetch_node(named.node_id)
        if node is None:
            return self._gone(named.generation, "no such node has ever registered")
        if node.generation > named.generation:
            return self._gone(named.generation, _other_life(node.generation))
        # A view that is behind may know an older life of it, at the address of that time.
        return await self.probe(replace(node, generation=named.generation))

    async def survey(self, nodes: Sequence[NodeRecord] | None = None) -> list[NodeRecord]:
        """Those of the nodes (all, if none are given) that are usable, each asked just now.

        But for those that are gone: they are switched off, and to wait for them would delay all.

        **Cancellation:** safe.
        """
        given = self._view.nodes() if nodes is None else nodes
        asked = [node for node in given if node.state != STATE_GONE]
        lives = await in_parallel(self._probe_at_least, asked)
        return [
            node
            for node, life in zip(asked, lives, strict=True)
            if node.state == STATE_READ_WRITE and _is_usable(life)
        ]

    # ------------------------------------------------------------------ knowing

    def usable(self) -> list[NodeRecord]:
        """Nodes that may be given something to do, as far as is known without asking.

        In state read-write, and not known to be dead, stopping or with a full disk.
        """
        return [node for node in self._view.nodes() if self._may_be_used(node)]

    def known(self, node: NodeRecord) -> Life | None:
        """What was last learnt of the process that `node` names, however long ago."""
        if node.node_id == self._me.node_id:
            return self._own(node.generation)
        return self._newest(node)

    def free_bytes(self, node_id: NodeId) -> int | None:
        """What is left on a node's disk for batches, as it told last; None: it never did."""
        if node_id == self._me.node_id:
            return self._free_bytes()
        life = self._known.get(node_id)
        return None if life is None else life.free_bytes

    def held_dead(self, node_id: NodeId) -> bool:
        """It did not answer the last time, a moment ago: whoever has a choice asks others first."""
        node = self._view.node(node_id)
        if node is None:
            return True
        life = self.known(node)
        fresh_s = self._clock.monotonic_s() - HELD_DEAD_S
        return life is not None and not life.answers and life.at_s >= fresh_s

    def heard(
        self,
        node_id: NodeId,
        generation: Generation,
        *,
        stopping: bool = False,
        read_only: bool = False,
        free_bytes: int | None = None,
    ) -> None:
        """The process answered somebody here."""
        self._learn(
            node_id,
            Life(
                generation=generation,
                sign=Sign.STOPPING if stopping else Sign.ALIVE,
                read_only=read_only,
                free_bytes=free_bytes,
                at_s=self._clock.monotonic_s(),
            ),
        )

    def lost(self, node_id: NodeId, generation: Generation, reason: str) -> None:
        """The process did not answer somebody here who gave it time enough."""
        self._learn(
            node_id,
            Life(
                generation=generation,
                sign=Sign.SILENT,
                reason=reason,
                at_s=self._clock.monotonic_s(),
            ),
        )

    # ------------------------------------------------------------------ helpers

    def _may_be_used(self, node: NodeRecord) -> bool:
        if node.state != STATE_READ_WRITE:
            return False
        life = self.known(node)
        if life is None or life.at_s < self._clock.monotonic_s() - HELD_DEAD_S:
            return True
        return _is_usable(life)

    async def _probe_at_least(self, node: NodeRecord) -> Life:
        try:
            return await self.probe(node)
        except SharedLogError as error:  # this process stops
            now_s = self._clock.monotonic_s()
            return Life(generation=node.generation, sign=Sign.SILENT, reason=str(error), at_s=now_s)

    def _learn(self, node_id: NodeId, life: Life) -> None:
        known = self._known.get(node_id)
        if known is None or life.generation >= known.generation:
            self._known[node_id] = life

    def _newest(self, node: NodeRecord) -> Life | None:
        """What is known of that very life, or that a later one has been seen."""
        life = self._known.get(node.node_id)
        if life is None or life.generation < node.generation:
            return None
        if life.generation > node.generation:
            return self._gone(node.generation, _other_life(life.generation))
        return life

    def _own(self, generation: Generation) -> Life:
        if (
            generation >= self._me.generation
        ):  # a later life of this node is well, and ends this one
            sign = Sign.STOPPING if self.stopping else Sign.ALIVE
            free_bytes = self._free_bytes()
            return Life(
                generation=generation,
                sign=sign,
                read_only=free_bytes == 0,
                free_bytes=free_bytes,
                at_s=self._clock.monotonic_s(),
            )
        return self._gone(generation, _other_life(self._me.generation))

    def _gone(self, generation: Generation, reason: str) -> Life:
        now_s = self._clock.monotonic_s()
        return Life(generation=generation, sign=Sign.GONE, reason=reason, at_s=now_s)

    async def _ask(self, node: NodeRecord) -> Life:
        reason = ""
        for _ in range(PING_TRIES):
            try:
                answer = await self._transport.call(
                    node.address,
                    PING,
                    cluster_pb2.PingRequest(),
                    timeout_s=self._ping_timeout_s,
                )
            except Unreachable as error:
                reason = str(error)
                if is_refused(error):
                    return self._note(node, Sign.GONE, reason)
                await self._clock.sleep(PING_AGAIN_S)
            except DeadlineExceeded as error:
                reason = str(error)
            except SharedLogError as error:
                # Whoever can say what is wrong with him is alive.
                return self._note(node, Sign.ALIVE, str(error))
            else:
                return self._take_answer(node, answer)
        return self._note(node, Sign.SILENT, reason)

    def _take_answer(self, node: NodeRecord, answer: cluster_pb2.PingResponse) -> Life:
        if answer.node_id != node.node_id:
            return self._note(node, Sign.GONE, f"{answer.node_id} answers at {node.address}")
        generation = Generation(answer.generation)
        self.heard(
            node.node_id,
            generation,
            stopping=answer.stopping,
            read_only=answer.read_only,
            free_bytes=free_bytes_of(answer),
        )
        if generation != node.generation:
            return self._gone(node.generation, _other_life(generation))
        return self._known[node.node_id]

    def _note(self, node: NodeRecord, sign: Sign, reason: str) -> Life:
        now_s = self._clock.monotonic_s()
        life = Life(generation=node.generation, sign=sign, reason=reason, at_s=now_s)
        self._learn(node.node_id, life)
        if not life.answers:
            fields = {"node": node.node_id, "generation": node.generation, "reason": reason}
            log.info("node.away", extra={**fields, "sign": sign.value})
        return life


def _is_usable(life: Life) -> bool:
    return life.sign is Sign.ALIVE and not life.read_only


def _other_life(generation: Generation) -> str:
    return f"its node is in life {generation} by now"


def is_refused(error: Unreachable) -> bool:
    """Nobody listens at the address: the process has ended.

    Transports say so in the operating system's words. Were they ever others, it would take a little
    longer to find out, and that is all.
    """
    return "connection refused" in str(error).lower()
