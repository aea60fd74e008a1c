"""The library's client for S3: loaded late, and told what the settings say.

Nothing else here knows how the library is set up. What it is told, and why:

- no repetitions: the sender knows what is safe to repeat, and waits by the given clock;
- checksums only where they are required: servers that are not Amazon's refuse what they do not
  know, and `S3Values` sends its own where they are taken;
- the objects of a listing are read by `listing.py`, as the library is slow at it;
- no `Expect: 100-continue`: aiohttp would wait for ever for a server that does not know it.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Final, cast

from metadata.s3 import listing
from metadata.s3.settings import S3Settings

if TYPE_CHECKING:
    from types_aiobotocore_s3.client import S3Client

_LOADED: Final = (
    "aiobotocore.config",
    "aiobotocore.session",
    "botocore.handlers",
    "metadata.s3.errors",
)
_REGION_OF_OTHERS: Final = "us-east-1"
"""What servers that know no regions expect in signatures."""


@cache
def _loader() -> object:
    """Reads the library's descriptions of services, and keeps them.

    One for all clients of a process: what the second would read again takes 0.2 s.
    """
    from aiobotocore.session import get_session

    found: object = get_session().get_component("data_loader")
    return found


async def open_client(settings: S3Settings, stack: AsyncExitStack) -> S3Client:
    """A client, which ends with `stack`. It connects, and looks for credentials, when it is used.

    **Cancellation:** there is no client then.
    """
    # Some 0.3 s of reading files, in which the event loop goes on.
    await asyncio.to_thread(lambda: [import_module(name) for name in _LOADED])
    from aiobotocore.config import AioConfig
    from aiobotocore.session import get_session
    from botocore.handlers import add_expect_header

    path = settings.addressing == "path" or (settings.addressing == "auto" and settings.endpoint)
    s3: dict[str, object] = {"addressing_style": "path" if path else "virtual"}
    if not settings.endpoint.startswith("http:"):
        # TLS and our checksum protect the body; its SHA-256 would hold up the loop.
        s3["payload_signing_enabled"] = False
    config = AioConfig(
        s3=s3,
        connect_timeout=settings.connect_timeout_s,
        read_timeout=settings.read_timeout_s,
        max_pool_connections=settings.connections_max,
        retries={"total_max_attempts": 1, "mode": "standard"},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        user_agent_extra="sharedlog",
        warm_up_loader_caches=True,
    )
    session = get_session()
    session.register_component("data_loader", _loader())
    made = session.create_client(
        "s3",
        region_name=settings.region or (_REGION_OF_OTHERS if settings.endpoint else None),
        endpoint_url=settings.endpoint or None,
        config=config,
    )
    client = cast("S3Client", await stack.enter_async_context(made))
    client.meta.events.unregister("before-call.s3", add_expect_header)
    client.meta.events.register(listing.EVENT, listing.take_objects)
    return client
