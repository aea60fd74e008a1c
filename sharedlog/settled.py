"""Waiting until a cluster has nothing left to mend: between two steps of a rolling restart.

A cluster is *settled* when `status` tells no problem and nothing is handed over or failed over, in
two looks in a row: one look may fall between what ends and what is noticed next.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from sharedlog.clock import Clock, SystemClock
from sharedlog.errors import DeadlineExceeded, SharedLogError

if TYPE_CHECKING:
    from sharedlog.cluster import Cluster
    from sharedlog.v1 import cluster_pb2

LOOK_EVERY_S: Final = 0.25
LOOKS: Final = 2
"""So many in a row must find nothing."""

_MOVING: Final = frozenset(("hand-over", "failover"))
_SYSTEM_CLOCK: Final = SystemClock()


async def wait_settled(
    cluster: Cluster,
    *,
    timeout_s: float,
    say: Callable[[str], None] = lambda _: None,
    clock: Clock = _SYSTEM_CLOCK,
) -> cluster_pb2.GetStatusResponse:
    """Wait until the cluster is settled; its status then. `say` is told what is waited for.

    Raises:
        DeadlineExceeded: it is not settled in time; the message says what is wrong still.

    **Cancellation:** safe.
    """
    found, said, settled = "no node has answered", "", 0
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                try:
                    status = await cluster.status()
                except SharedLogError as error:
                    if not error.retryable:
                        raise
                    found, settled = str(error), 0
                else:
                    found = what_moves(status)
                    settled = 0 if found else settled + 1
                    if settled == LOOKS:
                        return status
                if found != said and found:
                    say(found)
                    said = found
                await clock.sleep(LOOK_EVERY_S)
    except TimeoutError:
        raise DeadlineExceeded(
            f"not settled after {timeout_s:g} s: {found or 'a look in between found nothing'}"
        ) from None


def what_moves(status: cluster_pb2.GetStatusResponse) -> str:
    """What is to be waited for, in one line; "" if nothing is."""
    told = [f"{it.subject} {it.message}" for it in status.problems]
    told += [f"{it.kind} of {it.subject}" for it in status.work if it.kind in _MOVING]
    if not told:
        return ""
    return told[0] + (f", and {len(told) - 1} more" if len(told) > 1 else "")
