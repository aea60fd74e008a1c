"""An S3 server for tests: moto in a process of its own, on a free port of loopback.

    with S3Server() as server:
        server.make_bucket("history")
        ...  # server.url is the endpoint, server.environ what a client needs in its environment

`shared_s3()` is one server for all tests of a process; each takes a prefix of its own.

Its conditional PUT is made atomic by a lock: moto itself checks and then writes, in threads, so
that two writers could both win. Signatures are not checked. All is in memory; the process ends with
whoever started it, however that ends.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any, Self
from urllib.request import Request, urlopen

HOST = "127.0.0.1"
BUCKET = "sharedlog-tests"
"""Of the shared server."""
TESTS = Path(__file__).parents[1]
START_S = 90.0  # it loads half a minute of modules where everything is slow

DUMMY_ENVIRON = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
    # Nothing of the machine's own may be found instead.
    "AWS_SESSION_TOKEN": "",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_EC2_METADATA_DISABLED": "true",
    "NO_PROXY": HOST,
    "no_proxy": HOST,
}
"""Environment of a client: credentials that are none."""


class S3Server:
    """See the module's docstring."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._said: IO[bytes] | None = None
        self.url = ""
        self.environ = DUMMY_ENVIRON

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Of its process."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> Self:
        """Start it, and wait until it serves."""
        assert self._process is None
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  closed by `stop`
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "helpers.s3_server"],
            cwd=TESTS,
            env=dict(os.environ) | self.environ | {"PYTHONPATH": f"{TESTS.parent}:{TESTS}"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
        )
        try:
            self.url = f"http://{HOST}:{self._port()}"
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout, self._said):
                if pipe is not None:
                    pipe.close()

    def make_bucket(self, name: str) -> None:
        """An empty bucket."""
        request = Request(f"{self.url}/{name}", data=b"", method="PUT")
        with urlopen(request, timeout=START_S) as answer:
            assert answer.status == 200

    def _port(self) -> int:
        """What the process says once it listens."""
        assert self._process is not None
        assert self._process.stdout is not None
        until = time.monotonic() + START_S
        while time.monotonic() < until:
            if select.select([self._process.stdout], [], [], 0.2)[0]:
                line = self._process.stdout.readline()
                if line.strip():
                    return int(line)
            if self._process.poll() is not None:
                break
        assert self._said is not None
        self._said.seek(0)
        said = self._said.read().decode(errors="replace")
        raise AssertionError(f"the S3 server does not start: {said[-2000:]}")


_shared: list[S3Server] = []


def shared_s3() -> S3Server:
    """The server of this process's tests; started when it is first asked for, with a `BUCKET`."""
    if not _shared:
        server = S3Server().start()
        _shared.append(server)
        server.make_bucket(BUCKET)
    return _shared[0]


def stop_shared() -> None:
    """End it, if it was started."""
    while _shared:
        _shared.pop().stop()


WsgiApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class OneChangeAtATime:
    """A WSGI application whose requests that change something do not run beside each other."""

    def __init__(self, app: WsgiApp) -> None:
        self._app = app
        self._lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] in ("GET", "HEAD"):
            return self._app(environ, start)
        # Answers of moto are whole when the application returns.
        with self._lock:
            return list(self._app(environ, start))


def main() -> None:
    """Serve until the parent is gone."""
    from moto.moto_server.werkzeug_app import (
        DomainDispatcherApplication,
        MotoRequestHandler,
        create_backend_app,
    )
    from werkzeug.serving import make_server

    class Handler(MotoRequestHandler):
        protocol_version = "HTTP/1.1"  # connections are used again, as elsewhere

        def log_request(self, *_: object) -> None:
            """Not a word."""

    app = OneChangeAtATime(DomainDispatcherApplication(create_backend_app))
    server = make_server(HOST, 0, app, threaded=True, request_handler=Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdout.write(f"{server.server_port}\n")
    sys.stdout.flush()
    sys.stdin.buffer.read()  # ends when the parent does
    os._exit(0)


if __name__ == "__main__":
    main()
