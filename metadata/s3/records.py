"""What lies under a key in S3, and what followed what there. Pure.

An object is a line of JSON, after its CRC32C, and then the value as it was put:

    {8 hex digits} {"key":"logs/orders","version":1764331200123,"nonce":"9f...","past":[...]}
    {the value}

The checksum covers all that follows it, the key too: one flipped bit, or a value under another key,
is `MetadataCorrupt` and never absence (field note 24).

**Nonces.** Each change writes a random one. So no two bodies are equal, and no two ETags are: S3
makes them of the body, and a compare-and-swap on equal ETags would have two winners (field note
49). And it tells whose a change was, when an answer got lost.

**Past.** An object names the versions and nonces of the `PAST_KEPT` changes before its own. Whoever
asked for a change, got no answer, and finds another value there can tell whether its own came
between. If the change on which it built is among the past ones and its own is not, it never was
made.

**Versions** are the milliseconds of Unix time at which the change was made, by the clock of who
made it, or one more than the version before, whichever is larger; and larger than all that the
process has met. So those of a key always grow; those of different keys do as far as clocks agree.

**Deletion.** S3 has no delete that compares, on most servers. So a deleted key keeps an object, a
*tombstone*: without a value, and changed like any other. It also keeps the next value's version
above the last one's, whatever clocks say, and makes sure that a request to create the key, if it is
still under way somewhere, comes to nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import msgspec

from metadata.errors import MetadataCorrupt
from metadata.store import ABSENT, Entry, Version
from sharedlog.checksum import crc32c

PAST_KEPT: Final = 8

_CHECKSUM_CHARS: Final = 8
_Past = tuple[tuple[int, str], ...]


@dataclass(frozen=True, slots=True)
class Record:
    """An object that holds what was written to it."""

    key: str
    version: Version
    nonce: str
    value: bytes | None  # None: a tombstone
    past: _Past = ()  # (version, nonce) of the changes before, the oldest first

    @property
    def visible(self) -> Version:
        """What `MetadataStore` calls its version."""
        return ABSENT if self.value is None else self.version

    def entry(self) -> Entry | None:
        """What `MetadataStore` tells of it."""
        return None if self.value is None else Entry(self.key, self.value, self.version)


class _Head(msgspec.Struct, omit_defaults=True):
    key: str
    version: int
    nonce: str
    deleted: bool = False
    past: _Past = ()


_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(_Head).decode


def encode(record: Record) -> bytes:
    """The object's bytes."""
    deleted = record.value is None
    head = _Head(record.key, record.version, record.nonce, deleted, record.past)
    body = b"%s\n%s" % (_encode(head), record.value or b"")
    return b"%08x %s" % (crc32c(body), body)


def decode(key: str, data: bytes) -> Record:
    """What `encode` was given. Raises `MetadataCorrupt`."""
    body = data[_CHECKSUM_CHARS + 1 :]
    if data[: _CHECKSUM_CHARS + 1] != b"%08x " % crc32c(body):
        raise MetadataCorrupt("the object does not match its checksum", key=key)
    line, _, value = body.partition(b"\n")
    try:
        head = _decode(line)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise MetadataCorrupt(f"the object can't be read: {error}", key=key) from error
    if head.key != key:
        raise MetadataCorrupt(f"the object is that of the key {head.key!r}", key=key)
    kept = None if head.deleted else value
    return Record(key, Version(head.version), head.nonce, kept, head.past)


def next_record(
    present: Record | None,
    key: str,
    value: bytes | None,
    *,
    nonce: str,
    now_ms: int,
    above: Version,
) -> Record:
    """What follows `present`, None for nothing; its version is larger than `above`."""
    before: _Past = ()
    least = above + 1
    if present is not None:
        before = (*present.past, (present.version, present.nonce))
        least = max(least, present.version + 1)
    return Record(key, Version(max(least, now_ms)), nonce, value, before[-PAST_KEPT:])


def made_as(found: Record, nonce: str) -> Version | None:
    """The version under which the change with this nonce was made; None: it is not known here."""
    if found.nonce == nonce:
        return found.version
    return next((Version(version) for version, known in found.past if known == nonce), None)


def comes_after(found: Record, base: Record | None) -> bool:
    """All that followed `base` (None: an object that was not there) is known here."""
    if base is None:
        return len(found.past) < PAST_KEPT
    return found.version == base.version or any(it == base.version for it, _ in found.past)
