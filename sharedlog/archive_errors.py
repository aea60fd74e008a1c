"""Errors of what is archived, added to the tree of `sharedlog/errors.py`.

SharedLogError
├── CorruptBatch
│   └── CorruptObject          no archive object, or not the bytes that were written
├── ManifestCorrupt            a manifest or page whose checksum or form is wrong; carries the key
└── ManifestBehind             the manifest tells of less than the chain says is archived
"""

from __future__ import annotations

from typing import ClassVar

from sharedlog.errors import CorruptBatch, SharedLogError, StatusName


class CorruptObject(CorruptBatch):
    """What was read is no part of an archive object, or does not match its checksum."""

    advice = "compare it with `sharedlog archive verify`; bring it back from a copy of the bucket"


class ManifestCorrupt(SharedLogError):
    """What is kept under `key` is not what was written. It is never taken for absence."""

    outcome = "definite"
    advice = "bring it back from a copy; nothing of the log is archived until then"
    grpc_status: ClassVar[StatusName] = "DATA_LOSS"

    def __init__(self, message: str, *, key: str) -> None:
        super().__init__(f"{key}: {message}")
        self.key = key


class ManifestBehind(SharedLogError):
    """The manifest was lost, or an older one was put in its place. Nothing is archived upon it."""

    outcome = "definite"
    advice = "bring the manifest back as it was; nothing is archived or trimmed until then"
    grpc_status: ClassVar[StatusName] = "DATA_LOSS"

    def __init__(self, *, key: str, end: int, archived_end: int) -> None:
        super().__init__(f"{key} ends at {end}, the chain says {archived_end} is archived")
        self.key = key
        self.end = end
        self.archived_end = archived_end
