"""What of a log is archived: the manifest, and what may follow what (DESIGN.md §9).

A manifest names the objects that hold [start, end) of a log, adjoining and in order, and what else
is needed to make a log of them again. It is changed by compare-and-swap alone; each change makes a
new value with the next revision.

**Size.** A history without end has objects without end, and all of a manifest is written with each
new one. So the older half of a long list goes into a *page*, an object of its own that is never
changed; the manifest names the pages. With `ENTRIES_MAX` entries of some 200 bytes a write is at
most 200 kB, and a page is made every `PAGE_ENTRIES` objects.

**Salt.** Each write has random bytes. Two different writers may want the same change, and a store
that tells versions apart by a hash of the value would let both win (field note 49).

Invariants, checked by `check_manifest`: pages, then entries, adjoin from `start` (which may lie
within the first) to `end`; nothing is empty; timestamps do not run back; losses lie below `end`.

Pure: no I/O, no clock, no randomness of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final, NamedTuple

import msgspec
from msgspec import structs

from loglet.archive.layout import directory_of
from metadata.records import LostRange, Spread
from sharedlog.ids import LogId, Offset

ENTRIES_MAX: Final = 1_000
PAGE_ENTRIES: Final = 500


class ObjectEntry(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """An archived object; an array in JSON, to which a later version may add."""

    key: str  # below the archive's root: a fork names objects of another log
    first: Offset
    end: Offset  # exclusive; the object may go on, when the log was forked off there
    size: int  # bytes
    records: int
    first_ms: int
    last_ms: int


class PageEntry(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """An object that holds older entries; an array in JSON likewise."""

    key: str
    first: Offset
    end: Offset
    objects: int
    size: int  # of those objects together, bytes
    first_ms: int
    last_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSettings:
    """How to make the log again."""

    name: str
    replicas: int
    write_quorum: int
    spread: Spread = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """See the module's docstring."""

    cluster_id: str  # 32 hex digits
    log_id: LogId
    settings: LogSettings
    revision: int  # counts the changes, from 1
    salt: str  # random, of this write
    changed_ms: int
    start: Offset  # what lies below was purged
    end: Offset  # archived up to here, exclusive
    pages: tuple[PageEntry, ...] = ()
    entries: tuple[ObjectEntry, ...] = ()
    lost: tuple[LostRange, ...] = ()  # accepted losses below `end`, in order
    # Directories of other logs whose manifests name objects of this one: `<cluster id>/<log id>`.
    forks: tuple[str, ...] = ()
    # Those of the logs whose objects this one names, if it was forked or restored: all of them have
    # it in their `forks`.
    origins: tuple[str, ...] = ()
    # Index of the segment that was the log's open one when it was archived up to `end`: what was
    # committed then stays in the log, unless that segment is ended below by an accepted loss.
    segment: int = 0

    @property
    def is_held(self) -> bool:
        """It is no log's: see `held`."""
        return not self.settings.name


@dataclass(frozen=True, slots=True)
class Write:
    """A new manifest is to be written, in the place of that with the revision before."""

    salt: str
    now_ms: int


def new_manifest(
    cluster_id: str, log_id: LogId, settings: LogSettings, start: Offset, write: Write
) -> Manifest:
    """The first of a log whose records below `start` are gone: nothing is archived yet."""
    return Manifest(
        cluster_id=cluster_id,
        log_id=log_id,
        settings=settings,
        revision=1,
        salt=write.salt,
        changed_ms=write.now_ms,
        start=start,
        end=start,
    )


def held(cluster_id: str, log_id: LogId, write: Write) -> Manifest:
    """What holds the place of a fork's manifest that is not there yet, and may never be.

    Whoever is making the fork must replace this very one, so what it has read before counts for
    nothing: it reads again which objects there are to be named.
    """
    nothing = LogSettings(name="", replicas=0, write_quorum=0)
    return new_manifest(cluster_id, log_id, nothing, Offset(0), write)


class NotNext(Exception):
    """An object does not go on where the manifest ends: somebody else archived meanwhile."""


def extended(
    manifest: Manifest,
    entry: ObjectEntry,
    lost: Sequence[LostRange],
    write: Write,
    *,
    segment: int = 0,
) -> Manifest:
    """With one more object; `lost` are the accepted losses in its range.

    All of it was committed when the log's open segment was `segment`.

    Objects begin and end where batches do. Only the first of a manifest may begin below its end,
    which is then where the log starts: a purge ends anywhere.

    Raises:
        NotNext: it does not begin where the manifest ends.
    """
    is_first = not manifest.pages and not manifest.entries
    if not (entry.first == manifest.end or (is_first and entry.first < manifest.end < entry.end)):
        raise NotNext(f"[{entry.first}, {entry.end}) does not go on at {manifest.end}")
    before: tuple[PageEntry | ObjectEntry, ...] = (*manifest.pages, *manifest.entries)
    if before:
        # A sequencer's time never runs back, but a manifest must not depend on that.
        first_ms = max(entry.first_ms, before[-1].last_ms)
        entry = structs.replace(entry, first_ms=first_ms, last_ms=max(entry.last_ms, first_ms))
    return _next(
        manifest,
        write,
        end=entry.end,
        entries=(*manifest.entries, entry),
        lost=(*manifest.lost, *lost),
        segment=segment,
    )


def purged(manifest: Manifest, start: Offset, write: Write) -> Manifest:
    """What lies below `start` is gone for good: objects wholly below are not named any more.

    Below the present start nothing is changed but the revision: whoever is about to change what was
    there before can't any more. Beyond `end` the archive is empty afterwards, and
    goes on at `start`. The objects that the old value named and the new one does not are to be
    deleted after the new one was written.
    """
    start = max(start, manifest.start)
    return _next(
        manifest,
        write,
        start=start,
        end=max(manifest.end, start),
        pages=tuple(it for it in manifest.pages if it.end > start),
        entries=tuple(it for it in manifest.entries if it.end > start),
        lost=tuple(it for it in manifest.lost if it.end > start),
    )


class Cut(NamedTuple):
    """Where a history is cut: at the end of a batch, or of the whole."""

    end: Offset
    last_ms: int  # of the last batch below


def cut_entries(entries: Iterable[ObjectEntry], cut: Cut) -> list[ObjectEntry]:
    """What of `entries` lies below the cut; the last may be a part of an object."""
    found = []
    for entry in entries:
        if entry.first >= cut.end:
            break
        if entry.end > cut.end:
            entry = structs.replace(  # noqa: PLW2901 - the same one, shorter
                entry,
                end=cut.end,
                records=min(entry.records, cut.end - entry.first),
                last_ms=min(max(cut.last_ms, entry.first_ms), entry.last_ms),
            )
        found.append(entry)
    return found


def cut_pages(manifest: Manifest, end: Offset) -> tuple[list[PageEntry], PageEntry | None]:
    """The pages that lie below `end`, and the one that reaches across it."""
    whole = [it for it in manifest.pages if it.end <= end]
    across = [it for it in manifest.pages if it.first < end < it.end]
    return whole, across[0] if across else None


def forked(origin: Manifest, cut: Cut, entries: Iterable[ObjectEntry], fork: Manifest) -> Manifest:
    """The manifest `fork`, which is new and empty, with what `origin` has below the cut.

    `entries` are those behind the pages that lie below it: those of the page across it, or of the
    manifest. The objects stay the origin's, or those of its own origins. All of them are told of
    the fork before this is written (`with_fork`): who deletes objects asks the forks.
    """
    assert cut.end > origin.start or cut.end == origin.end, "there is something to be named"
    pages, _ = cut_pages(origin, cut.end)
    made = replace(
        fork,
        start=origin.start,
        end=cut.end,
        origins=(directory_of(origin.cluster_id, origin.log_id), *origin.origins),
        pages=tuple(pages),
        entries=tuple(cut_entries(entries, cut)),
        lost=tuple(
            replace(it, end=min(it.end, cut.end)) for it in origin.lost if it.first < cut.end
        ),
    )
    check_manifest(made)
    return made


def with_fork(manifest: Manifest, directory: str, write: Write) -> Manifest:
    """Whose objects are named by the manifest in `directory` too; the very same if it says so."""
    if directory in manifest.forks:
        return manifest
    return _next(manifest, write, forks=(*manifest.forks, directory))


def wants_page(manifest: Manifest) -> bool:
    """Its list of entries is long: make a page of the first `PAGE_ENTRIES`, and `paged` with it."""
    return len(manifest.entries) > ENTRIES_MAX


def page_of(manifest: Manifest, key: str) -> tuple[PageEntry, tuple[ObjectEntry, ...]]:
    """The page to be written under `key`, and what it holds."""
    held = manifest.entries[:PAGE_ENTRIES]
    page = PageEntry(
        key=key,
        first=held[0].first,
        end=held[-1].end,
        objects=len(held),
        size=sum(it.size for it in held),
        first_ms=held[0].first_ms,
        last_ms=held[-1].last_ms,
    )
    return page, held


def paged(manifest: Manifest, page: PageEntry, write: Write) -> Manifest:
    """With a page in the place of the entries that it holds.

    Raises:
        NotNext: the entries are not those that it was made of.
    """
    held = manifest.entries[: page.objects]
    if not held or (held[0].first, held[-1].end) != (page.first, page.end):
        raise NotNext(f"page [{page.first}, {page.end}) is not of the first {page.objects} entries")
    return _next(
        manifest, write, pages=(*manifest.pages, page), entries=manifest.entries[page.objects :]
    )


def _next(manifest: Manifest, write: Write, **changes: object) -> Manifest:
    made = replace(
        manifest,
        revision=manifest.revision + 1,
        salt=write.salt,
        changed_ms=write.now_ms,
        **changes,  # type: ignore[arg-type]  # fields of the class
    )
    check_manifest(made)
    return made


def check_manifest(manifest: Manifest) -> None:
    """Raise AssertionError if an invariant does not hold."""
    parts: tuple[PageEntry | ObjectEntry, ...] = (*manifest.pages, *manifest.entries)
    assert 0 <= manifest.start <= manifest.end
    assert all(part.first < part.end and part.first_ms <= part.last_ms for part in parts)
    for before, after in pairwise(parts):
        assert before.end == after.first, f"{before.end} is followed by {after.first}"
        assert before.last_ms <= after.first_ms, f"time runs back at {after.first}"
    if parts:
        assert parts[0].first <= manifest.start < parts[0].end
        assert parts[-1].end == manifest.end
    else:
        assert manifest.start == manifest.end
    assert all(lost.first <= lost.end <= manifest.end for lost in manifest.lost)
    assert all(before.end <= after.first for before, after in pairwise(manifest.lost))
