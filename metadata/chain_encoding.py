"""A chain as bytes: small enough for thousands of segments, and cheap to read again when it grows.

A chain is read by every node at every change of it, and is one value of the metadata store. So what
segments have in common stands in tables, each entry once, in the order of its first use, and a
segment is one short row (all of it JSON, so that a person can read it in an emergency):

    {"replicas":   [["n1", "b25...", "eu.a"], ...],    node, storage, location
     "nodesets":   [[0, 1, 2], ...],                   places in `replicas`
     "sequencers": [["n1", 17], ...],                  node, generation
     "quorums":    [[2, [["zone", 2]]], ...],          write quorum, spread
     "segments":   [[4, 1200, 0, 0, 0, 1795000000123], ...]}

A row is index, base, places in `sequencers`, `nodesets` and `quorums`, timestamp, and, if there is
more to say, an object: `{"lost": [[first, end, accepted_ms, reason], ...]}`. A segment ends where
the next one begins, so its row stays as it is when it ends: **a chain that grows by a segment keeps
its old text as a prefix**, table by table. `ChainDecoder` uses that: it compares text, and makes
objects only of rows that it has not seen. The segments that did not change are then the very same
objects, which makes `check_chain_change` cheap too. And what many logs have in common, such as the
tables of those that were created on the same nodes, is one object for all of them: of ten thousand
logs most of the memory would be copies of a few nodesets otherwise.

A version that knows more adds fields to the object, or elements after it; this one skips them.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Generic, TypeVar

import msgspec

from metadata.records import CreatedWith, LostRange, Replica, Segment, Spread
from sharedlog.ids import Generation, NodeId, Offset, SequencerId, StorageId

KEPT_SEGMENTS_MIN: Final = 16
"""A shorter chain is simply decoded anew."""
KEPT_CHAINS_MAX: Final = 1_024
"""Chains that a decoder remembers."""
SHARED_MAX: Final = 1_024
"""Tables, and likewise settings, that a decoder has at hand for the next log with the same."""

_Number = Annotated[int, msgspec.Meta(ge=0)]
_T = TypeVar("_T", bound=Hashable)
_K = TypeVar("_K", bound=Hashable)
_V = TypeVar("_V")

_encode: Final = msgspec.json.Encoder().encode


class ChainBody(msgspec.Struct):
    """The chain's JSON object, its tables not decoded yet."""

    replicas: msgspec.Raw
    nodesets: msgspec.Raw
    sequencers: msgspec.Raw
    quorums: msgspec.Raw
    segments: msgspec.Raw


class _Lost(msgspec.Struct, array_like=True):
    first: _Number
    end: _Number
    accepted_ms: int
    reason: str


class _More(msgspec.Struct):
    lost: list[_Lost] = []


class _Row(msgspec.Struct, array_like=True):
    index: _Number
    base: _Number
    sequencer: _Number
    nodeset: _Number
    quorum: _Number
    timestamp_ms: int
    more: _More | None = None


_replicas_decoder: Final = msgspec.json.Decoder(list[tuple[NodeId, StorageId, str]])
_nodesets_decoder: Final = msgspec.json.Decoder(list[list[_Number]])
_sequencers_decoder: Final = msgspec.json.Decoder(list[tuple[NodeId, Generation]])
_quorums_decoder: Final = msgspec.json.Decoder(list[tuple[int, Spread]])
_rows_decoder: Final = msgspec.json.Decoder(list[_Row])
_raw_rows_decoder: Final = msgspec.json.Decoder(list[msgspec.Raw])


class _Table(Generic[_T]):
    """Each value once, numbered in order of first use."""

    def __init__(self) -> None:
        self.numbers: dict[_T, int] = {}
        self._by_object: dict[int, int] = {}  # the values outlive the table

    def number(self, value: _T) -> int:
        found = self._by_object.get(id(value))
        if found is None:
            found = self.numbers.setdefault(value, len(self.numbers))
            self._by_object[id(value)] = found
        return found


def encode_chain(chain: Sequence[Segment]) -> dict[str, Any]:
    """What `msgspec.json` makes the chain's JSON object of. The chain must be a valid one."""
    nodesets = _Table[tuple[Replica, ...]]()
    sequencers = _Table[SequencerId]()
    quorums: dict[tuple[int, Spread], int] = {}
    rows: list[tuple[Any, ...]] = []
    for segment in chain:
        row = (
            segment.index,
            segment.base,
            sequencers.number(segment.sequencer),
            nodesets.number(segment.nodeset),
            quorums.setdefault((segment.write_quorum, segment.spread), len(quorums)),
            segment.timestamp_ms,
        )
        rows.append((*row, {"lost": _lost_rows(segment)}) if segment.lost else row)
    replicas = _Table[Replica]()
    places = [[replicas.number(it) for it in nodeset] for nodeset in nodesets.numbers]
    return {
        "replicas": [(it.node_id, it.storage_id, it.location) for it in replicas.numbers],
        "nodesets": places,
        "sequencers": [(it.node_id, it.generation) for it in sequencers.numbers],
        "quorums": list(quorums),
        "segments": rows,
    }


def _lost_rows(segment: Segment) -> list[tuple[int, int, int, str]]:
    return [(it.first, it.end, it.accepted_ms, it.reason) for it in segment.lost]


@dataclass(frozen=True, slots=True)
class _Tables:
    """What rows refer to, and the text that it was made of."""

    texts: tuple[bytes, ...]
    nodesets: list[tuple[Replica, ...]]
    sequencers: list[SequencerId]
    quorums: list[tuple[int, Spread]]

    @classmethod
    def decode(cls, body: ChainBody) -> _Tables:
        replicas = [
            Replica(node_id=node_id, storage_id=storage_id, location=location)
            for node_id, storage_id, location in _replicas_decoder.decode(body.replicas)
        ]
        return cls(
            texts=_texts(body),
            nodesets=[
                tuple([replicas[number] for number in numbers])
                for numbers in _nodesets_decoder.decode(body.nodesets)
            ],
            sequencers=[SequencerId(*it) for it in _sequencers_decoder.decode(body.sequencers)],
            quorums=_quorums_decoder.decode(body.quorums),
        )

    def grown(self, body: ChainBody) -> _Tables | None:
        """Those of `body`, with the very entries of these; None if these are not their start."""
        texts = _texts(body)
        if texts == self.texts:
            return self
        for now, was in zip(texts, self.texts, strict=True):
            if now != was and not _continues(now, was[:-1]):
                return None
        grown = _Tables.decode(body)
        grown.nodesets[: len(self.nodesets)] = self.nodesets
        grown.sequencers[: len(self.sequencers)] = self.sequencers
        return grown


def _texts(body: ChainBody) -> tuple[bytes, ...]:
    return tuple(
        bytes(raw) for raw in (body.replicas, body.nodesets, body.sequencers, body.quorums)
    )


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a decoder remembers of a chain."""

    tables: _Tables
    text: bytes  # of the rows: from the opening bracket to the end of the last closed one
    closed: tuple[Segment, ...]


class ChainDecoder:
    """Decodes chains, each under a key; of one that only grew, only what is new."""

    def __init__(self) -> None:
        self._seen: dict[str, _Seen] = {}
        self._tables: dict[tuple[bytes, ...], _Tables] = {}
        self._settings: dict[CreatedWith, CreatedWith] = {}

    def shared_settings(self, settings: CreatedWith) -> CreatedWith:
        """An equal object, the same for all logs that have equal ones."""
        found = self._settings.get(settings)
        if found is None:
            found = settings
            _keep_newest(self._settings, settings, settings)
        return found

    def forget(self, key: str) -> None:
        """The key is gone."""
        self._seen.pop(key, None)

    def decode(self, key: str, body: ChainBody) -> tuple[Segment, ...]:
        """The chain.

        Raises:
            msgspec.DecodeError, msgspec.ValidationError, IndexError: it is none.
        """
        text = bytes(body.segments)
        seen = self._seen.get(key)
        tables: _Tables | None = None
        closed: tuple[Segment, ...] = ()
        tail = text
        if seen is not None and _continues(text, seen.text):
            tables = seen.tables.grown(body)
        if seen is not None and tables is not None:
            closed, tail = seen.closed, b"[" + text[len(seen.text) + 1 :]
        else:
            tables = self._shared_tables(body)
        rows = _rows_decoder.decode(tail)
        if closed and rows[0].base != closed[-1].end:  # never written by us
            self.forget(key)
            return self.decode(key, body)
        chain = closed + _segments(rows, tables)
        if len(chain) >= KEPT_SEGMENTS_MIN:
            last_row = len(bytes(_raw_rows_decoder.decode(tail)[-1]))
            # Without its comma and the closing bracket: what is kept ends with a closed segment.
            self._keep(key, _Seen(tables, text[: -last_row - 2], chain[:-1]))
        return chain

    def _shared_tables(self, body: ChainBody) -> _Tables:
        """Those of `body`; not to be changed."""
        texts = _texts(body)
        found = self._tables.get(texts)
        if found is None:
            found = _Tables.decode(body)
            _keep_newest(self._tables, texts, found)
        return found

    def _keep(self, key: str, seen: _Seen) -> None:
        self._seen.pop(key, None)
        self._seen[key] = seen
        if len(self._seen) > KEPT_CHAINS_MAX:
            del self._seen[next(iter(self._seen))]  # the one decoded longest ago


def _keep_newest(known: dict[_K, _V], key: _K, value: _V) -> None:
    known[key] = value
    if len(known) > SHARED_MAX:
        del known[next(iter(known))]


def _continues(text: bytes, beginning: bytes) -> bool:
    """`text` is an array that begins with the elements of `beginning` and has more of them."""
    end = len(beginning)
    return text[end : end + 1] == b"," and text.startswith(beginning)


def _segments(rows: Sequence[_Row], tables: _Tables) -> tuple[Segment, ...]:
    ends = [Offset(row.base) for row in rows[1:]]
    return tuple(
        [
            Segment(
                index=row.index,
                base=Offset(row.base),
                end=end,
                sequencer=tables.sequencers[row.sequencer],
                nodeset=tables.nodesets[row.nodeset],
                write_quorum=tables.quorums[row.quorum][0],
                spread=tables.quorums[row.quorum][1],
                timestamp_ms=row.timestamp_ms,
                lost=() if row.more is None else _lost(row.more),
            )
            for row, end in zip(rows, [*ends, None], strict=False)
        ]
    )


def _lost(more: _More) -> tuple[LostRange, ...]:
    return tuple(
        LostRange(
            first=Offset(it.first),
            end=Offset(it.end),
            accepted_ms=it.accepted_ms,
            reason=it.reason,
        )
        for it in more.lost
    )
