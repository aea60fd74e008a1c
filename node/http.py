"""HTTP for operators: metrics and health. Nothing here changes anything.

| path       | answers                                                                        |
|------------|--------------------------------------------------------------------------------|
| `/metrics` | Prometheus text                                                                |
| `/healthz` | 200 while the process answers at all: restart it if this fails                 |
| `/readyz`  | 200 once the node serves, 503 before and while it shuts down: send no traffic  |

Both health paths answer a JSON object that says why.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from node.config import split_address
from node.errors import StartError
from node.readiness import Readiness

log = logging.getLogger(__name__)


class HttpServer:
    """Serves the paths above on one port until stopped."""

    def __init__(
        self, *, address: str, registry: CollectorRegistry, readiness: Callable[[], Readiness]
    ) -> None:
        self._address = address
        self._registry = registry
        self._readiness = readiness
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Listen.

        Raises:
            StartError: the address can't be bound.
        """
        app = web.Application()
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        runner = web.AppRunner(app, access_log=None, handle_signals=False)
        await runner.setup()
        host, port = split_address("http", self._address)
        try:
            await web.TCPSite(runner, host or None, port, shutdown_timeout=0.5).start()
        except OSError as error:
            await runner.cleanup()
            raise StartError(
                f"can't listen on http = {self._address}: {error.strerror or error}"
            ) from error
        self._runner = runner

    async def stop(self) -> None:
        """Stop listening; idempotent."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def _metrics(self, _: web.Request) -> web.Response:
        body = generate_latest(self._registry)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _healthz(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "alive"})

    async def _readyz(self, _: web.Request) -> web.Response:
        found = self._readiness()
        body = {"status": "ready" if found.ready else "not ready", "reason": found.reason}
        return web.json_response(body, status=200 if found.ready else 503)
