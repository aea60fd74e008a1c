"""What may be a key, a prefix and a value: every backend checks the same, and checks it first."""

from __future__ import annotations

from sharedlog.errors import InvalidArgument
from sharedlog.limits import METADATA_KEY_BYTES_MAX, METADATA_VALUE_BYTES_MAX


def check_key(key: str) -> None:
    """Raises `InvalidArgument`."""
    if not key:
        raise InvalidArgument("a metadata key can't be empty")
    check_prefix(key)


def check_prefix(prefix: str) -> None:
    """A prefix may be empty, which is all keys. Raises `InvalidArgument`."""
    if len(prefix) > METADATA_KEY_BYTES_MAX:
        raise InvalidArgument(
            f"a metadata key of {len(prefix):,} characters: {METADATA_KEY_BYTES_MAX} are taken"
        )
    if not (prefix.isascii() and prefix.isprintable()):
        raise InvalidArgument(f"metadata key {prefix!r}: only printable ASCII is taken")


def check_value(key: str, value: bytes) -> None:
    """Raises `InvalidArgument`."""
    if len(value) > METADATA_VALUE_BYTES_MAX:
        raise InvalidArgument(
            f"{key}: the metadata value has {len(value):,} bytes; at most "
            f"{METADATA_VALUE_BYTES_MAX:,} are taken"
        )
