"""Real `sharedlogd` processes: started, killed, and asked how they ended.

    with NodeProcess(tmp_path / "n1", "n1", roles=("metadata", "log-server", "sequencer")) as node:
        node.wait_ready()

A process that is still alive at the end of its block is killed. What it logged is in `events`.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self
from urllib.error import URLError
from urllib.request import urlopen

from sharedlog.dev_cluster import _reserve_free_ports

ROOT = Path(__file__).parents[2]
HOST = "127.0.0.1"
DEADLINE_S = 60.0
ALL_ROLES = ("metadata", "log-server", "sequencer")
PATIENT = {"SHAREDLOG_PING_TIMEOUT_S": "2.5"}
"""Settings of nodes that no test harms: one that has to wait for a core is not taken for dead. That
would move its logs, or leave too few nodes for a new one."""


class NodeProcess:
    """One node, which keeps its addresses and its folder over restarts."""

    def __init__(
        self,
        directory: Path,
        node_id: str,
        *,
        metadata: str = "",
        roles: Sequence[str] = ("log-server", "sequencer"),
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self.node_id = node_id
        self.directory = directory
        # Held until the end of the block, so that no other test gets these ports.
        self._ports = _reserve_free_ports(2)
        self.address, self.http = (f"{HOST}:{port.getsockname()[1]}" for port in self._ports)
        self.settings = {
            "SHAREDLOG_NODE_ID": node_id,
            "SHAREDLOG_LISTEN": self.address,
            "SHAREDLOG_HTTP": self.http,
            "SHAREDLOG_DIR": str(directory / "data"),
            "SHAREDLOG_METADATA": metadata,
            "SHAREDLOG_ROLES": ",".join(roles),
            "SHAREDLOG_LOG_LEVEL": "debug",
            **(settings or {}),
        }
        self._log = directory / "log"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.kill()
        for port in self._ports:
            port.close()

    @property
    def data(self) -> Path:
        """The folder that the node keeps everything in."""
        return self.directory / "data"

    def start(self) -> Self:
        """Start the process; `wait_ready` waits until it serves."""
        assert self._process is None
        self.directory.mkdir(parents=True, exist_ok=True)
        environ = {n: v for n, v in os.environ.items() if not n.startswith("SHAREDLOG_")}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "node"],
                env=environ | {"PYTHONPATH": str(ROOT)} | self.settings,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        return self

    def wait_ready(self) -> Self:
        """Wait until the node says that it serves; fail at once if it ends instead."""
        wait_until(lambda: self.ended() or self.ready(), f"{self.node_id} is not ready")
        assert not self.ended(), f"{self.node_id} ended: {self.log_text()}"
        return self

    def ready(self) -> bool:
        """What /readyz says."""
        return self.get("/readyz")[0] == 200

    def get(self, path: str) -> tuple[int, str]:
        """Status and body of an HTTP request; 0 if nobody listens, or answers in `DEADLINE_S`."""
        try:
            with urlopen(f"http://{self.http}{path}", timeout=DEADLINE_S) as answer:
                return answer.status, answer.read().decode()
        except URLError as error:
            status = getattr(error, "code", 0)
            body = getattr(error, "read", bytes)().decode()
            getattr(error, "close", lambda: None)()
            return status, body
        except OSError:
            return 0, ""

    def wait_exit(self) -> int:
        """Wait until the process ends by itself; its exit code."""
        assert self._process is not None
        code = self._process.wait(DEADLINE_S)
        self._process = None
        return code

    def terminate(self) -> int:
        """SIGTERM; the exit code."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self.wait_exit()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process, which runs."""
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, if it runs."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def events(self, name: str = "") -> list[dict[str, object]]:
        """What it logged since its last start; only events of that name, if one is given."""
        found = []
        for line in self.log_text().splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict) and name in ("", entry.get("event")):
                found.append(entry)
        return found

    def log_text(self) -> str:
        """The same as it was written."""
        return self._log.read_text(errors="replace")

    def wait_event(self, name: str) -> dict[str, object]:
        """The first event of that name."""
        wait_until(lambda: bool(self.events(name)), f"{self.node_id} did not log {name}")
        return self.events(name)[0]

    def ended(self) -> bool:
        """Whether it runs no longer."""
        return self._process is None or self._process.poll() is not None


def wait_until(condition: Callable[[], bool], what: str, *, deadline_s: float = DEADLINE_S) -> None:
    """Poll until the condition holds."""
    until = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < until, what
        time.sleep(0.02)


def hold_port() -> socket.socket:
    """A socket that listens on a port of its own, for a process that wants the same."""
    held = socket.socket()
    held.bind((HOST, 0))
    held.listen()
    return held
