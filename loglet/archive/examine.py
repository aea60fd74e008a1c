"""Looks at an archive object from without: what it says of itself, and whether all of it is so."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Final, NamedTuple

from loglet.archive.errors import CorruptObject
from loglet.archive.layout import log_prefix, parse_object_key
from loglet.archive.object_format import (
    Block,
    Footer,
    decode_index,
    split_block,
)
from loglet.archive.object_reads import read_end, runs_of
from loglet.archive.object_store import ObjectStore
from sharedlog.batch import check_placed
from sharedlog.errors import CorruptBatch
from sharedlog.limits import MIB

READ_BYTES: Final = 4 * MIB
"""Blocks are read in ranges of about as many."""


class Examined(NamedTuple):
    """Footer and index of an object, both sound."""

    size: int
    footer: Footer
    blocks: list[Block]


async def examine(store: ObjectStore, key: str) -> Examined:
    """Footer and index, checked against themselves and against the key.

    Raises:
        CorruptObject: it is no archive object, damaged, or another one than its key says.
        ObjectNotFound, ArchiveUnavailable.

    **Cancellation:** ends the wait.
    """
    footer, index, size = await read_end(store, key)
    name = parse_object_key(key)
    if name is not None:
        directory = key.rpartition("/")[0] + "/"
        is_it = footer.object_id.hex() == name.object_id and (
            directory in ("/", log_prefix(footer.cluster_id.hex(), footer.log_id))
        )
        if not is_it:
            raise CorruptObject(
                f"it is object {footer.object_id.hex()} of "
                f"{log_prefix(footer.cluster_id.hex(), footer.log_id)}, by its footer"
            )
    return Examined(size, footer, decode_index(index, footer))


async def read_blocks(
    store: ObjectStore, key: str, blocks: Sequence[Block]
) -> AsyncGenerator[tuple[Block, list[bytes]], None]:
    """The placed batches of adjoining blocks, a block at a time; all checksums are checked.

    Raises:
        CorruptObject: a block is damaged, or a batch in it. ObjectNotFound, ArchiveUnavailable.
    """
    for run in runs_of(blocks, READ_BYTES):
        start, end = run[0].position, run[-1].position + run[-1].size
        data = await store.read(key, start, end)
        for block in run:
            at = block.position - start
            batches = split_block(data[at : at + block.size], block)
            try:
                for placed in batches:
                    check_placed(placed)
            except CorruptBatch as error:
                raise CorruptObject(
                    f"a batch in the block of [{block.first}, {block.end}): {error}"
                ) from error
            yield block, batches
