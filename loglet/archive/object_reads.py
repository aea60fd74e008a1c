"""What is read of an archived object by everybody who reads one: its end, and runs of blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from loglet.archive.object_format import FOOTER_BYTES, Block, Footer, decode_footer
from loglet.archive.object_store import ObjectStore

TAIL_BYTES: Final = 32 * 1024
"""The last bytes of an object: footer and index of nearly every one."""


class ObjectEnd(NamedTuple):
    """What an object says of itself. The index is to be decoded against the footer."""

    footer: Footer
    index_bytes: bytes
    size: int  # of the object


async def read_end(store: ObjectStore, key: str) -> ObjectEnd:
    """Footer and index of an object; one request, or two if the index is long.

    Raises:
        CorruptObject: there is no footer. ObjectNotFound, ArchiveUnavailable.

    **Cancellation:** ends the wait.
    """
    tail, size = await store.read_tail(key, TAIL_BYTES)
    footer = decode_footer(tail, size)
    index = tail[-(footer.index_bytes + FOOTER_BYTES) : -FOOTER_BYTES]
    if len(index) < footer.index_bytes:
        at = footer.index_position
        index = await store.read(key, at, at + footer.index_bytes)
    return ObjectEnd(footer, index, size)


def runs_of(blocks: Sequence[Block], bytes_max: int) -> Iterator[list[Block]]:
    """Adjoining blocks that are read together: of `bytes_max` at most, or a larger one alone."""
    run: list[Block] = []
    size = 0
    for block in blocks:
        if run and size + block.size > bytes_max:
            yield run
            run, size = [], 0
        run.append(block)
        size += block.size
    if run:
        yield run
