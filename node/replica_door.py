"""Calls to the log servers of a nodeset, for whoever inspects, fills or repairs replicas.

Each call names the replica's storage_id, so a node with another disk refuses it. Nothing is decided
here; a replica that does not answer is an error, or a `Holding` that says so, never an empty one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from loglet.messages import RepairRequest, SealRequest, SealResponse, TellEndsRequest
from loglet.wire import REPAIR, SEAL, TELL_ENDS
from metadata.reconfiguration import replica_state
from metadata.records import Replica
from metadata.view import ClusterView
from node.coverage import Holding, Range, clip, merge
from node.wire import loglet_id
from sharedlog.errors import (
    LogletNotOpen,
    ProtocolError,
    SharedLogError,
    Unreachable,
    WrongStorage,
)
from sharedlog.ids import LogletId, Offset
from sharedlog.rpc.methods import DIGEST, LIST_LOGLETS, RAISE_COMMITTED_TAIL, READ_LOGLET, TRIM
from sharedlog.rpc.read_answer import Gap, ReadAnswer
from sharedlog.rpc.transport import ClientStream, Transport
from sharedlog.v1 import log_server_pb2

CALL_TIMEOUT_S: Final = 5.0
"""A log server that does not answer one call within this time gives no answer."""


_ReadStream = ClientStream[log_server_pb2.ReadLogletRequest, ReadAnswer]


class ReplicaDoor:
    """See the module's docstring."""

    def __init__(
        self, *, view: ClusterView, transport: Transport, timeout_s: float = CALL_TIMEOUT_S
    ) -> None:
        self._view = view
        self._transport = transport
        self._timeout_s = timeout_s

    def is_lost(self, replica: Replica) -> bool:
        """The store that the replica names will never answer again, as far as is registered."""
        return replica_state(replica, self._view.node(replica.node_id)) == "lost"

    async def holding(
        self, replica: Replica, loglet: LogletId, first: Offset, end: Offset, *, verify: bool
    ) -> Holding:
        """What the replica holds of [first, end); never raises a `SharedLogError`.

        A server that never heard of the loglet holds nothing of it, and says so.
        """
        held: list[Range] = []
        damaged: list[Range] = []
        at = first
        told_end = False
        local_start = Offset(0)
        try:
            while at < end:
                page = await self.page(replica, loglet, at, end, verify=verify)
                held.extend((Offset(it.first), Offset(it.end)) for it in page.held)
                damaged.extend((Offset(it.first), Offset(it.end)) for it in page.damaged)
                told_end = page.status.HasField("told_end")
                local_start = Offset(page.status.local_start)
                at = Offset(page.next)
        except LogletNotOpen:
            return Holding(answered=True)
        except SharedLogError as error:
            lost = isinstance(error, WrongStorage) or self.is_lost(replica)
            return Holding(answered=False, lost=lost, error=str(error))
        return Holding(
            answered=True,
            held=tuple(clip(merge(held), first, end)),
            damaged=tuple(clip(merge(damaged), first, end)),
            told_end=told_end,
            local_start=local_start,
        )

    async def page(
        self, replica: Replica, loglet: LogletId, first: Offset, end: Offset, *, verify: bool
    ) -> log_server_pb2.DigestResponse:
        """One page of a digest; its `next` is above `first`.

        Raises:
            LogletNotOpen: the server never heard of the loglet. Unreachable, DeadlineExceeded,
            WrongStorage, ProtocolError.
        """
        request = log_server_pb2.DigestRequest(
            storage_id=replica.storage_id,
            loglet=loglet_id(loglet),
            start=first,
            end=end,
            verify=verify,
        )
        address = self._address(replica)
        page = await self._transport.call(address, DIGEST, request, timeout_s=self._timeout_s)
        if page.next <= first:
            raise ProtocolError(f"{replica.node_id}: a digest from {first} that goes nowhere")
        return page

    async def status(
        self, replica: Replica, loglet: LogletId
    ) -> log_server_pb2.LogletStatus | None:
        """What the server knows of a loglet; None if it never heard of it.

        Raises:
            Unreachable, DeadlineExceeded, WrongStorage.
        """
        request = log_server_pb2.ListLogletsRequest(
            storage_id=replica.storage_id, loglets=[loglet_id(loglet)]
        )
        address = self._address(replica)
        answer = await self._transport.call(
            address, LIST_LOGLETS, request, timeout_s=self._timeout_s
        )
        return answer.loglets[0] if answer.loglets else None

    async def seal(self, replica: Replica, loglet: LogletId, base: Offset) -> SealResponse:
        """Seal a loglet, or create it sealed. Raises what the log server says.

        `damaged` stays empty: whoever wants to know more than tails asks for a verified `holding`,
        which comes in pages.
        """
        request = SealRequest(replica.storage_id, loglet, base, skip_damage=True)
        address = self._address(replica)
        return await self._transport.call(address, SEAL, request, timeout_s=self._timeout_s)

    async def repair(
        self, replica: Replica, loglet: LogletId, committed_tail: Offset, batches: Sequence[bytes]
    ) -> None:
        """Store placed batches, all of them below `committed_tail`. Raises what the server says."""
        request = RepairRequest(replica.storage_id, loglet, committed_tail, list(batches))
        address = self._address(replica)
        await self._transport.call(address, REPAIR, request, timeout_s=self._timeout_s)

    async def raise_tail(self, replica: Replica, loglet: LogletId, tail: Offset) -> None:
        """Tell a committed tail that another server knows. Raises what the server says."""
        request = log_server_pb2.RaiseCommittedTailRequest(
            storage_id=replica.storage_id,
            committed=[log_server_pb2.CommittedTail(loglet=loglet_id(loglet), tail=tail)],
        )
        address = self._address(replica)
        await self._transport.call(
            address, RAISE_COMMITTED_TAIL, request, timeout_s=self._timeout_s
        )

    async def tell_end(self, replica: Replica, loglet: LogletId, end: Offset) -> None:
        """Tell where a segment ends. Raises what the server says."""
        request = TellEndsRequest(replica.storage_id, [(loglet, end)])
        address = self._address(replica)
        await self._transport.call(address, TELL_ENDS, request, timeout_s=self._timeout_s)

    async def trim(
        self, replica: Replica, loglet: LogletId, local_start: Offset
    ) -> log_server_pb2.LogletStatus | None:
        """Have all below `local_start` dropped, as far as the replica knows it to be committed.

        How the loglet stands there then; None if the server never heard of it. Raises what the
        server says.
        """
        request = log_server_pb2.TrimRequest(storage_id=replica.storage_id)
        request.loglets.add(loglet=loglet_id(loglet), local_start=local_start)
        address = self._address(replica)
        answer = await self._transport.call(address, TRIM, request, timeout_s=self._timeout_s)
        return answer.loglets[0] if answer.loglets else None

    async def read(
        self,
        replica: Replica,
        loglet: LogletId,
        first: Offset,
        end: Offset,
        *,
        segment_end: Offset | None,
        take: Callable[[Sequence[bytes]], Awaitable[None]],
    ) -> Gap | None:
        """Hand the replica's batches of [first, end) to `take`, message by message, in order.

        Of an open segment (no `segment_end`) only what the replica knows to be committed. The first
        batch may begin below `first`, the last end beyond `end`. Returns where the replica can't go
        on, None if it gave what it may.

        Raises:
            Unreachable, DeadlineExceeded, WrongStorage, ProtocolError; what `take` raises.
        """
        request = log_server_pb2.ReadLogletRequest(
            storage_id=replica.storage_id,
            loglet=loglet_id(loglet),
            start=first,
            end=end,
            segment_end=segment_end,
            no_wait=True,
        )
        stream = self._transport.stream(self._address(replica), READ_LOGLET)
        try:
            await stream.send(request)
            while (message := await self._receive(stream, replica)) is not None:
                if message.batches:
                    await take(message.batches)
                if message.gap is not None:
                    return message.gap
        finally:
            stream.cancel()
        return None

    async def _receive(self, stream: _ReadStream, replica: Replica) -> ReadAnswer | None:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await stream.receive()
        except TimeoutError as error:
            raise Unreachable(f"{replica.node_id} went silent while it was read") from error

    def _address(self, replica: Replica) -> str:
        node = self._view.node(replica.node_id)
        if node is None:
            raise Unreachable(f"node {replica.node_id} is not known here")
        return node.address
