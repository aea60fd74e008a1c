"""An error of every class there is, and a server and a client to send them between."""

from __future__ import annotations

import asyncio
import inspect
import types
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Union, get_args, get_origin, get_type_hints

import loglet.service  # every package that defines errors must be loaded
import metadata.errors
import node.errors
import sequencer.service
from sharedlog.errors import SharedLogError
from sharedlog.rpc.grpc_client import GrpcTransport
from sharedlog.rpc.grpc_server import GrpcServer
from sharedlog.rpc.transport import Method

_LOADED = (loglet.service, metadata.errors, node.errors, sequencer.service)

BYTES: Method[bytes, bytes] = Method("/sharedlog.v1.TestService/Bytes", bytes, bytes, bytes, bytes)


def _walk(root: type[SharedLogError]) -> Iterator[type[SharedLogError]]:
    yield root
    for child in root.__subclasses__():
        yield from _walk(child)


CLASSES = sorted(
    (found for found in _walk(SharedLogError) if not found.__name__.startswith("_")),
    key=lambda found: found.__name__,
)
"""Those with an underscore never leave their module."""


def example(cls: type[SharedLogError]) -> SharedLogError:
    """One instance, each argument made up from its type."""
    hints = get_type_hints(cls.__init__)
    arguments: dict[str, Any] = {}
    for name in inspect.signature(cls).parameters:
        arguments[name] = _made_up(hints[name])
    return cls(**arguments)


def _made_up(hint: Any) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        hint = get_args(hint)[0]
    return {str: 'text with "quotes" and ü', int: 2**60, float: 0.25, bool: True}[hint]


async def with_grpc(
    add: Callable[[GrpcServer], None],
    scenario: Callable[[GrpcTransport, str], Awaitable[None]],
) -> None:
    """Run a scenario with a client and the address of a server that serves what was added."""
    server, transport = GrpcServer(), GrpcTransport()
    add(server)
    address = f"127.0.0.1:{await server.start('127.0.0.1:0')}"
    try:
        async with asyncio.timeout(20):
            await scenario(transport, address)
    finally:
        await transport.close()
        await server.stop(grace_s=0)
