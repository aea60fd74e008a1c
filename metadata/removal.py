"""Whether anything still names a node, over all history, and the step that declares it gone.

A node that the open segments can spare may still be named by a segment of last year. So before it
is declared gone, every segment of every log is looked at (field note 33), and in the store itself,
for a view may lag. Who removes a node asks for any store that it ever had: a segment that names a
lost one waits for another copy still, and to forget the node would hide that.

A node's record stays for ever, for its generation must go on growing: a process that comes back
under the name is a further life of it, never the first one again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from metadata.records import STATE_DRAINING, STATE_GONE, STATE_READ_WRITE, LogRecord, NodeRecord
from metadata.registry import list_logs, set_node_state
from metadata.store import MetadataStore


@dataclass(frozen=True, slots=True)
class Naming:
    """One log that names a node."""

    log: str
    segments: int = 0  # that name the store that the node has, or had last
    past_segments: int = 0  # that name only stores which it had before that
    is_sequencer: bool = False

    @property
    def reason(self) -> str:
        """Why the node can't be removed: one line for a person."""
        told = []
        if self.segments:
            told.append(f"{_segments(self.segments)} its store")
        if self.past_segments:
            told.append(f"{_segments(self.past_segments)} a store that it had before")
        if self.is_sequencer:
            told.append("it orders the log")
        return f"log {self.log}: {' and '.join(told)}"


def _segments(count: int) -> str:
    return "1 segment names" if count == 1 else f"{count:,} segments name"


def namings(records: Iterable[LogRecord], node: NodeRecord) -> list[Naming]:
    """Every log that names the node: a segment one of its stores, or the open one its process."""
    found = []
    for record in records:
        present = past = 0
        for segment in record.chain:
            stores = {it.storage_id for it in segment.nodeset if it.node_id == node.node_id}
            present += node.last_storage_id in stores
            past += bool(stores) and node.last_storage_id not in stores
        is_sequencer = record.open_segment.sequencer.node_id == node.node_id
        if present or past or is_sequencer:
            found.append(Naming(record.name, present, past, is_sequencer))
    return found


async def declare_gone(store: MetadataStore, node: NodeRecord, *, any_store: bool) -> list[Naming]:
    """Declare the node gone if nothing names it; what names it otherwise, and nothing is changed.

    `any_store`: a segment that names a store which it had before the last one counts, too.

    While it may still be given something to do, it is set to draining first. Somebody who has not
    seen that may use it between the look and the declaration: nothing is lost of it, so the
    declaration is taken back, and a drain goes on.

    Raises:
        InvalidArgument: the node has another store by now, or somebody set another state.
        MetadataUnavailable: it may or may not be done; doing it again is safe. MetadataCorrupt.

    **Cancellation:** as with `MetadataUnavailable`.
    """
    named = await _fetch_namings(store, node, any_store=any_store)
    if named or node.state == STATE_GONE:
        return named
    state = node.state
    if state == STATE_READ_WRITE:
        state = STATE_DRAINING
        await set_node_state(store, node.node_id, state, storage_id=node.storage_id)
    await set_node_state(store, node.node_id, STATE_GONE, storage_id=node.storage_id)
    named = await _fetch_namings(store, node, any_store=any_store)
    if named:
        for back in (STATE_READ_WRITE, state):
            await set_node_state(store, node.node_id, back, storage_id=node.storage_id)
    return named


async def _fetch_namings(
    store: MetadataStore, node: NodeRecord, *, any_store: bool
) -> list[Naming]:
    found = namings((record for record, _ in await list_logs(store)), node)
    return [it for it in found if any_store or it.segments or it.is_sequencer]
