"""Defects of what moves a log's history into the archive, and drops it (DESIGN.md §9)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, cast

from helpers.sim.mutants.registry import Patch, mutant

from loglet.archive.manifest import ObjectEntry, Write
from loglet.archive.manifests import Loaded, Manifests, _once
from loglet.archive.offload import Chain, Offloader, Step
from loglet.archive.writer import ObjectWriter, ReadCommitted, Wanted
from metadata.archive_rules import Committed
from metadata.records import LogRecord, LostRange
from node.archive.trimmer import Trimmer
from node.archive.work import History, Trimmed
from sequencer.state_recovery import StateRecovery
from sharedlog.errors import SharedLogError
from sharedlog.ids import Offset


@mutant(
    "an object is named before what the store has was verified",
    mix="archive damage",
    seeds=10,
    kinds="named",
)
def named_before_verified(patch: Patch) -> None:
    async def _verify(*_: Any) -> None:
        pass

    patch.setattr(ObjectWriter, "_verify", _verify)


@mutant(
    "the object is deleted when the swap's outcome is unknown (field note 48)",
    mix="archive troubles",
    seeds=20,
    kinds="named",
    first=32,
)
def deleted_on_unknown(patch: Patch) -> None:
    name = Offloader._name

    async def _name(
        self: Offloader,
        loaded: Loaded,
        record: LogRecord,
        entry: ObjectEntry,
        lost: list[LostRange],
    ) -> Loaded:
        try:
            return await name(self, loaded, record, entry, lost)
        except SharedLogError:
            await self._writer._store.delete([entry.key])
            raise

    patch.setattr(Offloader, "_name", _name)


@mutant(
    "log servers trim before the chain says so, and before it is archived",
    mix="archive calm",
    seeds=5,
    kinds="ahead",
)
def trimmed_before_archived(patch: Patch) -> None:
    trim = History.trim

    async def _trim(
        self: History, record: LogRecord, known: Committed, below: Offset, **rest: Any
    ) -> Trimmed:
        trimmer: Trimmer = self._trimmer
        await trimmer.trim(record, min(below, known.tail), since=Offset(0))
        return await trim(self, record, known, below, **rest)

    patch.setattr(History, "trim", _trim)


@mutant(
    "the chain says that it is archived before the manifest does",
    mix="archive calm",
    seeds=5,
    kinds="ahead",
)
def archived_end_before_the_manifest(patch: Patch) -> None:
    write = ObjectWriter.write
    step = Offloader.step

    async def _step(
        self: Offloader, chain: Chain, known: Committed, read: ReadCommitted, *, bytes_max: int
    ) -> Step:
        async def _write(writer: ObjectWriter, wanted: Wanted, reads: ReadCommitted) -> ObjectEntry:
            entry = await write(writer, wanted, reads)
            await chain.set_archived_end(Committed(known.segment_index, entry.end))
            return entry

        patch.setattr(ObjectWriter, "write", _write)
        return await step(self, chain, known, read, bytes_max=bytes_max)

    patch.setattr(Offloader, "step", _step)


@mutant(
    "no salt: who lost the swap takes the winner's manifest for its own (field note 49)",
    mix="archive calm",
    seeds=20,
    kinds="winners manifest named",
)
def no_salt(patch: Patch) -> None:
    def _write(self: Manifests) -> Write:
        return Write(salt="", now_ms=self._clock.now_ms())

    patch.setattr(Manifests, "write", _write)


@mutant(
    "an older manifest that somebody put back is built upon",
    mix="archive put back",
    seeds=20,
    kinds="manifest",
)
def older_manifest_built_upon(patch: Patch) -> None:
    current = Offloader._current

    async def _current(self: Offloader, record: LogRecord) -> Loaded:
        return await current(self, replace(record, archived_end=Offset(0), trimmed=record.start))

    patch.setattr(Offloader, "_current", _current)


@mutant(
    "a manifest is written over whatever is there",
    mix="archive calm",
    seeds=10,
    kinds="manifest",
)
def manifest_not_compared(patch: Patch) -> None:
    swap_in = Manifests.replace

    async def _replace(self: Manifests, before: Loaded | None, manifest: Any) -> Loaded:
        now = await self.load(manifest.log_id)
        return await swap_in(self, now, manifest)

    patch.setattr(Manifests, "replace", _replace)


@mutant(
    "a page is named before what the store has was read back",
    mix="archive damage",
    seeds=40,
    kinds="named unreadable",
    first=32,
)
def page_named_unread(patch: Patch) -> None:
    make_room = Manifests.make_room

    async def _make_room(self: Manifests, loaded: Loaded) -> Loaded:
        store = self._store
        written: dict[str, bytes] = {}

        class _Trusting:
            """Takes what it was given for what is there."""

            def __getattr__(self, name: str) -> Any:
                return getattr(store, name)

            async def upload(self, key: str, parts: AsyncIterator[bytes]) -> int:
                written[key] = b"".join([part async for part in parts])
                return await store.upload(key, _once(written[key]))

            async def read(self, key: str) -> bytes:
                return written[key]

        self._store = cast("Any", _Trusting())
        try:
            return await make_room(self, loaded)
        finally:
            self._store = store

    patch.setattr(Manifests, "make_room", _make_room)


@mutant(
    "who takes over reads no state below the log's start",
    mix="archive takeovers",
    seeds=20,
    kinds="fence producer state",
)
def state_below_the_start_is_gone(patch: Patch) -> None:
    scan = StateRecovery._scan

    def _scan(self: StateRecovery, record: LogRecord, start: Offset, end: Offset) -> Any:
        log_start = self._latest(record).start  # `record` has what a purge left
        if start < log_start and end - start != 1:
            start = min(log_start, end)
        return scan(self, record, start, end)

    patch.setattr(StateRecovery, "_scan", _scan)
