"""Waiting until every replica of a log holds all that it should."""

from __future__ import annotations

import asyncio

from sharedlog import Cluster

SOON = {"SHAREDLOG_CONTROLLER__BACKFILL_EVERY_S": "1"}
"""Settings for nodes: a hole in an open segment is made good soon, and not after a minute.

A replica that was slow or dead for a moment goes on at the committed tail, and what it missed is
copied to it later.
"""


async def at_full_strength(connected: Cluster, name: str, *, within_s: float = 60.0) -> None:
    """Return when `log check` finds nothing; an error tells what it found if it always does."""
    found: list[str] = []
    try:
        async with asyncio.timeout(within_s):
            while True:
                checked = [it async for it in connected.admin.check(name)]
                found = [str(finding) for it in checked for finding in it.findings]
                if not found:
                    return
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise AssertionError(f"log {name} is not at full strength: {found}") from None
