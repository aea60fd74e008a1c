"""The archive's own errors, which travel to clients: see `sharedlog/archive_errors.py`."""

from __future__ import annotations

from sharedlog.archive_errors import CorruptObject, ManifestBehind, ManifestCorrupt

__all__ = ["CorruptObject", "ManifestBehind", "ManifestCorrupt"]
