"""A network of simulated hosts over virtual time, with faults; `transport.py` has its users.

Messages cross as bytes, through the method's own codecs, so that no two processes share an object
and every message that the simulator carries could have been carried by gRPC.

A stream is two pipes, one each way. Within a pipe order is kept and nothing is lost, as TCP has it;
each stream has its own delays, so streams overtake one another. What goes wrong goes wrong as it
does under TCP and HTTP/2:

- delay, mostly short and sometimes long (`NetworkConfig`); `slow` makes one direction slower;
- `cut` stops messages from one host to another, in one direction or both. What is under way waits
  and arrives after `mend`, unless the cut outlives `keepalive_s`: then the streams of that pair
  break. `refuse` cuts as a firewall that answers does: streams break and new ones are refused, now;
- `break_connections` breaks the streams of a pair at once: what is under way is lost;
- `crash` ends a host. Its peers are told (the kernel's reset) after a delay, or, if `silent`,
  find out by `keepalive_s` like the peers of a machine that lost its power;
- `pause` is for a host whose process stands still (`Host.pause`). Its kernel goes on taking what
  arrives and accepts connections; but nothing answers a keepalive, so peers give up after that;
- a call may be carried out twice (`repeat`): its first request went astray and arrives late, when
  its sender has long had its answer.

A pipe holds at most `window_messages` that were not received; more make `send` wait.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from helpers.sim.connection import Connection, host_of
from helpers.sim.world import World

from sharedlog.rpc.transport import Method

if TYPE_CHECKING:
    from helpers.sim.transport import SimServer, SimTransport


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkConfig:
    """How the network behaves when nothing is broken; times in seconds."""

    delay_min_s: float = 0.000_05
    delay_max_s: float = 0.000_5
    slow_probability: float = 0.01
    """Of a message that takes up to `slow_max_s` instead."""
    slow_max_s: float = 0.03
    keepalive_s: float = 15.0
    """After so long without a way through, both ends give a stream up."""
    window_messages: int = 64
    repeat: Collection[str] = ()
    """Names of calls that may be carried out twice."""
    repeat_probability: float = 0.0
    repeat_after_max_s: float = 10.0


class SimNetwork:
    """All hosts. A host is the part of an address before the colon, and one process at a time."""

    def __init__(self, world: World, config: NetworkConfig | None = None) -> None:
        self.config = config or NetworkConfig()
        self.trace = world.trace
        self._random = world.random("network")
        self._servers: dict[str, SimServer] = {}
        self.connections: dict[Connection, None] = {}  # open ones, in order of opening
        self._cuts: dict[tuple[str, str], int] = {}  # (from, to) → number of the cut
        self._cut_count = 0
        self._refused: set[frozenset[str]] = set()  # pairs that a firewall keeps apart
        self._powered_off: set[str] = set()  # crashed silently: not even a refusal comes back
        self._paused: dict[str, int] = {}  # host → number of the pause
        self._slow: dict[tuple[str, str], float] = {}  # (from, to) → longest further delay
        # What the network does belongs to no host: it goes on while hosts are paused.
        self.context = contextvars.Context()

    def transport(self, host: str) -> SimTransport:
        """A process's way out."""
        from helpers.sim.transport import SimTransport  # late: it imports this module

        return SimTransport(self, host)

    def server(self, address: str) -> SimServer:
        """A process's way in; it is reached once `start` was called."""
        from helpers.sim.transport import SimServer  # late: it imports this module

        return SimServer(self, address)

    def cut(self, source: str, target: str, *, both_ways: bool = True) -> None:
        """Let nothing through from `source` to `target`."""
        self.trace.add(f"cut {source} {target} {'both' if both_ways else 'one'}")
        for pair in [(source, target), (target, source)][: 2 if both_ways else 1]:
            self._cut_count += 1
            self._cuts[pair] = self._cut_count
            self.after(self.config.keepalive_s, self._give_up, pair, self._cut_count)

    def mend(self, source: str, target: str) -> None:
        """Undo `cut` and `refuse`, both ways: what waited is delivered."""
        self.trace.add(f"mend {source} {target}")
        for pair in ((source, target), (target, source)):
            self._cuts.pop(pair, None)
        self._refused.discard(frozenset((source, target)))
        for connection in self._between(source, target):
            connection.flush()

    def refuse(self, one: str, other: str) -> None:
        """Keep two hosts apart, and tell them so at once."""
        self.trace.add(f"refuse {one} {other}")
        self._refused.add(frozenset((one, other)))
        for connection in self._between(one, other):
            connection.break_both("the connection was reset")

    def is_refused(self, one: str, other: str) -> bool:
        """A firewall answers in the other's place."""
        return bool(self._refused) and frozenset((one, other)) in self._refused

    def is_troubled(self, one: str, other: str) -> bool:
        """Something between two hosts is to be mended."""
        pairs = ((one, other), (other, one))
        return self.is_refused(one, other) or any(
            pair in self._cuts or pair in self._slow for pair in pairs
        )

    def slow(self, source: str, target: str, delay_max_s: float) -> None:
        """Delay each message of one direction by up to so much more; 0 ends it."""
        self.trace.add(f"slow {source} {target} {delay_max_s}")
        if delay_max_s:
            self._slow[source, target] = delay_max_s
        else:
            self._slow.pop((source, target), None)

    def pause(self, host: str) -> None:
        """The host's process stands still: it answers no keepalive."""
        self.trace.add(f"pause {host}")
        self._cut_count += 1
        self._paused[host] = self._cut_count
        self.after(self.config.keepalive_s, self._give_up_paused, host, self._cut_count)

    def resume(self, host: str) -> None:
        """The host's process goes on."""
        self.trace.add(f"resume {host}")
        self._paused.pop(host, None)

    def after(self, delay_s: float, callback: Callable[..., object], *args: object) -> None:
        """Call back later, as nobody's process."""
        loop = asyncio.get_running_loop()
        loop.call_later(delay_s, callback, *args, context=self.context)

    def break_connections(self, one: str, other: str) -> None:
        """Break every stream between two hosts; what is under way is lost."""
        self.trace.add(f"break {one} {other}")
        for connection in self._between(one, other):
            connection.break_both("the connection broke")

    def crash(self, host: str, *, silent: bool = False) -> None:
        """End a host's process; `silent`: nobody is told, as when the machine loses its power."""
        self.trace.add(f"crash {host}{' silent' if silent else ''}")
        if silent:
            self._powered_off.add(host)
        self._paused.pop(host, None)
        for address in [address for address in self._servers if host_of(address) == host]:
            del self._servers[address]
        for connection in [c for c in self.connections if host in (c.client, c.server)]:
            connection.crash(host, silent=silent)

    def boot(self, host: str) -> None:
        """The host's machine runs, if it did not; a process of it may start."""
        self._powered_off.discard(host)

    def is_cut(self, source: str, target: str) -> bool:
        """Nothing gets through now."""
        gone = self._powered_off
        return (source, target) in self._cuts or source in gone or target in gone

    def delay(self, source: str, target: str) -> float:
        """How long one message takes."""
        config, draw = self.config, self._random
        if self._slow:
            more_s = self._slow.get((source, target))
            if more_s is not None:
                return draw.uniform(config.delay_min_s, more_s)
        if draw.random() < config.slow_probability:
            return draw.uniform(config.delay_max_s, config.slow_max_s)
        return draw.uniform(config.delay_min_s, config.delay_max_s)

    def repeat(self, client: str, address: str, method: Method[Any, Any], request: bytes) -> None:
        """Perhaps send a call's request once more, for an answer that nobody will read."""
        label = method.path.rsplit("/", 1)[-1]
        config, draw = self.config, self._random
        if label not in config.repeat or draw.random() >= config.repeat_probability:
            return
        longest_s = config.repeat_after_max_s if draw.random() < 0.5 else config.slow_max_s
        self.after(draw.uniform(0, longest_s), self._send_again, client, address, method, request)

    def _send_again(
        self, client: str, address: str, method: Method[Any, Any], request: bytes
    ) -> None:
        self.trace.add(f"repeat {client} {address} {method.path}")
        connection = self.connect(client, address, method.path)
        connection.requests.carry(request)
        self.after(self.config.keepalive_s, connection.cancel_by_client)

    def listen(self, server: SimServer) -> None:
        assert server.address not in self._servers, f"{server.address} is in use"
        self.boot(host_of(server.address))
        self._servers[server.address] = server

    def unlisten(self, server: SimServer) -> None:
        if self._servers.get(server.address) is server:
            del self._servers[server.address]

    def connect(self, client: str, address: str, path: str) -> Connection:
        """Open a stream; the server hears of it, or refuses it, after a delay."""
        connection = Connection(self, client, address, path)
        self.connections[connection] = None
        return connection

    def find_server(self, address: str) -> SimServer | None:
        return self._servers.get(address)

    def forget(self, connection: Connection) -> None:
        self.connections.pop(connection, None)

    def _between(self, one: str, other: str) -> list[Connection]:
        return [c for c in self.connections if {c.client, c.server} == {one, other}]

    def _give_up(self, pair: tuple[str, str], number: int) -> None:
        if self._cuts.get(pair) == number:
            for connection in self._between(*pair):
                connection.break_both("keepalive got no answer")
            self.after(self.config.keepalive_s, self._give_up, pair, number)

    def _give_up_paused(self, host: str, number: int) -> None:
        if self._paused.get(host) == number:
            for connection in [c for c in self.connections if host in (c.client, c.server)]:
                connection.break_both("keepalive got no answer")
            self.after(self.config.keepalive_s, self._give_up_paused, host, number)
