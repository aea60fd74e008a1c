"""Which open segments deserve a look: asked in bulk, for nearly all logs of a cluster are idle.

A log server tells what it knows of a thousand loglets in one answer. From those answers it can be
seen of which open segments more is committed by now than was found complete the last time, and
which are sealed although their chain has not moved; only those are looked at one by one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Final

from metadata.records import LogRecord, Replica
from node.controller.core import Picture, condition_of
from node.controller.index import Store
from node.peers import Peers
from sharedlog.ids import LogId, LogletId, Offset

LOGLETS_PER_CALL_MAX: Final = 1_000

Known = dict[LogletId, tuple[int, bool]]
"""By loglet: the highest committed tail that is known, and whether some replica has sealed it."""


class OpenLooks:
    """See the module's docstring."""

    def __init__(self, *, peers: Peers) -> None:
        self._peers = peers

    async def due(
        self, picture: Picture, is_due: Callable[[LogRecord, Offset], bool]
    ) -> Sequence[str]:
        """Names of the logs whose open segments are sealed, or due by their committed tail."""
        wanted: dict[Store, list[str]] = defaultdict(list)
        for store, use in picture.index.stores().items():
            if use.open_logs and condition_of(store, picture) in {"well", "draining"}:
                wanted[store].extend(sorted(use.open_logs))
        known: Known = {}
        for store, names in wanted.items():
            for at in range(0, len(names), LOGLETS_PER_CALL_MAX):
                part = names[at : at + LOGLETS_PER_CALL_MAX]
                await self._ask(store, _open_loglets(part, picture), known)
        return [
            name
            for name, loglet in _open_loglets(picture.index.names(), picture).items()
            if loglet in known and _deserves(name, known[loglet], picture, is_due)
        ]

    async def _ask(self, store: Store, loglets: dict[str, LogletId], known: Known) -> None:
        node_id, storage_id = store
        replica = Replica(node_id=node_id, storage_id=storage_id)
        for status in await self._peers.ask_loglets(replica, list(loglets.values())) or ():
            loglet = LogletId(LogId(status.loglet.log_id), status.loglet.segment_index)
            committed, sealed = known.get(loglet, (0, False))
            known[loglet] = max(committed, status.committed_tail), sealed or status.sealed


def _deserves(
    name: str,
    found: tuple[int, bool],
    picture: Picture,
    is_due: Callable[[LogRecord, Offset], bool],
) -> bool:
    use = picture.index.log(name)
    committed, sealed = found
    return use is not None and (sealed or is_due(use.record, Offset(committed)))


def _open_loglets(names: Sequence[str], picture: Picture) -> dict[str, LogletId]:
    """The open loglets of logs as they are now."""
    found = {}
    for name in names:
        use = picture.index.log(name)
        if use is not None:
            found[name] = use.record.loglet(use.record.open_segment)
    return found
