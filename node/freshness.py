"""A log's chain as new as it can be had without waiting long for it.

The view is nearly always new enough. When a caller has reason to think that it is not (it knows of
a newer chain, or was sent to where the log no longer is), the metadata store is asked; but with the
store away the old chain is still the better answer than none: whoever it sends to the wrong place
is told so there.
"""

from __future__ import annotations

import asyncio
from typing import Final

from metadata.records import LogRecord
from metadata.store import Version
from metadata.view import ClusterView
from sharedlog.errors import MetadataUnavailable

STORE_TIMEOUT_S: Final = 1.0


async def fresh_log(
    view: ClusterView, name: str, *, min_version: int = 0, refresh: bool = False
) -> tuple[LogRecord, Version]:
    """The log; from the store with `refresh`, or if the view's is older than `min_version`.

    Raises:
        InvalidLogName, LogNotFound, MetadataCorrupt. MetadataUnavailable: it is not in the view,
        and the store is away.
    """
    found = await view.fetch_log(name)
    if not refresh and found[1] >= min_version:
        return found
    try:
        async with asyncio.timeout(STORE_TIMEOUT_S):
            return await view.refresh_log(name)
    except (MetadataUnavailable, TimeoutError):
        return found
