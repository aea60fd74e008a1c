"""Judges the archive, the chain and the log servers against each other, at each change of any.

| kind | what must hold |
|---|---|
| `manifest` | it is written upon the newest one, and goes on from it; it is never deleted |
| `named` | what a manifest names is there, whole, and of that range, when it is written and later |
| `ahead` | the chain is not ahead of the manifest, log servers are not ahead of the chain: |
|   | start <= trimmed <= max(archived_end, start), archived_end <= the manifest's end, and a log |
|   | server's local start <= trimmed; no manifest is ahead of the chain with its start |
| `archived` | what is archived is what the log has there, and in the end all is that was appended |

The newest manifest is the last that any node has written, whatever became of it in the store. What
objects hold is kept here as they are named, so that it can be compared with the log in the end.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator

from helpers.history import Final
from helpers.history_log import Violation
from helpers.sim.cluster import SimCluster
from helpers.sim.log_store import SimDisk
from helpers.sim.object_store import SimObjects

from loglet.archive.errors import CorruptObject, ManifestCorrupt
from loglet.archive.layout import manifest_key
from loglet.archive.manifest import Manifest, ObjectEntry
from loglet.archive.manifest_codec import decode_manifest, decode_page
from loglet.archive.object_format import decode_footer, decode_index, split_block
from metadata.encoding import decode_log
from metadata.records import LOGS_PREFIX, LogRecord
from metadata.store import Changed, Deleted
from sharedlog.batch import Record, decode_placed, parse_placement
from sharedlog.errors import CorruptBatch
from sharedlog.ids import LogId, LogletId, Offset


class ArchiveWatch:
    """See the module's docstring. `begin` it before the first log is made."""

    def __init__(
        self,
        cluster: SimCluster,
        violations: list[Violation],
        on_record: Callable[[LogRecord], None],
    ) -> None:
        assert cluster.objects is not None
        self._cluster = cluster
        self._objects: SimObjects = cluster.objects
        self._violations = violations
        self._on_record = on_record
        self._records: dict[LogId, LogRecord] = {}
        self._newest: dict[LogId, Manifest] = {}
        self._named: dict[LogId, list[ObjectEntry]] = defaultdict(list)  # by the newest, in order
        self._held: dict[str, list[Record]] = {}  # by key, of all objects that were ever named
        self._written: dict[LogId, list[Manifest]] = defaultdict(list)
        self._tampering = False  # it is no node that changes a manifest now

    def begin(self) -> None:
        """Look at every change from now on."""
        self._cluster.metadata.on_change = self._on_metadata
        self._cluster.on_trimmed = self._on_trimmed
        self._objects.on_change = self._on_object

    def newest(self, log_id: LogId) -> Manifest | None:
        """The last manifest that a node has written."""
        return self._newest.get(log_id)

    def written(self, log_id: LogId) -> list[Manifest]:
        """All that nodes have written, in order."""
        return self._written[log_id]

    def put(self, key: str, data: bytes) -> None:
        """Have no node, but a person, change a manifest."""
        self._tampering = True
        self._objects.put(key, data)
        self._tampering = False

    def _wrong(self, kind: str, message: str) -> None:
        self._cluster.world.trace.add(f"VIOLATION {kind} {message}")
        self._violations.append(Violation(kind, message))

    # The chain.

    def _on_metadata(self, change: Changed | Deleted) -> None:
        if isinstance(change, Deleted) or not change.entry.key.startswith(LOGS_PREFIX):
            return
        record = decode_log(change.entry)
        self._records[record.log_id] = record
        self._on_record(record)
        start, trimmed, archived_end = record.start, record.trimmed, record.archived_end
        if not start <= trimmed <= max(archived_end, start):
            message = f"{record.name}: start {start}, trimmed {trimmed}, archived {archived_end}"
            self._wrong("ahead", message)
        newest = self._newest.get(record.log_id)
        end = 0 if newest is None else newest.end
        if archived_end > end:
            message = f"{record.name}: the chain says {archived_end} is archived"
            self._wrong("ahead", f"{message}, the manifest ends at {end}")

    # Log servers.

    def _on_trimmed(self, disk: SimDisk, loglet: LogletId, local_start: Offset) -> None:
        record = self._records[loglet.log_id]
        if local_start > record.trimmed:
            message = f"disk {disk.name} has trimmed {loglet} up to {local_start}"
            self._wrong("ahead", f"{message}, the chain says {record.trimmed}")

    # The archive.

    def _on_object(self, key: str, data: bytes | None) -> None:
        if key.endswith("/manifest"):
            log_id = LogId(int(key.split("/")[-2], 16))
            if not self._tampering:
                self._on_manifest(key, log_id, data)
            return
        for manifest in self._newest.values():
            named = {page.key for page in manifest.pages}
            named |= {entry.key for entry in self._named[manifest.log_id]}
            if key in named and (data is None or not self._is_same(key, data)):
                what = "deleted" if data is None else "overwritten"
                self._wrong("named", f"{key} is {what}, and the manifest names it")

    def _is_same(self, key: str, data: bytes) -> bool:
        held = self._held.get(key)
        return held is None or held == _records_of(data)

    def _on_manifest(self, key: str, log_id: LogId, data: bytes | None) -> None:
        if data is None:
            self._wrong("manifest", f"{key} is deleted")
            return
        try:
            manifest = decode_manifest(key, data)
            entries = list(self._entries(manifest))
        except (ManifestCorrupt, KeyError) as error:
            self._wrong("named", f"{key}: {type(error).__name__} {error}")
            return
        before = self._newest.get(log_id)
        self._check_next(key, before, manifest)
        start = self._records[log_id].start
        if manifest.start > start:
            self._wrong("ahead", f"{key} starts at {manifest.start}, the chain at {start}")
        kept = [it.key for it in self._named[log_id] if it.end > manifest.start]
        if [it.key for it in entries][: len(kept)] != kept:
            self._wrong("manifest", f"{key}, revision {manifest.revision}, forgets what was named")
        known = {it.key for it in self._named[log_id]}
        for entry in entries:
            if entry.key not in known:
                self._look_into(manifest, entry)
        self._newest[log_id], self._named[log_id] = manifest, entries
        self._written[log_id].append(manifest)

    def _check_next(self, key: str, before: Manifest | None, manifest: Manifest) -> None:
        revision, start, end = 0, 0, 0
        if before is not None:
            revision, start, end = before.revision, before.start, before.end
        if manifest.revision != revision + 1 or manifest.start < start or manifest.end < end:
            now = f"revision {manifest.revision}, [{manifest.start}, {manifest.end})"
            self._wrong("manifest", f"{key}: {now} follows {revision}, [{start}, {end})")

    def _entries(self, manifest: Manifest) -> Iterator[ObjectEntry]:
        for page in manifest.pages:
            held = decode_page(page.key, self._objects.objects[page.key].data)
            yield from (it for it in held if it.end > manifest.start)
        yield from manifest.entries

    def _look_into(self, manifest: Manifest, entry: ObjectEntry) -> None:
        """An object that is named for the first time, or is to be looked at again."""
        found = self._objects.objects.get(entry.key)
        if found is None:
            self._wrong("named", f"{entry.key} is named, and is not there")
            return
        try:
            records = _records_of(found.data)
        except CorruptBatch as error:
            self._wrong("named", f"{entry.key} is named: {error}")
            return
        self._held[entry.key] = records
        footer = decode_footer(found.data, len(found.data))
        told = (footer.first, footer.end, footer.object_bytes, footer.record_count, footer.log_id)
        if told != (entry.first, entry.end, entry.size, entry.records, manifest.log_id):
            self._wrong("named", f"{entry.key} is {told}, named as {entry}")

    # In the end.

    def judge(self, log_id: LogId, final: Final, upto: int) -> None:
        """What is archived, against the log; all below `upto` should be."""
        manifest, record = self._newest.get(log_id), self._records[log_id]
        end = 0 if manifest is None else manifest.end
        if record.archived_end < upto:
            message = f"{record.name} is archived up to {record.archived_end} of {upto}"
            self._wrong("archived", message)
        if manifest is None:
            return
        key = manifest_key(manifest.cluster_id, log_id)
        found = self._objects.objects.get(key)
        if found is None or decode_manifest(key, found.data) != manifest:
            self._wrong("manifest", f"{key} is not what was written last")
        expected = {it.offset: (it.value, it.timestamp_ms, it.key) for it in final.records}
        archived: set[int] = set()
        for entry in self._named[log_id]:
            self._look_into(manifest, entry)
            for it in self._held.get(entry.key, ()):
                archived.add(it.offset)
                there = expected.get(it.offset)
                if there != (it.value, it.timestamp_ms, it.key):
                    message = f"{it.offset} is {it.value!r} in {entry.key}"
                    self._wrong("archived", f"{message}, the log has {there}")
        missing = [it for it in expected if manifest.start <= it < end and it not in archived]
        if missing:
            self._wrong("archived", f"{record.name}: {missing[0]} is in no object of [0, {end})")


def _records_of(data: bytes) -> list[Record]:
    """What an object holds. Raises `CorruptBatch`."""
    footer = decode_footer(data, len(data))
    index = data[footer.index_position : footer.index_position + footer.index_bytes]
    records: list[Record] = []
    at = footer.first
    for block in decode_index(index, footer):
        for placed in split_block(data[block.position : block.position + block.size], block):
            placement = parse_placement(placed)
            if placement.first < at:
                raise CorruptObject(f"{placement.first} follows {at}")
            at = Offset(placement.end)
            records += decode_placed(placed)
    return records
