"""What a log's retention says of its manifest: how far it is to be trimmed, and purged.

By whole objects, which are small beside what is kept: a log keeps at most one object more than was
asked for. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable

from loglet.archive.manifest import Manifest, ObjectEntry, PageEntry
from sharedlog.ids import Offset
from sharedlog.retention import Retention


def local_start_wanted(
    manifest: Manifest, retention: Retention, *, now_ms: int, beyond_bytes: int
) -> Offset:
    """Where what is kept on the log servers may begin; `manifest.start` if nothing is to go.

    `beyond_bytes`: of what is not archived yet.
    """
    parts: tuple[PageEntry | ObjectEntry, ...] = (*manifest.pages, *manifest.entries)
    wanted = manifest.start
    if retention.local_bytes is not None:
        kept = beyond_bytes
        for part in reversed(parts):
            kept += part.size
            if kept > retention.local_bytes:
                wanted = max(wanted, part.end)
                break
    if retention.local_age_s is not None:
        oldest_ms = now_ms - 1_000 * retention.local_age_s
        wanted = max([wanted, *(part.end for part in parts if part.last_ms < oldest_ms)])
    return wanted


def start_wanted(
    entries: Iterable[ObjectEntry], start: Offset, retention: Retention, *, now_ms: int
) -> Offset:
    """Where the log may begin; `start` if nothing is too old. `entries` in order, from the first.

    Looks at no more of them than it must.
    """
    if retention.total_age_s is None:
        return start
    oldest_ms = now_ms - 1_000 * retention.total_age_s
    for entry in entries:
        if entry.last_ms >= oldest_ms:
            break
        start = max(start, entry.end)
    return start
