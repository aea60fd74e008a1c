"""Errors of the metadata package's own, added to the tree of `sharedlog/errors.py`.

SharedLogError
├── MetadataCorrupt            a value whose checksum or form is wrong; carries the key
└── MetadataUnsuitable         the store refuses, or lacks what is needed: a person must act
"""

from __future__ import annotations

from typing import ClassVar

from sharedlog.errors import SharedLogError, StatusName


class MetadataCorrupt(SharedLogError):
    """What is kept under `key` is not what was written. It is never taken for absence."""

    outcome = "definite"
    advice = "restore the metadata store: what is left of the value is no guide"
    grpc_status: ClassVar[StatusName] = "DATA_LOSS"

    def __init__(self, message: str, *, key: str) -> None:
        super().__init__(f"{key}: {message}")
        self.key = key


class MetadataUnsuitable(SharedLogError):
    """The metadata store denies what is asked, or lacks a property that is relied on.

    Trying again does not help until somebody has changed the store, the permissions or the
    configuration; the message says what is missing.
    """

    outcome = "indefinite"
    advice = "mend what the message names: permissions, bucket, or the metadata settings"
    grpc_status: ClassVar[StatusName] = "FAILED_PRECONDITION"
