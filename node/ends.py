"""Telling log servers where segments end, in the background.

It wakes the readers that are parked at an old tail (field note 8) and spares the server's other
readers a question. Nothing rests on it: the chain says where a segment ends, readers look there,
and backfill tells again who was away. So it is tried a few times and then let go.

One message at a time goes to each server, with all that waits for it: a node that dies ends
thousands of segments at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from random import Random
from typing import Final

from loglet.messages import TellEndsRequest
from loglet.wire import TELL_ENDS
from metadata.records import Replica
from metadata.view import ClusterView
from sharedlog.backoff import Backoff
from sharedlog.clock import Clock
from sharedlog.errors import ProtocolError, SharedLogError, Unreachable, WrongStorage
from sharedlog.ids import LogletId, NodeId, Offset, StorageId
from sharedlog.rpc.transport import Transport

log = logging.getLogger("node")

ENDS_PER_SERVER_MAX: Final = 10_000
"""That wait for one server; the oldest are let go beyond it."""
ENDS_PER_MESSAGE_MAX: Final = 1_000
TRIES_MAX: Final = 3
TELL_TIMEOUT_S: Final = 1.0
_RETRY_MIN_S: Final = 0.5
_RETRY_MAX_S: Final = 2.0

_Server = tuple[NodeId, StorageId]


class EndTeller:
    """See the module's docstring. `run` must be running for anybody to be told."""

    def __init__(
        self, *, view: ClusterView, transport: Transport, clock: Clock, random: Random
    ) -> None:
        self._view = view
        self._transport = transport
        self._clock = clock
        self._random = random
        self._waiting: dict[_Server, dict[LogletId, Offset]] = {}  # a task for each key
        self._tasks: asyncio.TaskGroup | None = None

    async def run(self) -> None:
        """Own the work, until cancelled; who is not told by then finds out from the chain."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                self._tasks = None
                self._waiting.clear()

    def tell(self, nodeset: Iterable[Replica], loglet: LogletId, end: Offset) -> None:
        """Let these servers know that the segment of `loglet` ends at `end`."""
        if self._tasks is None:
            return
        for replica in nodeset:
            server = replica.node_id, replica.storage_id
            waiting = self._waiting.get(server)
            if waiting is not None:
                waiting[loglet] = end
                while len(waiting) > ENDS_PER_SERVER_MAX:
                    del waiting[next(iter(waiting))]
                continue
            self._waiting[server] = {loglet: end}
            self._tasks.create_task(self._serve(server), name=f"tell-ends {replica.node_id}")

    async def _serve(self, server: _Server) -> None:
        """Tell one server all that waits for it."""
        pauses = Backoff(self._random, min_s=_RETRY_MIN_S, max_s=_RETRY_MAX_S)
        tries = 0
        try:
            while (waiting := self._waiting.get(server)) and tries < TRIES_MAX:
                some = list(waiting.items())[:ENDS_PER_MESSAGE_MAX]
                tries += 1
                if not await self._tell(server, some):
                    await self._clock.sleep(pauses.next_s())
                    continue
                tries = 0
                for loglet, _ in some:
                    waiting.pop(loglet, None)
        finally:
            self._waiting.pop(server, None)

    async def _tell(self, server: _Server, ends: list[tuple[LogletId, Offset]]) -> bool:
        """Whether nothing would be gained by telling it again."""
        node_id, storage_id = server
        try:
            node = self._view.node(node_id)
            if node is None:
                raise Unreachable(f"node {node_id} is not known here")
            await self._transport.call(
                node.address, TELL_ENDS, TellEndsRequest(storage_id, ends), timeout_s=TELL_TIMEOUT_S
            )
        except WrongStorage:
            return True
        except ProtocolError as error:
            # It knows better: that would be an end that moved, or a tail above an end.
            log.error("ends.refused", extra={"node": node_id, "reason": str(error)})  # noqa: TRY400
            return True
        except SharedLogError as error:
            log.debug("ends.not_told", extra={"node": node_id, "reason": str(error)})
            return False
        return True
