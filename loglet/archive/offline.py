"""Objects and manifests by their URLs, without a cluster: what they say, and whether it is so."""

from __future__ import annotations

import re
import secrets
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Final

from loglet.archive.config import ArchiveConfig
from loglet.archive.errors import CorruptObject, ManifestCorrupt
from loglet.archive.examine import Examined, examine, read_blocks
from loglet.archive.layout import is_page_key, log_prefix
from loglet.archive.manifest import Manifest, ObjectEntry
from loglet.archive.manifest_codec import decode_manifest
from loglet.archive.manifests import Manifests
from loglet.archive.object_format import block_at
from loglet.archive.object_store import ObjectStore, open_object_store
from sharedlog.batch import parse_placement
from sharedlog.clock import SystemClock
from sharedlog.errors import InvalidArgument, ObjectNotFound
from sharedlog.ids import Offset

MANIFEST: Final = "manifest"
_DIRECTORY: Final = re.compile(r"[0-9a-f]{32}/[0-9a-f]{16}")


@dataclass(frozen=True, slots=True)
class ObjectUrl:
    """An archive's root, and a key below it."""

    root: str
    key: str

    @property
    def is_manifest(self) -> bool:
        """By its name."""
        return self.key.rpartition("/")[2] == MANIFEST


def split_url(url: str) -> ObjectUrl:
    """The root and the key of an object, or a manifest, as it lies in an archive or elsewhere.

    Raises:
        InvalidArgument: it is none.
    """
    if "://" not in url:
        url = f"file://{Path(url).resolve()}"
    parts = url.split("/")
    name = parts[-1]
    if not name:
        raise InvalidArgument(f"{url!r} is a folder: the URL of an object or a manifest is needed")
    in_archive = _DIRECTORY.fullmatch("/".join(parts[-3:-1])) is not None
    count = 3 if in_archive else 1
    if name == MANIFEST and not in_archive:
        raise InvalidArgument(
            f"{url!r}: a manifest is read where it lies, at .../CLUSTER/LOG/manifest"
        )
    if is_page_key(name):
        raise InvalidArgument(f"{url!r} is a page of a manifest: name the manifest beside it")
    return ObjectUrl("/".join(parts[:-count]), "/".join(parts[-count:]))


@asynccontextmanager
async def opened(url: ObjectUrl, settings: ArchiveConfig) -> AsyncIterator[ObjectStore]:
    """The store that it lies in."""
    store = open_object_store(url.root, settings, clock=SystemClock(), rng=Random(), new_id=_new_id)
    try:
        yield store
    finally:
        await store.close()


def _new_id() -> str:
    return secrets.token_hex(16)


@dataclass(slots=True)
class Report:
    """What was found out, as JSON values, and what is wrong."""

    said: dict[str, object]
    problems: list[str] = field(default_factory=list)


async def read_manifest(store: ObjectStore, key: str) -> Manifest:
    """The manifest under `key`.

    Raises:
        ObjectNotFound, ManifestCorrupt, ArchiveUnavailable.
    """
    found = await store.read_versioned(key)
    if found is None:
        raise ObjectNotFound(f"{store.url}/{key} is not there", key=key)
    return decode_manifest(key, found.data)


async def entries_of(store: ObjectStore, manifest: Manifest) -> AsyncIterator[ObjectEntry]:
    """Every object that it names, in order.

    Raises:
        ObjectNotFound, ManifestCorrupt, ArchiveUnavailable.
    """
    manifests = Manifests(
        store, cluster_id=manifest.cluster_id, clock=SystemClock(), new_id=_new_id
    )
    async for entry in manifests.entries(manifest):
        yield entry


async def inspect_object(store: ObjectStore, key: str, *, blocks: bool, verify: bool) -> Report:
    """What an object's footer and index say; `verify`: whether all of it is sound.

    Raises:
        CorruptObject: not even the footer is. ObjectNotFound, ArchiveUnavailable.
    """
    found = await examine(store, key)
    footer = found.footer
    report = Report(
        {
            "kind": "object",
            "url": f"{store.url}/{key}",
            "cluster_id": footer.cluster_id.hex(),
            "log_id": f"{footer.log_id:016x}",
            "object_id": footer.object_id.hex(),
            "first": footer.first,
            "end": footer.end,
            "batches": footer.batch_count,
            "records": footer.record_count,
            "created_ms": footer.created_ms,
            "bytes": found.size,
            "block_count": footer.block_count,
        }
    )
    if blocks:
        report.said["blocks"] = [it._asdict() for it in found.blocks]
    if verify:
        report.problems += await problems_of(store, key, found)
    return report


async def problems_of(store: ObjectStore, key: str, found: Examined) -> list[str]:
    """What is wrong within an object: every block and batch is read."""
    problems = []
    batches = records = 0
    # Each block by itself, so that one damage does not hide the next.
    for number in range(len(found.blocks)):
        run = found.blocks[number : number + 1]
        try:
            async with aclosing(read_blocks(store, key, run)) as blocks:
                async for block, placed in blocks:
                    batches += len(placed)
                    records += block.end - block.first
        except CorruptObject as error:
            problems.append(str(error))
    if not problems and batches != found.footer.batch_count:
        problems.append(f"it has {batches} batches, {found.footer.batch_count} by its footer")
    if not problems and records != found.footer.record_count:
        problems.append(f"it has {records} records, {found.footer.record_count} by its footer")
    return problems


async def inspect_manifest(store: ObjectStore, key: str, *, objects: bool, verify: bool) -> Report:
    """What a manifest says; `verify`: whether all objects that it names are there and sound.

    Raises:
        ManifestCorrupt, ObjectNotFound, ArchiveUnavailable.
    """
    manifest = await read_manifest(store, key)
    settings = manifest.settings
    report = Report(
        {
            "kind": MANIFEST,
            "url": f"{store.url}/{key}",
            "log": settings.name,
            "cluster_id": manifest.cluster_id,
            "log_id": f"{manifest.log_id:016x}",
            "replicas": settings.replicas,
            "write_quorum": settings.write_quorum,
            "revision": manifest.revision,
            "changed_ms": manifest.changed_ms,
            "start": manifest.start,
            "end": manifest.end,
            "pages": len(manifest.pages),
            "object_count": len(manifest.entries) + sum(it.objects for it in manifest.pages),
            "bytes": sum(it.size for it in manifest.entries)
            + sum(it.size for it in manifest.pages),
            "lost": [[it.first, it.end] for it in manifest.lost],
            "forks": list(manifest.forks),
        }
    )
    listed: list[dict[str, object]] = []
    try:
        async for entry in entries_of(store, manifest):
            if objects:
                names = entry.__struct_fields__
                listed.append({name: getattr(entry, name) for name in names})
            if verify:
                is_own = entry.key.startswith(log_prefix(manifest.cluster_id, manifest.log_id))
                told = await _problems_of_entry(store, entry, is_own=is_own)
                report.problems += [f"{entry.key}: {problem}" for problem in told]
    except (ManifestCorrupt, ObjectNotFound) as error:
        report.problems.append(f"a page: {error}")
    if objects:
        report.said["objects"] = listed
    return report


async def _problems_of_entry(store: ObjectStore, entry: ObjectEntry, *, is_own: bool) -> list[str]:
    try:
        found = await examine(store, entry.key)
        if not found.footer.holds(entry.first, entry.end, entry.records, is_own=is_own):
            return [f"it holds {found.footer.range_text}, by its footer"]
        if found.size != entry.size:
            return [f"it has {found.size} bytes, {entry.size} by the manifest"]
        return await problems_of(store, entry.key, found)
    except ObjectNotFound:
        return ["it is not there"]
    except CorruptObject as error:
        return [str(error)]


async def archived_batches(
    store: ObjectStore, url: ObjectUrl, start: Offset, end: Offset | None
) -> AsyncGenerator[list[bytes], None]:
    """Placed batches of an object, or of all that a manifest names, that overlap [start, end).

    A block's at a time, each checked, in order.

    Raises:
        CorruptObject, ManifestCorrupt, ObjectNotFound, ArchiveUnavailable.
    """
    if not url.is_manifest:
        async with aclosing(_object_batches(store, url.key, start, end)) as parts:
            async for part in parts:
                yield part
        return
    manifest = await read_manifest(store, url.key)
    start = max(start, manifest.start)
    async for entry in entries_of(store, manifest):
        if end is not None and entry.first >= end:
            return
        if entry.end > start:
            # Of a log that was forked off within an object only what lies below the fork counts.
            below = entry.end if end is None else min(end, entry.end)
            async with aclosing(_object_batches(store, entry.key, start, below)) as parts:
                async for part in parts:
                    yield [it for it in part if parse_placement(it).first < entry.end]


async def _object_batches(
    store: ObjectStore, key: str, start: Offset, end: Offset | None
) -> AsyncGenerator[list[bytes], None]:
    found = await examine(store, key)
    blocks = [
        block
        for block in found.blocks[block_at(found.blocks, start) :]
        if end is None or block.first < end
    ]
    async with aclosing(read_blocks(store, key, blocks)) as parts:
        async for _, batches in parts:
            yield batches
