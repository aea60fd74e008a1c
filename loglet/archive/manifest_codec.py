"""Manifests and their pages to bytes and back: JSON after its CRC32C, `{8 hex digits} {json}`.

As records in the metadata store are (`metadata/encoding.py`), and for the same reasons: a person
can read it; the checksum covers the key, so that a value that turns up under another key is found
out like a flipped bit is. Fields, and elements of entries, that this version does not know are
skipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeVar

import msgspec

from loglet.archive.errors import ManifestCorrupt
from loglet.archive.manifest import Manifest, ObjectEntry, check_manifest
from sharedlog.checksum import crc32c

_T = TypeVar("_T")

_CHECKSUM_CHARS: Final = 8

_encode_json: Final = msgspec.json.Encoder().encode
_manifest_decoder: Final = msgspec.json.Decoder(Manifest)
_page_decoder: Final = msgspec.json.Decoder(tuple[ObjectEntry, ...])


def encode_manifest(key: str, manifest: Manifest) -> bytes:
    """What is written under `key`."""
    return _seal(key, manifest)


def decode_manifest(key: str, data: bytes) -> Manifest:
    """Raises `ManifestCorrupt`, also if the manifest contradicts itself."""
    manifest = _open(key, data, _manifest_decoder)
    try:
        check_manifest(manifest)
    except AssertionError as error:
        raise ManifestCorrupt(f"it contradicts itself: {error}", key=key) from error
    return manifest


def encode_page(key: str, entries: Sequence[ObjectEntry]) -> bytes:
    """What is written under `key`."""
    return _seal(key, entries)


def decode_page(key: str, data: bytes) -> tuple[ObjectEntry, ...]:
    """Raises `ManifestCorrupt`."""
    return _open(key, data, _page_decoder)


def _seal(key: str, value: object) -> bytes:
    body = _encode_json(value)
    return b"%08x %s" % (_checksum(key, body), body)


def _open(key: str, data: bytes, decoder: msgspec.json.Decoder[_T]) -> _T:
    body = data[_CHECKSUM_CHARS + 1 :]
    if data[: _CHECKSUM_CHARS + 1] != b"%08x " % _checksum(key, body):
        raise ManifestCorrupt("it does not match its checksum", key=key)
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise ManifestCorrupt(f"it can't be read: {error}", key=key) from error


def _checksum(key: str, body: bytes) -> int:
    return crc32c(body, crc32c(key.encode()))
