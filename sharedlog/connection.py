"""The client's way into a cluster: some addresses, any of which will do, and calls with retries.

Only calls that may be repeated go through here: they read, or they carry a nonce.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from random import Random
from typing import Final, Protocol

from sharedlog.backoff import Backoff
from sharedlog.clock import Clock
from sharedlog.config import ClientConfig
from sharedlog.errors import (
    DeadlineExceeded,
    InvalidArgument,
    MetadataUnavailable,
    Overloaded,
    SharedLogError,
    Unreachable,
)
from sharedlog.idle_sessions import IdleSessions
from sharedlog.peer import Peers
from sharedlog.rpc.transport import Method, Req, Resp, Transport

log = logging.getLogger(__name__)

_ADDRESSES_MAX: Final = 64
_POOR_MAX: Final = 4  # answers that were not good enough, before one is taken; then others are next
_FAILED_KEPT_S: Final = 30.0
_RETRIED: Final = (Unreachable, DeadlineExceeded, MetadataUnavailable, Overloaded)


def parse_addresses(address: str | Sequence[str]) -> list[str]:
    """Addresses of nodes, from "host:port,host:port" or a sequence of them.

    Raises:
        InvalidArgument: none, or one that is not host:port.
    """
    parts = address.split(",") if isinstance(address, str) else list(address)
    addresses = [part.strip() for part in parts if part.strip()]
    if not addresses:
        raise InvalidArgument("no address; give host:port of one or more nodes")
    for part in addresses:
        host, _, port = part.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65_536:
            raise InvalidArgument(f"{part!r} is no address; it must be host:port")
    return addresses


class Abortable(Protocol):
    """What must be ended before its connection is."""

    async def abort(self) -> None:
        """End at once."""
        ...


class Connection:
    """What all parts of one client share."""

    def __init__(
        self,
        transport: Transport,
        addresses: Sequence[str],
        *,
        clock: Clock,
        rng: Random,
        smart: bool,
        config: ClientConfig,
    ) -> None:
        self.transport = transport
        self.clock = clock
        self.rng = rng
        self.smart = smart  # straight to sequencer and log servers, rather than through one node
        self.config = config
        # Those with a task, which outlives no cluster; and who is to live as long as that, if any.
        self.open_appenders: dict[Abortable, object | None] = {}
        self.idle_sessions = IdleSessions(config.idle_sessions_max)
        self.peers = Peers()
        self.open_cursors: set[Abortable] = set()  # those with a timer or a task, likewise
        self._addresses = list(addresses)  # the best first
        self._failed_s: dict[str, float] = {}  # when one of them last did not answer

    def address(self) -> str:
        """A node that answered last time, or the first that is to be tried."""
        return self._addresses[0]

    def avoid(self, address: str) -> None:
        """This node did not answer: try it last from now on."""
        if address in self._addresses:
            self._addresses.remove(address)
            self._addresses.append(address)

    def ask_another(self) -> None:
        """Try another node first from now on, in turn, since this one's view may be an old one.

        None that has failed lately: that would cost each who asks a wait.
        """
        self.avoid(self._addresses[0])
        self._addresses.remove(address := self._in_order()[0])
        self._addresses.insert(0, address)

    def _in_order(self) -> list[str]:
        """Whom to try, one after the other: those that failed lately come last."""
        since_s = self.clock.monotonic_s() - _FAILED_KEPT_S
        return sorted(self._addresses, key=lambda it: self._failed_s.get(it, since_s) > since_s)

    def learn(self, addresses: Iterable[str]) -> None:
        """More nodes of the cluster: it stays reachable when those that were given are gone."""
        if self.smart:
            for address in addresses:
                if address not in self._addresses and len(self._addresses) < _ADDRESSES_MAX:
                    self._addresses.append(address)

    def backoff(self) -> Backoff:
        """Waits between the attempts of one thing."""
        config = self.config
        return Backoff(self.rng, min_s=config.backoff_min_s, max_s=config.backoff_max_s)

    async def call(
        self,
        method: Method[Req, Resp],
        request: Req,
        *,
        timeout_s: float | None = None,
        attempt_timeout_s: float | None = None,
        good_enough: Callable[[Resp], bool] | None = None,
    ) -> Resp:
        """Call any node; another one if it does not answer; again until the time is up.

        `timeout_s` and `attempt_timeout_s` take the place of those in `ClientConfig`. An answer
        that is not `good_enough` makes it ask another node; if no answer is, the first is taken.

        Raises:
            SharedLogError: what a node answered, or the last reason why none did.
        """
        now = self.clock.monotonic_s
        deadline_s = now() + (self.config.timeout_s if timeout_s is None else timeout_s)
        attempt_max_s = attempt_timeout_s or self.config.attempt_timeout_s
        backoff = self.backoff()
        while True:
            last: SharedLogError | None = None
            poor: list[Resp] = []
            for address in self._in_order():
                begun_s = now()
                if (deadline_s <= begun_s and (last or poor)) or len(poor) >= _POOR_MAX:
                    break
                async with self.peers.at(address).calls.take():
                    if self._failed_s.get(address, begun_s) > begun_s:
                        last = Unreachable(f"{address} did not answer others meanwhile")
                        continue
                    attempt_s = max(0.001, min(deadline_s - now(), attempt_max_s))
                    try:
                        answer = await self.transport.call(
                            address, method, request, timeout_s=attempt_s
                        )
                    except _RETRIED as error:
                        last = error
                        self._failed_s[address] = now()
                        self.avoid(address)
                        fields = {"address": address, "method": method.path, "error": str(error)}
                        log.debug("client.attempt_failed", extra=fields)
                        continue
                self._failed_s.pop(address, None)
                if good_enough is None or good_enough(answer):
                    return answer
                poor.append(answer)
                self.avoid(address)
            if poor:
                return poor[0]
            assert last is not None
            wait_s = backoff.next_s()
            if isinstance(last, Overloaded):
                wait_s = max(wait_s, last.retry_after_s)
            if now() + wait_s >= deadline_s:
                raise last
            await self.clock.sleep(wait_s)
