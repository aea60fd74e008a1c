"""Where the archive's objects lie, below its root: docs/archive-format.md.

An object's name tells the offset that it begins at, so that a listing can be read; what is in the
archive is told by manifests alone. Where an object ends is not known yet when its upload begins.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from sharedlog.ids import LogId, Offset

_OBJECT: Final = re.compile(r"(\d{20})-([0-9a-f]{32})\.slog")
_DIRECTORY: Final = re.compile(r"([0-9a-f]{32})/([0-9a-f]{16})")
_PAGE: Final = re.compile(r"page-([0-9a-f]{32})")


class ObjectName(NamedTuple):
    """What an object's key tells."""

    first: Offset  # of its range
    object_id: str  # 32 hex digits


def log_prefix(cluster_id: str, log_id: LogId) -> str:
    """How the keys of everything of a log begin."""
    return f"{cluster_id}/{log_id:016x}/"


def directory_of(cluster_id: str, log_id: LogId) -> str:
    """As a manifest names the directories of other logs."""
    return f"{cluster_id}/{log_id:016x}"


def owner_of(key: str) -> str:
    """The directory of the log that an object or page was made for."""
    return key.rpartition("/")[0]


class ManifestPlace(NamedTuple):
    """Whose manifest it is."""

    cluster_id: str
    log_id: LogId


def parse_directory(directory: str) -> ManifestPlace | None:
    """What `directory_of` was given; None for anything else."""
    match = _DIRECTORY.fullmatch(directory)
    return None if match is None else ManifestPlace(match[1], LogId(int(match[2], 16)))


def parse_manifest_key(key: str) -> ManifestPlace | None:
    """What `manifest_key` was given; None for a key of another kind."""
    directory, _, name = key.rpartition("/")
    return parse_directory(directory) if name == "manifest" else None


def manifest_key(cluster_id: str, log_id: LogId) -> str:
    """Of the log's manifest."""
    return log_prefix(cluster_id, log_id) + "manifest"


def page_key(cluster_id: str, log_id: LogId, page_id: str) -> str:
    """Of older entries of a manifest; `page_id` is random, 32 hex digits."""
    return f"{log_prefix(cluster_id, log_id)}page-{page_id}"


def object_key(cluster_id: str, log_id: LogId, name: ObjectName) -> str:
    """Of an object."""
    return f"{log_prefix(cluster_id, log_id)}{name.first:020d}-{name.object_id}.slog"


def parse_object_key(key: str) -> ObjectName | None:
    """What `object_key` was given; None for a key of another kind."""
    match = _OBJECT.fullmatch(key.rpartition("/")[2])
    if match is None:
        return None
    return ObjectName(Offset(int(match[1])), match[2])


def is_page_key(key: str) -> bool:
    """Whether `page_key` made it."""
    return _PAGE.fullmatch(key.rpartition("/")[2]) is not None
