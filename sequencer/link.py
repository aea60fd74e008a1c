"""The replication stream to one log server: one per process and server, shared by all logs.

Whatever waits is sent as one message; answers come back coalesced. The link keeps at most
`replica_bytes_max` of batches that the server has not acknowledged. Beyond that, and while there
is no stream, it takes nothing (`offer` says no), so a slow or dead server neither blocks the
others nor grows this process; once it is back, or has caught up to half of the bound, the listener
brings its logs into step again.

A server that owes an answer and is silent for `silence_max_s` loses its stream. An idle link costs
three tasks: one waits to receive, one to send, one watches.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from random import Random
from typing import Protocol

from loglet.messages import CommittedTail, ConfirmUnsealed, OpenLoglet, StoreRequest, StoreResponse
from loglet.wire import STORE
from metadata.records import NodeRecord, Replica
from sequencer.config import SequencerConfig
from sequencer.core import InFlight
from sequencer.metrics import SequencerMetrics
from sharedlog.clock import Clock
from sharedlog.errors import DeadlineExceeded, SharedLogError, Unreachable
from sharedlog.ids import LogletId, NodeId, Offset, SequencerId
from sharedlog.rpc.transport import ClientStream, Transport
from sharedlog.tasks import run_together

log = logging.getLogger(__name__)

_WARN_AFTER_FAILURES = 3
Directory = Callable[[NodeId], NodeRecord | None]


class LinkListener(Protocol):
    """Whom a link tells what happens. Called from the link's own tasks; must not raise."""

    def on_link_up(self, link: ReplicaLink) -> None:
        """A stream is up and empty: logs must be brought into step before they are offered."""
        ...

    def on_link_down(self, link: ReplicaLink) -> None:
        """The stream broke: what was not acknowledged may or may not have arrived."""
        ...

    def on_link_room(self, link: ReplicaLink) -> None:
        """There is room again, after `offer` said no."""
        ...

    def on_response(self, link: ReplicaLink, response: StoreResponse) -> None:
        """The server answered."""
        ...


class ReplicaLink:
    """See the module's docstring."""

    def __init__(
        self,
        replica: Replica,
        *,
        me: SequencerId,
        transport: Transport,
        directory: Directory,
        clock: Clock,
        random: Random,
        config: SequencerConfig,
        metrics: SequencerMetrics,
        listener: LinkListener,
    ) -> None:
        self.replica = replica
        self.up = False
        self._me = me
        self._transport = transport
        self._directory = directory
        self._clock = clock
        self._random = random
        self._config = config
        self._listener = listener
        self._up_gauge = metrics.replica_up.labels(replica.node_id)
        self._wake = asyncio.Event()
        self._opens: list[OpenLoglet] = []
        self._committed: dict[LogletId, Offset] = {}
        self._confirms: list[ConfirmUnsealed] = []
        self._batches: deque[bytes] = deque()
        # Invariant: the sum of the sizes in `_unacked`, sent or not; bounded by replica_bytes_max.
        self._backlog_bytes = 0
        metrics.replica_backlog_bytes.labels(replica.node_id).set_function(
            lambda: self._backlog_bytes
        )
        self._unacked: dict[LogletId, deque[tuple[Offset, int]]] = {}
        self._room_wanted = False
        # When the server last said something, or began to owe an answer; None: it owes nothing.
        self._owes_since_s: float | None = None
        self._watched: set[LogletId] = set()  # as of the server's last answer about each
        self._push_timer: asyncio.TimerHandle | None = None

    def offer(self, loglet: LogletId, batch: InFlight) -> bool:
        """Take a batch to send, or say no: there is no stream or no room."""
        size = len(batch.placed)
        backlog = self._backlog_bytes
        if not self.up:
            return False
        if backlog and backlog + size > self._config.replica_bytes_max:
            self._room_wanted = True
            return False
        self._batches.append(batch.placed)
        unacked = self._unacked.get(loglet)
        if unacked is None:
            unacked = self._unacked[loglet] = deque()
        unacked.append((batch.end, size))
        self._backlog_bytes = backlog + size
        self._wake.set()
        return True

    @property
    def ready(self) -> bool:
        """There is a stream, and it was not found full since there was last room."""
        return self.up and not self._room_wanted

    def silent_s(self, now_s: float) -> float:
        """For how long the server has owed an answer and said nothing to any log."""
        if not self.up:
            return float("inf")
        return 0.0 if self._owes_since_s is None else now_s - self._owes_since_s

    def open(self, loglet: LogletId, base: Offset) -> None:
        """Send an open, before any batch that is offered later."""
        self._opens.append(OpenLoglet(loglet, base))
        self._wake.set()

    def publish(self, loglet: LogletId, committed: Offset) -> None:
        """Send the committed tail, with what follows or else alone.

        Alone at once if somebody reads the loglet there, so that readers never wait for a writer.
        Else a little later: most often a batch goes out before, and carries it for nothing.
        """
        self._committed[loglet] = committed
        if loglet in self._watched:
            self._wake.set()
        elif self._push_timer is None:
            loop = asyncio.get_running_loop()
            self._push_timer = loop.call_later(self._config.tail_push_delay_s, self._push_now)

    def _push_now(self) -> None:
        self._push_timer = None
        self._wake.set()

    def confirm(self, loglet: LogletId, round_id: int) -> None:
        """Ask whether the loglet is still not sealed."""
        self._confirms.append(ConfirmUnsealed(loglet, round_id))
        self._wake.set()

    def forget(self, loglet: LogletId) -> None:
        """The loglet is over: what it still had in the backlog counts no more."""
        self._watched.discard(loglet)
        self._count_no_more(loglet)
        self._check_room()

    def _count_no_more(self, loglet: LogletId) -> None:
        for _, size in self._unacked.pop(loglet, ()):
            self._backlog_bytes -= size

    async def run(self) -> None:
        """Keep a stream up, for ever. **Cancellation:** ends it; what was sent may be stored."""
        failures = 0
        while True:
            try:
                await self._serve_stream()
            except SharedLogError as error:
                was_up = self.up
                failures = 1 if was_up else failures + 1
                level = logging.WARNING if failures == _WARN_AFTER_FAILURES else logging.DEBUG
                node = self.replica.node_id
                log.log(level, "link.down", extra={"node": node, "reason": str(error)})
            finally:
                self._drop_all()
            pause_s = min(
                self._config.reconnect_min_s * 2 ** min(failures - 1, 16),
                self._config.reconnect_max_s,
            )
            await self._clock.sleep(pause_s * (0.5 + self._random.random() / 2))

    async def _serve_stream(self) -> None:
        record = self._directory(self.replica.node_id)
        if record is None:
            raise Unreachable(f"node {self.replica.node_id} is not registered")
        stream = self._transport.stream(record.address, STORE)
        try:
            await self._greet(stream)
            self.up = True
            self._up_gauge.set(1)
            log.debug("link.up", extra={"node": self.replica.node_id})
            self._listener.on_link_up(self)
            node_id = self.replica.node_id
            await run_together(
                {
                    f"link-send-{node_id}": self._send(stream),
                    f"link-recv-{node_id}": self._receive(stream),
                    f"link-watch-{node_id}": self._watch(),
                }
            )
        finally:
            stream.cancel()

    async def _greet(self, stream: ClientStream[StoreRequest, StoreResponse]) -> None:
        """An empty request: its answer proves that the right store is there."""
        try:
            async with asyncio.timeout(self._config.connect_timeout_s):
                await stream.send(StoreRequest(self.replica.storage_id, self._me))
                if await stream.receive() is None:
                    raise Unreachable(f"node {self.replica.node_id} ended the stream")
        except TimeoutError as error:
            raise DeadlineExceeded(f"node {self.replica.node_id} does not answer") from error

    async def _send(self, stream: ClientStream[StoreRequest, StoreResponse]) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._opens or self._batches or self._committed or self._confirms:
                await stream.send(self._take())

    def _take(self) -> StoreRequest:
        """Everything that waits, as far as it fits into one message."""
        batches: list[bytes] = []
        size = 0
        waiting = self._batches
        while waiting and (
            not batches or size + len(waiting[0]) <= self._config.store_message_bytes
        ):
            batch = waiting.popleft()
            size += len(batch)
            batches.append(batch)
        committed = [CommittedTail(loglet, tail) for loglet, tail in self._committed.items()]
        request = StoreRequest(
            self.replica.storage_id, self._me, self._opens, batches, committed, self._confirms
        )
        if self._owes_since_s is None and (batches or self._opens or self._confirms):
            self._owes_since_s = self._clock.monotonic_s()
        self._opens, self._committed, self._confirms = [], {}, []
        return request

    async def _receive(self, stream: ClientStream[StoreRequest, StoreResponse]) -> None:
        while (response := await stream.receive()) is not None:
            for stored in response.stored:
                self._acknowledged(stored.loglet, stored.end)
                if stored.watched:
                    self._watched.add(stored.loglet)
                else:
                    self._watched.discard(stored.loglet)
            for refused in response.refused:
                # Answered, if not well: the server owes nothing for it any more.
                self._count_no_more(refused.loglet)
            self._owes_since_s = self._clock.monotonic_s() if self._backlog_bytes else None
            self._listener.on_response(self, response)
            self._check_room()
        raise Unreachable(f"node {self.replica.node_id} ended the stream")

    async def _watch(self) -> None:
        """End the stream of a server that owes an answer and is silent."""
        limit_s = self._config.silence_max_s
        while True:
            await self._clock.sleep(limit_s / 3)
            since_s = self._owes_since_s
            if since_s is not None and self._clock.monotonic_s() - since_s > limit_s:
                raise Unreachable(f"node {self.replica.node_id} has been silent for {limit_s:g} s")

    def _acknowledged(self, loglet: LogletId, end: Offset) -> None:
        unacked = self._unacked.get(loglet)
        if unacked is None:
            return
        while unacked and unacked[0][0] <= end:
            self._backlog_bytes -= unacked.popleft()[1]
        if not unacked:
            del self._unacked[loglet]

    def _check_room(self) -> None:
        if self._room_wanted and self._backlog_bytes <= self._config.replica_bytes_max // 2:
            self._room_wanted = False
            self._listener.on_link_room(self)

    def _drop_all(self) -> None:
        """The stream is gone, and with it everything that waited for it."""
        self._opens, self._committed, self._confirms = [], {}, []
        self._watched.clear()
        if self._push_timer is not None:
            self._push_timer.cancel()
            self._push_timer = None
        self._batches.clear()
        self._unacked.clear()
        self._backlog_bytes = 0
        self._room_wanted = False
        self._owes_since_s = None
        self._up_gauge.set(0)
        if self.up:
            self.up = False
            self._listener.on_link_down(self)
