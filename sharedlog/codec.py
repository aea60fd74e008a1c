"""Compression of a batch's payload: what the `codec` of its header stands for.

    0  none
    1  zstd   the payload's size (4 bytes, little-endian), then one zstd frame
    2  lz4    the payload's size (4 bytes, little-endian), then one LZ4 block

The numbers are for ever. Clients compress and decompress; servers pass on what they get. The
batch's checksum is of what is sent, so of the compressed bytes.

A compressor is a function of the payload alone: the same payload gives the same bytes, whenever it
is asked. Decompression is bounded by the size that stands in front, which is bounded itself: a few
bytes that claim to be gigabytes are a `CorruptBatch` before any memory is taken for them.

The libraries are optional (`sharedlog[zstd]`, `sharedlog[lz4]`) and imported at first use. What
calls this is an event loop, which a full batch holds up for one to two milliseconds.
"""

from __future__ import annotations

import importlib
import struct
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Final, Literal, NamedTuple

from sharedlog.errors import CodecUnavailable, CorruptBatch

Compression = Literal["none", "zstd", "lz4"]
"""What an appender compresses its batches with."""

COMPRESSIONS: Final[tuple[Compression, ...]] = ("none", "zstd", "lz4")

CODEC_NONE: Final = 0
_CODEC_ZSTD: Final = 1
_CODEC_LZ4: Final = 2
_NAMES: Final = {_CODEC_ZSTD: "zstd", _CODEC_LZ4: "lz4"}

_SIZE: Final = struct.Struct("<I")  # of the payload, in front of what it was compressed to

COMPRESS_BYTES_MIN: Final = 256
"""A smaller payload is not worth the try."""

_ZSTD_MODULE: Final = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
_ZSTD_LEVEL: Final = 1
# Most that a frame may ask for to look back into, as a power of two: no batch is larger.
_ZSTD_WINDOW_LOG_MAX: Final = 23


class Compressor(NamedTuple):
    """How an appender compresses: a codec, and a function without a state."""

    codec: int
    pack: Callable[[bytes], bytes]


def make_compressor(compression: Compression) -> Compressor | None:
    """What compresses so; None does not compress.

    Raises:
        CodecUnavailable: its library is not installed.
    """
    if compression == "zstd":
        zstd = _import_zstd()

        def pack_zstd(payload: bytes) -> bytes:
            packed: bytes = zstd.compress(payload, _ZSTD_LEVEL)
            return packed

        return Compressor(_CODEC_ZSTD, pack_zstd)
    if compression == "lz4":
        block = _import_lz4()

        def pack_lz4(payload: bytes) -> bytes:
            packed: bytes = block.compress(payload, store_size=False)
            return packed

        return Compressor(_CODEC_LZ4, pack_lz4)
    return None


def compress(compressor: Compressor, payload: bytes) -> bytes | None:
    """The payload as it is sent with the compressor's codec; None if that is not smaller."""
    if len(payload) < COMPRESS_BYTES_MIN:
        return None
    packed = compressor.pack(payload)
    if _SIZE.size + len(packed) >= len(payload):
        return None
    return _SIZE.pack(len(payload)) + packed


def decompress(codec: int, data: bytes, at: int, *, bytes_max: int) -> bytes:
    """The payload of `bytes_max` at most that lies compressed in `data`, from `at` to its end.

    Raises:
        CorruptBatch: it does not decompress to the size that it says, or says too large a one.
        CodecUnavailable: its library is not installed, or the codec is unknown to this version.
    """
    if codec not in _NAMES:
        raise CodecUnavailable(
            f"unknown codec {codec}; this client is too old for the batch", codec=codec
        )
    if len(data) - at < _SIZE.size:
        raise CorruptBatch("the compressed payload is cut short")
    (size,) = _SIZE.unpack_from(data, at)
    if not 0 < size <= bytes_max:
        raise CorruptBatch(f"a payload of {size:,} bytes; it can be {bytes_max:,} at most")
    packed = memoryview(data)[at + _SIZE.size :]
    payload = _unpack_zstd(packed, size) if codec == _CODEC_ZSTD else _unpack_lz4(packed, size)
    if len(payload) != size:
        raise CorruptBatch(f"a payload of {len(payload):,} bytes, where {size:,} were to be")
    return payload


def _unpack_zstd(packed: memoryview, size: int) -> bytes:
    zstd = _import_zstd()
    limits = {zstd.DecompressionParameter.window_log_max: _ZSTD_WINDOW_LOG_MAX}
    unpacker = zstd.ZstdDecompressor(options=limits)
    try:
        # One byte more than there may be: the frame's end is found, and so is what lies beyond.
        payload: bytes = unpacker.decompress(packed, size + 1)
    except zstd.ZstdError as error:
        raise CorruptBatch(f"the payload is no zstd frame: {error}") from error
    if not unpacker.eof or unpacker.unused_data:
        raise CorruptBatch("the payload is not one whole zstd frame of its size")
    return payload


def _unpack_lz4(packed: memoryview, size: int) -> bytes:
    block = _import_lz4()
    try:
        payload: bytes = block.decompress(packed, uncompressed_size=size)
    except block.LZ4BlockError as error:
        raise CorruptBatch(f"the payload is no LZ4 block of its size: {error}") from error
    return payload


def _import_zstd() -> ModuleType:
    try:
        # By name: its home depends on the version of Python, and a checker knows one of them.
        return importlib.import_module(_ZSTD_MODULE)
    except ImportError as error:
        raise _not_installed(_CODEC_ZSTD) from error


def _import_lz4() -> ModuleType:
    try:
        return importlib.import_module("lz4.block")
    except ImportError as error:
        raise _not_installed(_CODEC_LZ4) from error


def _not_installed(codec: int) -> CodecUnavailable:
    name = _NAMES[codec]
    return CodecUnavailable(
        f"the library for {name} is not installed: pip install 'sharedlog[{name}]'", codec=codec
    )
