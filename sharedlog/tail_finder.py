"""Asks for a log's tail: at its sequencer, through other nodes, and through a failover.

A call that fails is repeated until its time is up, for it changes nothing. So whoever asks while
the log gets another sequencer waits a little longer, and sees no error.
"""

from __future__ import annotations

import asyncio
from typing import Final

from sharedlog.attempts import Failure, FailureKind
from sharedlog.connection import Connection
from sharedlog.errors import DeadlineExceeded, SharedLogError, Unreachable
from sharedlog.ids import Offset
from sharedlog.route import Route
from sharedlog.rpc.methods import FIND_TAIL
from sharedlog.sequencer_path import SequencerPath, Stop
from sharedlog.v1 import log_pb2

_DIRECT_S: Final = 1.0  # for a sequencer that lives and has a write quorum
_HALVED_ABOVE_S: Final = 0.5  # with less left, it gets all of it
_ATTEMPT_MIN_S: Final = 0.1


class TailFinder:
    """Finds the tail of one log."""

    def __init__(self, connection: Connection, route: Route) -> None:
        self._connection = connection
        self._route = route

    async def find(self, timeout_s: float) -> Offset:
        """The tail, linearizable.

        Raises:
            SharedLogError: why nobody could tell it in time.
        """
        now = self._connection.clock.monotonic_s
        deadline_s = now() + timeout_s
        path = SequencerPath(self._connection, self._route)
        failure: Failure | None = None
        while True:
            stop = Stop("", direct=False)
            try:
                async with asyncio.timeout(max(_ATTEMPT_MIN_S, deadline_s - now())):
                    stop = await path.next_stop()
                return await self._ask(path, stop, left_s=deadline_s - now())
            except TimeoutError as late:
                if failure is not None:
                    raise self._explained(failure.error) from failure.error
                message = f"no node told within {timeout_s:g} s who orders {self._route.name}"
                raise DeadlineExceeded(message) from late
            except SharedLogError as error:
                if not error.retryable:
                    raise
                failure = Failure(_kind_of(error), error, stop.address, stop.direct)
            try:
                async with asyncio.timeout(max(0.0, deadline_s - now())):
                    await path.after(failure)
            except TimeoutError:
                raise self._explained(failure.error) from failure.error

    async def _ask(self, path: SequencerPath, stop: Stop, *, left_s: float) -> Offset:
        limit_s = path.limit_s(_DIRECT_S)
        if not stop.direct:
            limit_s = max(limit_s, self._connection.config.attempt_timeout_s)
        elif left_s > _HALVED_ABOVE_S:
            left_s /= 2  # the rest is for another node, should this one not answer
        request = log_pb2.FindTailRequest(
            log=self._route.name, direct_only=stop.direct, min_chain_version=self._route.version
        )
        timeout_s = min(limit_s, max(_ATTEMPT_MIN_S, left_s))
        answer = await self._connection.transport.call(
            stop.address, FIND_TAIL, request, timeout_s=timeout_s
        )
        return Offset(answer.tail)

    def _explained(self, error: SharedLogError) -> SharedLogError:
        if not isinstance(error, DeadlineExceeded):
            return error
        return DeadlineExceeded(
            f"the tail of {self._route.name} can't be confirmed: its sequencer, or a write quorum "
            "of its log servers, does not answer"
        )


def _kind_of(error: SharedLogError) -> FailureKind:
    if isinstance(error, Unreachable):
        return "unreached"
    return "silent" if isinstance(error, DeadlineExceeded) else "refused"
