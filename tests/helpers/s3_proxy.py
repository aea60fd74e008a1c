"""A proxy before an S3 server that does to answers what networks and servers do.

    async with S3Proxy(server.url) as proxy:
        proxy.next("PUT", lose_answer)      # the next PUT is carried out, and its answer lost
        ...                                 # proxy.url is the endpoint; proxy.seen what was asked

A fault is used up by one request; several for one method are used in turn.
"""

from __future__ import annotations

import asyncio
import io
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable
from typing import NamedTuple, Self

from aiohttp import ClientSession, web
from yarl import URL

HOST = "127.0.0.1"
_NOT_PASSED_ON = {"connection", "content-length", "date", "server", "transfer-encoding"}


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


class Seen(NamedTuple):
    """A request."""

    method: str
    path: str  # with the query
    headers: dict[str, str]  # names in small letters
    size: int  # of the body


Forward = Callable[[], Awaitable[Answer]]
Fault = Callable[[web.BaseRequest, Forward], Awaitable[web.StreamResponse]]


class S3Proxy:
    """See the module's docstring."""

    def __init__(self, server_url: str) -> None:
        self._server_url = server_url
        self._faults: dict[str, deque[Fault]] = defaultdict(deque)
        self._always: Fault | None = None
        self.ignored: set[str] = set()  # headers of requests that the server does not know
        self.page_max = 0  # keys in a page of a listing; 0: as many as the server takes
        self.seen: list[Seen] = []
        self.url = ""

    async def __aenter__(self) -> Self:
        self._session = ClientSession(auto_decompress=False)
        server = web.Server(self._handle, handler_cancellation=True)
        self._runner = web.ServerRunner(server, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, HOST, 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()
        await self._session.close()

    def next(self, method: str, *faults: Fault) -> None:
        """What happens to the next requests of a method; to one, `passed_on`, nothing."""
        self._faults[method].extend(faults)

    def always(self, fault: Fault | None) -> None:
        """What happens to every request that no other fault is for."""
        self._always = fault

    def drop(self, method: str) -> None:
        """Nothing happens to the next requests of a method any more."""
        self._faults[method].clear()

    def left(self) -> int:
        """Faults that no request has met."""
        return sum(map(len, self._faults.values()))

    def count(self, method: str, part: str = "") -> int:
        """Requests of a method that were seen, whose path or query has this part."""
        return sum(seen.method == method and part in seen.path for seen in self.seen)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await request.content.read()  # `request.read` takes 1 MiB at most
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.seen.append(Seen(request.method, request.raw_path, headers, len(body)))

        async def forward() -> Answer:
            listing = self.page_max and "list-type=2" in request.raw_path
            more = f"&max-keys={self.page_max}" if listing else ""
            async with self._session.request(
                request.method,
                URL(f"{self._server_url}{request.raw_path}{more}", encoded=True),
                headers={
                    name: value
                    for name, value in headers.items()
                    if name not in _NOT_PASSED_ON | self.ignored
                },
                data=io.BytesIO(body) if body else None,
            ) as found:
                kept = {n: v for n, v in found.headers.items() if n.lower() not in _NOT_PASSED_ON}
                if request.method == "HEAD":
                    kept["Content-Length"] = found.headers.get("Content-Length", "0")
                return Answer(found.status, kept, await found.read())

        faults = self._faults[request.method]
        fault = faults.popleft() if faults else self._always or passed_on
        return await fault(request, forward)


async def passed_on(request: web.BaseRequest, forward: Forward) -> web.StreamResponse:
    """No fault."""
    answer = await forward()
    return web.Response(status=answer.status, headers=answer.headers, body=answer.body)


async def lose_answer(request: web.BaseRequest, forward: Forward) -> web.StreamResponse:
    """It is carried out; then the connection breaks."""
    await forward()
    return _break(request)


async def lose_request(request: web.BaseRequest, forward: Forward) -> web.StreamResponse:
    """The connection breaks, and nothing is carried out."""
    return _break(request)


async def never_answer(request: web.BaseRequest, forward: Forward) -> web.StreamResponse:
    """There is silence, until the client goes away."""
    await asyncio.Event().wait()
    raise AssertionError


async def cut_in_the_middle(request: web.BaseRequest, forward: Forward) -> web.StreamResponse:
    """Half of the answer's body comes."""
    answer = await forward()
    assert len(answer.body) > 1
    response = web.StreamResponse(status=answer.status, headers=answer.headers)
    response.content_length = len(answer.body)
    await response.prepare(request)
    await response.write(answer.body[: len(answer.body) // 2])
    return _break(request)


def status(code: int, name: str, message: str = "so it is") -> Fault:
    """It is refused with this status and code, and not carried out."""

    async def refuse(request: web.BaseRequest, forward: Forward) -> web.StreamResponse:
        return _error(code, name, message)

    return refuse


def done_but(code: int, name: str) -> Fault:
    """It is carried out, and answered with this error."""

    async def refuse(request: web.BaseRequest, forward: Forward) -> web.StreamResponse:
        await forward()
        return _error(code, name, "so it is")

    return refuse


def _error(code: int, name: str, message: str) -> web.Response:
    body = f"<?xml version='1.0'?><Error><Code>{name}</Code><Message>{message}</Message></Error>"
    return web.Response(status=code, body=body.encode(), content_type="application/xml")


def _break(request: web.BaseRequest) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    raise ConnectionResetError
