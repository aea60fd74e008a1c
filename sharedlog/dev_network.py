"""A network of its own for a development cluster, so that it can be cut: Linux, as root.

Each process lives in a network namespace. A further namespace holds a bridge that joins them, and
one end of a cable lies in the namespace of this process, which is thus a host of the network too.

    with DevNetwork(["metadata", "n1", "n2", "n3"]) as network:
        async with DevCluster(directory, network=network) as cluster:
            network.cut(["n1"], ["n2", "n3"])

A cut is silent, as a switch that died is: packets vanish, nobody is told. It is made one way at a
time by giving the sender a wrong hardware address for the receiver, so connections that exist feel
it at once. Everything goes when the namespaces are deleted; nothing else of the machine is touched.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Final, Self

CLIENT: Final = "client"
"""This process, as a host of the network."""

_NOBODY: Final = "02:00:00:00:00:ff"
_TRIES: Final = 20


class DevNetworkError(RuntimeError):
    """The network can't be made; `str(error)` is one line for a person."""


def why_impossible() -> str:
    """Why no such network can be made here; empty if it can."""
    if shutil.which("ip") is None:
        return "the command ip is missing; make test-deps installs it (Debian: iproute2)"
    if os.geteuid() != 0:
        return "network namespaces need root"
    name = f"sl{secrets.token_hex(3)}-probe"
    made = _run("netns", "add", name)
    if made.returncode:
        return f"network namespaces can't be made: {made.stderr.decode().strip()}"
    _run("netns", "del", name)
    return ""


class DevNetwork:
    """See the module. `names` are the processes that will live in it."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = [*names, CLIENT]
        self._prefix = f"sl{secrets.token_hex(3)}"
        self._subnet = ""
        self._cuts: set[tuple[str, str]] = set()
        self._open = False

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def open(self) -> None:
        """Make the namespaces and the cables.

        Raises:
            DevNetworkError: the system refused; nothing is left behind.
        """
        self._open = True
        try:
            self._subnet = _free_subnet()
            hub = self._space("hub")
            _ip("netns", "add", hub)
            _ip("-n", hub, "link", "add", "br0", "type", "bridge")
            _ip("-n", hub, "link", "set", "br0", "up")
            for number, name in enumerate(self._names):
                self._plug_in(hub, name, f"p{number}")
        except DevNetworkError:
            self.close()
            raise

    def close(self) -> None:
        """Delete all of it. Processes that still live there lose their network. Idempotent."""
        if self._open:
            self._open = False
            for name in ("hub", *self._names[:-1]):
                _run("netns", "del", self._space(name))

    def host(self, name: str) -> str:
        """The address of a process."""
        return f"{self._subnet}.{self._names.index(name) + 1}"

    def command(self, name: str) -> list[str]:
        """What to put before a command so that it runs as this host."""
        return ["ip", "netns", "exec", self._space(name)]

    def cut(
        self, sources: Iterable[str], targets: Iterable[str], *, both_ways: bool = True
    ) -> None:
        """From now on nothing that the sources send reaches the targets; nor back, if both ways."""
        pairs = {(source, target) for source in sources for target in targets if source != target}
        if both_ways:
            pairs |= {(target, source) for source, target in pairs}
        for source, target in sorted(pairs - self._cuts):
            where = ["lladdr", _NOBODY, "nud", "permanent", "dev", self._device(source)]
            _ip(*self._in(source), "neigh", "replace", self.host(target), *where)
            self._cuts.add((source, target))

    def isolate(self, name: str) -> None:
        """Cut one host off from all others, both ways."""
        self.cut([name], self._names)

    def mend(self) -> None:
        """Undo all cuts."""
        for source, target in sorted(self._cuts):
            _ip(*self._in(source), "neigh", "del", self.host(target), "dev", self._device(source))
        self._cuts.clear()

    def _plug_in(self, hub: str, name: str, port: str) -> None:
        """A cable from the bridge to a host, which gets its address."""
        device, inside = self._device(name), self._in(name)
        cable = ["link", "add", port, "netns", hub, "type", "veth", "peer", "name", device]
        if inside:
            _ip("netns", "add", self._space(name))
            cable += ["netns", self._space(name)]
        _ip(*cable)
        _ip("-n", hub, "link", "set", port, "master", "br0", "up")
        _ip(*inside, "addr", "add", f"{self.host(name)}/24", "dev", device)
        _ip(*inside, "link", "set", device, "up")
        if inside:
            _ip(*inside, "link", "set", "lo", "up")

    def _space(self, name: str) -> str:
        return f"{self._prefix}-{name}"

    def _device(self, name: str) -> str:
        return self._prefix if name == CLIENT else "eth0"

    def _in(self, name: str) -> list[str]:
        return [] if name == CLIENT else ["-n", self._space(name)]


def _free_subnet() -> str:
    """Three numbers of a /24 that no route of this machine leads to."""
    for _ in range(_TRIES):
        subnet = f"10.{200 + secrets.randbelow(50)}.{secrets.randbelow(256)}"
        if f"{subnet}." not in _ip("route", "show", "table", "all"):
            return subnet
    raise DevNetworkError("no free network was found in 10.200.0.0 to 10.249.255.0")


def _ip(*arguments: str) -> str:
    done = _run(*arguments)
    if done.returncode:
        said = " ".join(done.stderr.decode(errors="replace").split())
        raise DevNetworkError(f"ip {' '.join(arguments)}: {said}")
    return done.stdout.decode(errors="replace")


def _run(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(  # noqa: S603  our own words, and names that we made
        ["ip", *arguments],  # noqa: S607  wherever the system has it
        capture_output=True,
        check=False,
    )
