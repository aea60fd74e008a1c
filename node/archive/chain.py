"""A log's record as the offload sees it: in the metadata store, by the log's name and id."""

from __future__ import annotations

from collections.abc import Callable

from metadata.archive_registry import set_archived_end
from metadata.archive_rules import Committed
from metadata.records import LogRecord
from metadata.registry import fetch_log
from metadata.store import MetadataStore
from sharedlog.errors import LogNotFound
from sharedlog.ids import LogId


class StoredChain:
    """See `loglet.archive.offload.Chain`."""

    def __init__(
        self,
        store: MetadataStore,
        name: str,
        log_id: LogId,
        *,
        new_id: Callable[[], str],
    ) -> None:
        self._store = store
        self._name = name
        self._log_id = log_id
        self._new_id = new_id

    async def fetch(self) -> LogRecord:
        """See `Chain.fetch`."""
        record, _ = await fetch_log(self._store, self._name)
        if record.log_id != self._log_id:
            raise LogNotFound(name=self._name)
        return record

    async def set_archived_end(self, known: Committed) -> LogRecord:
        """See `Chain.set_archived_end`."""
        record, _ = await set_archived_end(
            self._store,
            self._name,
            self._log_id,
            known.tail,
            nonce=self._new_id(),
            committed=known,
        )
        return record
