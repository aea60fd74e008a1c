"""What log servers hold beyond a segment's end, which nothing but a defect may look at."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from typing import Any

from helpers.sim.mutants.registry import Patch

from loglet.reads import ReadService
from loglet.store import LogletState
from loglet.wire import loglet_to_proto
from metadata.records import Replica
from sequencer.history import LogHistory
from sharedlog.errors import SharedLogError
from sharedlog.ids import LogletId, Offset
from sharedlog.rpc.methods import READ_LOGLET
from sharedlog.v1 import log_server_pb2


def serve_beyond(patch: Patch) -> None:
    """Have log servers serve it to those who read for a repair."""
    limits = ReadService._limits

    def _limits(self: ReadService, query: Any, state: LogletState | None) -> Any:
        if query.for_repair and state is not None:
            state = replace(state, told_end=None)
            return limits(self, query, state)._replace(told_end=None)
        return limits(self, query, state)

    patch.setattr(ReadService, "_limits", _limits)


async def held_beyond(
    history: LogHistory, loglet: LogletId, start: Offset, replica: Replica
) -> list[bytes]:
    """The placed batches that a log server holds beyond a segment's end."""
    request = log_server_pb2.ReadLogletRequest(
        storage_id=replica.storage_id,
        loglet=loglet_to_proto(loglet),
        start=start,
        no_wait=True,
        for_repair=True,
    )
    node = history._directory(replica.node_id)
    assert node is not None
    found: list[bytes] = []
    stream = history._transport.stream(node.address, READ_LOGLET)
    with contextlib.suppress(SharedLogError, TimeoutError):
        async with asyncio.timeout(0.3):
            await stream.send(request)
            while (message := await stream.receive()) is not None:
                found += message.batches
    stream.cancel()
    return found
