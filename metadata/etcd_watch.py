"""One watch at one member of etcd: how far it has come, and whether the member still lives."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, TypeVar

from metadata.etcd_wire import PROGRESS
from sharedlog.clock import Clock
from sharedlog.errors import DeadlineExceeded, SharedLogError
from sharedlog.rpc.transport import ClientStream
from sharedlog.v1 import etcd_pb2 as pb

PROBE_EVERY_S: Final = 1.0
"""An idle watch asks for a sign of life so often."""
SILENCE_MAX_S: Final = 3.0
"""A member that gives none for so long is left."""

assert SILENCE_MAX_S >= 2 * PROBE_EVERY_S

_OURS: Final = 0  # number of the only watch of a stream

T = TypeVar("T")


@dataclass(slots=True)
class Place:
    """How far a watch has come."""

    next_revision: int = 0
    """The least that may not have been told in full. 0: nothing is known, a snapshot is needed."""

    def take(self, response: pb.EtcdWatchResponse) -> Sequence[pb.EtcdEvent]:
        """Those of its events that may be news, in order; they count as told."""
        events = [it for it in response.events if it.kv.mod_revision >= self.next_revision]
        if response.events:
            last = response.events[-1].kv.mod_revision
            # What else its last revision changed may come with the next fragment.
            self._reach(last if response.fragment else last + 1)
        elif response.watch_id == _OURS and not response.created:
            # Everything up to here was told. The answer to `PROGRESS`, which is nobody's, does not
            # promise that in all versions of etcd (https://github.com/etcd-io/etcd/issues/15220).
            self._reach(response.header.revision + 1)
        return events

    def _reach(self, revision: int) -> None:
        self.next_revision = max(self.next_revision, revision)


class WatchStream:
    """A stream whose member must give signs of life while somebody waits for it."""

    def __init__(
        self,
        stream: ClientStream[pb.EtcdWatchRequest, pb.EtcdWatchResponse],
        clock: Clock,
        address: str,
    ) -> None:
        self._stream = stream
        self._clock = clock
        self._address = address
        self._begun = False
        self._waits_since_s: float | None = None
        self._silent = False

    async def begin(self, request: pb.EtcdWatchRequest) -> None:
        """Send the first message. Raises what `receive` raises."""
        await self._heard(self._stream.send(request))
        self._begun = True

    async def receive(self) -> pb.EtcdWatchResponse | None:
        """The next answer; None at the end.

        Raises:
            SharedLogError: the stream broke, or the member gives no sign of life.
        """
        return await self._heard(self._stream.receive())

    async def _heard(self, sign_of_life: Awaitable[T]) -> T:
        self._waits_since_s = self._clock.monotonic_s()
        try:
            return await sign_of_life
        except SharedLogError as error:
            if not self._silent:
                raise
            raise DeadlineExceeded(
                f"no sign of life from {self._address} in {SILENCE_MAX_S:g} s"
            ) from error
        finally:
            self._waits_since_s = None

    async def watch_over(self) -> None:
        """Ask for signs of life, and end the stream if none comes."""
        while not self._silent:
            await self._clock.sleep(PROBE_EVERY_S)
            if self._waits_since_s is None:
                continue  # there is more to tell than its reader has taken
            waited_s = self._clock.monotonic_s() - self._waits_since_s
            if waited_s >= SILENCE_MAX_S:
                self._silent = True
                self._stream.cancel()
            elif self._begun and waited_s >= PROBE_EVERY_S / 2:
                try:
                    await self._stream.send(PROGRESS)
                except SharedLogError:
                    return  # `receive` says why


@asynccontextmanager
async def watched_over(
    stream: ClientStream[pb.EtcdWatchRequest, pb.EtcdWatchResponse], clock: Clock, address: str
) -> AsyncGenerator[WatchStream, None]:
    """The stream, looked after for the length of the block, and then ended."""
    watch = WatchStream(stream, clock, address)
    vigil = asyncio.create_task(watch.watch_over(), name="etcd-watch-vigil")
    try:
        yield watch
    finally:
        stream.cancel()
        vigil.cancel()
        await asyncio.wait({vigil})
