"""Three real members of etcd, Debian's, on free ports of loopback.

    cluster = EtcdCluster(directory)
    cluster.start()
    ...  # cluster.addresses, cluster.url("tests/1")
    cluster.stop()

Elections are quick, and as much is fsynced as in earnest. The kernel ends the members with the
thread that started them, however that ends.

`shared_etcd()` is one cluster for all tests of a process that need no faults, or mend what they
break; each takes a prefix of its own.
"""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import signal
import ssl
import subprocess
import tempfile
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.request import BaseHandler, HTTPSHandler, ProxyHandler, Request, build_opener

import pytest

from sharedlog.dev_cluster import _reserve_free_ports

HOST = "127.0.0.1"
START_S = 60.0
_POLL_S = 0.02
_END_WITH_PARENT = ("setpriv", "--pdeathsig", "KILL")  # of Debian's util-linux, and then it is etcd


@dataclass(frozen=True)
class TlsFiles:
    """An authority, and what it vouches for: a server at 127.0.0.1, and a client."""

    ca: str
    server_cert: str
    server_key: str
    client_cert: str
    client_key: str


def make_tls_files(directory: Path) -> TlsFiles:
    """Made by openssl, which etcd's package does without: the test is skipped where it is not."""
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl here: `make test-deps` installs it")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)

    new = ("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    openssl(*new, "-days", "2", "-subj", "/CN=test-ca", "-keyout", "ca.key", "-out", "ca.pem")
    # A member is a client, too: its JSON gateway calls it.
    for name, use in (("server", "serverAuth,clientAuth"), ("client", "clientAuth")):
        # Debian's openssl signs with an authority when it is told one.
        wanted = (f"extendedKeyUsage={use}", f"subjectAltName=IP:{HOST}")
        extensions = [word for extension in wanted for word in ("-addext", extension)]
        place = ("-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN={name}")
        openssl(*new, "-days", "2", *place, *extensions, "-CA", "ca.pem", "-CAkey", "ca.key")
    path = {name: str(directory / name) for name in ("ca.pem", "server.pem", "client.pem")}
    keys = [str(directory / f"{name}.key") for name in ("server", "client")]
    return TlsFiles(path["ca.pem"], path["server.pem"], keys[0], path["client.pem"], keys[1])


def find_etcd() -> str:
    """Path of the program; the test is skipped where there is none."""
    found = shutil.which("etcd")
    if found is None:
        pytest.skip("there is no etcd here: `make test-deps` installs it (Debian: etcd-server)")
    return found


class EtcdMember:
    """One member; its ports and data stay when it is killed."""

    def __init__(
        self, name: str, directory: Path, port: int, peer_port: int, tls: TlsFiles | None = None
    ) -> None:
        self._tls = tls
        self.name = name
        self.directory = directory
        self.port = port
        self.peer_port = peer_port
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """host:port for clients."""
        return f"{HOST}:{self.port}"

    @property
    def client_url(self) -> str:
        """For clients, as members are told it."""
        return f"{'https' if self._tls else 'http'}://{self.address}"

    @property
    def peer_url(self) -> str:
        """For the other members."""
        return f"http://{HOST}:{self.peer_port}"

    def ask(self, path: str, **fields: Any) -> dict[str, Any]:
        """A call of its JSON gateway, e.g. `ask("kv/range", key=b"k")`; bytes go as base64."""
        plain = {
            name: base64.b64encode(value).decode() if isinstance(value, bytes) else value
            for name, value in fields.items()
        }
        return self._open(f"/v3/{path}", json.dumps(plain).encode())

    def is_healthy(self) -> bool:
        """It knows a leader, and that one has a majority."""
        try:
            return bool(self._open("/health", None)["health"] == "true")
        except OSError:
            return False

    def _open(self, path: str, data: bytes | None) -> dict[str, Any]:
        handlers: list[BaseHandler] = [ProxyHandler({})]
        if self._tls is not None:
            context = ssl.create_default_context(cafile=self._tls.ca)
            context.load_cert_chain(self._tls.client_cert, self._tls.client_key)
            handlers.append(HTTPSHandler(context=context))
        request = Request(self.client_url + path, data=data)
        with build_opener(*handlers).open(request, timeout=5) as answer:
            found: dict[str, Any] = json.loads(answer.read())
        return found


class EtcdCluster:
    """See the module's docstring. With `tls`, clients must show a certificate."""

    def __init__(self, directory: Path, *, members: int = 3, tls: TlsFiles | None = None) -> None:
        self._binary = find_etcd()
        self._tls = tls
        self._directory = directory
        self._token = uuid.uuid4().hex
        # Held until the end, so that no other test gets these ports.
        self._ports = _reserve_free_ports(2 * members)
        ports = [port.getsockname()[1] for port in self._ports]
        self.members = [
            EtcdMember(
                f"m{index}", directory / f"m{index}", ports[index], ports[members + index], tls
            )
            for index in range(members)
        ]

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def addresses(self) -> list[str]:
        """host:port of every member, running or not."""
        return [member.address for member in self.members]

    def url(self, prefix: str) -> str:
        """As nodes are told it."""
        return f"etcd://{','.join(self.addresses)}/{prefix}"

    def start(self) -> None:
        """Start those that do not run, and wait until all of them know a leader."""
        for member in self.members:
            self._start(member)
        self.wait_for_leader()

    def start_member(self, member: EtcdMember) -> None:
        """Start it, and wait until it knows a leader."""
        self._start(member)
        self._wait_ready(member)

    def wait_for_leader(self) -> None:
        """Wait until all that run know one."""
        for member in self.members:
            if member.process is not None:
                self._wait_ready(member)

    def leader(self) -> EtcdMember:
        """The member that leads now."""
        until = time.monotonic() + START_S
        while time.monotonic() < until:
            for member in self.members:
                if member.process is None:
                    continue
                with contextlib.suppress(OSError):
                    status = member.ask("maintenance/status")
                    if status.get("leader", "0") == status["header"]["member_id"]:
                        return member
            time.sleep(_POLL_S)
        raise AssertionError("etcd elects no leader")

    def kill(self, member: EtcdMember) -> None:
        """SIGKILL, and wait for its end."""
        process, member.process = member.process, None
        if process is not None:
            process.kill()
            process.wait()

    def kill_all(self) -> None:
        """SIGKILL to all of them, in the same moment as far as that can be."""
        for member in self.members:
            if member.process is not None:
                member.process.kill()
        for member in self.members:
            self.kill(member)

    def pause(self, member: EtcdMember) -> None:
        """SIGSTOP: it is there, and says nothing."""
        assert member.process is not None
        member.process.send_signal(signal.SIGSTOP)

    def resume(self, member: EtcdMember) -> None:
        """SIGCONT."""
        if member.process is not None:
            member.process.send_signal(signal.SIGCONT)

    def compact(self) -> None:
        """Make etcd forget all history but the present."""
        member = self.leader()
        revision = member.ask("kv/range", key=b"\0", limit=1)["header"]["revision"]
        member.ask("kv/compaction", revision=revision)

    def stop(self) -> None:
        """End them all and give back the ports; the data stays."""
        self.kill_all()
        for port in self._ports:
            port.close()

    def _start(self, member: EtcdMember) -> None:
        if member.process is not None:
            return
        settings = {
            "name": member.name,
            "data-dir": str(member.directory),
            "listen-client-urls": member.client_url,
            "advertise-client-urls": member.client_url,
            "listen-peer-urls": member.peer_url,
            "initial-advertise-peer-urls": member.peer_url,
            "initial-cluster": ",".join(f"{it.name}={it.peer_url}" for it in self.members),
            "initial-cluster-token": self._token,
            "heartbeat-interval": "50",
            "election-timeout": "500",
            "logger": "zap",
            "log-level": "error",
        }
        if self._tls is not None:
            settings |= {
                "client-cert-auth": "true",
                "trusted-ca-file": self._tls.ca,
                "cert-file": self._tls.server_cert,
                "key-file": self._tls.server_key,
            }
        arguments = [f"--{name}={value}" for name, value in settings.items()]
        self._directory.mkdir(parents=True, exist_ok=True)
        with (self._directory / f"{member.name}.out").open("ab") as output:
            member.process = subprocess.Popen(
                [*_END_WITH_PARENT, self._binary, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                process_group=0,
            )

    def _wait_ready(self, member: EtcdMember) -> None:
        until = time.monotonic() + START_S
        while time.monotonic() < until:
            if member.is_healthy():
                return
            assert member.process is not None
            if member.process.poll() is not None:
                break
            time.sleep(_POLL_S)
        said = (self._directory / f"{member.name}.out").read_text(errors="replace")
        raise AssertionError(f"etcd's {member.name} does not serve: {said[-2000:]}")


_shared: list[tuple[EtcdCluster, Path]] = []


def shared_etcd() -> EtcdCluster:
    """The cluster of this process; started when it is first asked for. All members run."""
    if not _shared:
        find_etcd()
        directory = Path(tempfile.mkdtemp(prefix="sharedlog-etcd-"))
        cluster = EtcdCluster(directory)
        _shared.append((cluster, directory))
    cluster = _shared[0][0]
    cluster.start()
    return cluster


def stop_shared() -> None:
    """End it, if it was started, and remove its data."""
    while _shared:
        cluster, directory = _shared.pop()
        cluster.stop()
        shutil.rmtree(directory, ignore_errors=True)
