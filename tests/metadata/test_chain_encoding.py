"""Long chains as bytes: all comes back, they are small, and what did not change stays."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metadata.chain_encoding import KEPT_CHAINS_MAX, KEPT_SEGMENTS_MIN, ChainDecoder
from metadata.core import CHAIN_SEGMENTS_MAX, check_chain
from metadata.encoding import decode_log, encode_log
from metadata.errors import MetadataCorrupt
from metadata.records import LogRecord, LostRange, Replica, Segment
from metadata.registry import CHAIN_BYTES_MAX
from metadata.store import Entry, Version
from sharedlog.checksum import crc32c
from sharedlog.ids import Generation, LogId, NodeId, Offset, SequencerId, StorageId

KEY = "logs/orders"


def entry(record: LogRecord) -> Entry:
    return Entry(f"logs/{record.name}", encode_log(record), Version(1))


def sealed(body: object) -> Entry:
    text = json.dumps(body, separators=(",", ":")).encode()
    return Entry(KEY, b"%08x " % crc32c(KEY.encode() + text) + text, Version(1))


def body_of(record: LogRecord) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(encode_log(record)[9:])
    return found


def replicas(*numbers: int) -> tuple[Replica, ...]:
    return tuple(
        Replica(node_id=NodeId(f"n{i}"), storage_id=StorageId(f"{i:032x}"), location=f"eu.{i % 3}")
        for i in numbers
    )


def log(*chain: Segment) -> LogRecord:
    return LogRecord(
        log_id=LogId(2**64 - 1),
        name="orders",
        replicas=3,
        write_quorum=2,
        created_ms=1_795_000_000_000,
        create_nonce="c" * 32,
        chain=chain,
        spread=(("zone", 2),),
        change_nonce="d" * 32,
    )


def long_log(segments: int) -> LogRecord:
    """A log with a busy life: five nodes, a nodeset now and then, a failover every few minutes."""
    rng = random.Random(segments)
    nodesets = [replicas(*sorted(rng.sample(range(5), 3))) for _ in range(20)]
    chain: list[Segment] = []
    base = 0
    for index in range(segments):
        end = base + rng.randrange(1, 5_000_000)
        chain.append(
            Segment(
                index=index,
                base=Offset(base),
                end=None if index == segments - 1 else Offset(end),
                sequencer=SequencerId(NodeId(f"n{index % 5}"), Generation(1 + index // 25)),
                nodeset=nodesets[index // 300 % 20],
                write_quorum=2,
                spread=(("zone", 2),) if index % 300 > 100 else (),
                timestamp_ms=1_795_000_000_000 + index * 200_000,
            )
        )
        base = end
    return log(*chain)


def extended(record: LogRecord, length: int = 7, **fields: Any) -> LogRecord:
    was = record.open_segment
    end = Offset(was.base + length)
    opened = replace(was, index=was.index + 1, base=end, lost=(), **fields)
    return replace(record, chain=(*record.chain[:-1], replace(was, end=end), opened))


@st.composite
def logs(draw: st.DrawFn) -> LogRecord:
    """Any chain that holds together, of few nodes so that tables are used again."""
    numbers = st.lists(st.integers(0, 4), min_size=1, max_size=4, unique=True)
    chain: list[Segment] = []
    base = 0
    count = draw(st.integers(1, 2 * KEPT_SEGMENTS_MIN))
    for index in range(count):
        end = base + draw(st.integers(1, 2**40))
        losses = draw(st.lists(st.text(max_size=5), max_size=2)) if index % 5 == 0 else []
        chain.append(
            Segment(
                index=index * 2,
                base=Offset(base),
                end=None if index == count - 1 else Offset(end),
                sequencer=SequencerId(NodeId("n1"), Generation(draw(st.integers(1, 3)))),
                nodeset=replicas(*draw(numbers)),
                write_quorum=draw(st.integers(1, 4)),
                spread=draw(st.sampled_from([(), (("node", 1), ("zone", 2))])),
                timestamp_ms=draw(st.integers(0, 2**45)),
                lost=tuple(
                    LostRange(first=Offset(base), end=Offset(base), accepted_ms=i, reason=text)
                    for i, text in enumerate(losses)
                ),
            )
        )
        base = end
    return log(*chain)


@pytest.mark.slow
@given(logs())
def test_every_chain_comes_back(record: LogRecord) -> None:
    assert decode_log(entry(record)) == record


@pytest.mark.slow
@given(st.lists(logs(), min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_a_decoder_that_remembers_says_the_same(
    records: list[LogRecord], rng: random.Random
) -> None:
    """Whatever a decoder has seen before: other chains, longer, shorter ones, changed ones."""
    decoder = ChainDecoder()
    for record in records:
        for _ in range(4):
            assert decode_log(entry(record), decoder) == record
            record = rng.choice(  # noqa: PLW2901 - the next version of it
                [
                    extended(record),
                    extended(record, sequencer=SequencerId(NodeId("n9"), Generation(1))),
                    extended(record, nodeset=replicas(7, 8)),
                    replace(record, chain=record.chain[-1:]),
                    replace(
                        record,
                        chain=(replace(record.chain[0], nodeset=replicas(4)), *record.chain[1:]),
                    ),
                    replace(
                        record, chain=(*record.chain[:-1], replace(record.chain[-1], index=999))
                    ),
                ]
            )


def test_the_old_form_is_still_read() -> None:
    """A chain was a list of objects before; a store of that time opens."""
    record = long_log(3)
    body = body_of(record)
    old_fields = ("index", "base", "end", "sequencer", "nodeset", "write_quorum")
    body["chain"] = [
        {name: value for name, value in asdict(it).items() if name in old_fields}
        for it in record.chain
    ]
    del body["spread"], body["change_nonce"]
    found = decode_log(sealed(body))
    assert found.chain == tuple(replace(it, spread=(), timestamp_ms=0) for it in record.chain)
    assert found == replace(record, chain=found.chain, spread=(), change_nonce="")


def test_a_person_can_read_it() -> None:
    """Bases stand as they are, so a row says where its segment begins, the next where it ends."""
    lost = LostRange(first=Offset(4), end=Offset(4), accepted_ms=9, reason="fire")
    record = extended(
        log(
            Segment(
                index=3,
                base=Offset(4),
                sequencer=SequencerId(NodeId("n1"), Generation(2)),
                nodeset=replicas(1),
                write_quorum=1,
                timestamp_ms=5,
                lost=(lost,),
            )
        )
    )
    assert body_of(record)["chain"] == {
        "replicas": [["n1", f"{1:032x}", "eu.1"]],
        "nodesets": [[0]],
        "sequencers": [["n1", 2]],
        "quorums": [[1, []]],
        "segments": [[3, 4, 0, 0, 0, 5, {"lost": [[4, 4, 9, "fire"]]}], [4, 11, 0, 0, 0, 5]],
    }


def test_what_a_newer_version_adds_is_skipped() -> None:
    record = extended(long_log(2))
    body = body_of(record)
    body["chain"]["colours"] = ["red"]
    body["chain"]["segments"][0] += [{"lost": [], "colour": 1}, "more"]
    assert decode_log(sealed(body)) == record


@pytest.mark.parametrize(
    "rows",
    [
        [[0, 0, 9, 0, 0, 0]],
        [[0, 0, 0, 9, 0, 0]],
        [[0, 0, 0, 0, 9, 0]],
        [[0, 0, -1, 0, 0, 0]],
        [[0, -1, 0, 0, 0, 0]],
        [[0, 0]],
        [["0", 0, 0, 0, 0, 0]],
        [{}],
        {},
        [],
    ],
    ids=str,
)
def test_rows_that_are_none_are_corrupt(rows: object) -> None:
    """Field note 24: a chain that can't be read is a typed error, never another chain."""
    body = body_of(long_log(1))
    body["chain"]["segments"] = rows
    with pytest.raises(MetadataCorrupt):
        decode_log(sealed(body))


@pytest.mark.parametrize("table", ["replicas", "nodesets", "sequencers", "quorums", "segments"])
def test_a_missing_table_is_corrupt(table: str) -> None:
    body = body_of(long_log(1))
    del body["chain"][table]
    with pytest.raises(MetadataCorrupt):
        decode_log(sealed(body))


def test_thousands_of_segments_are_small() -> None:
    """Field note 51: a chain of the greatest length fits, with less than 45 bytes a segment."""
    size = len(encode_log(long_log(5_000)))
    assert size < 45 * 5_000
    longest = long_log(CHAIN_SEGMENTS_MAX)
    check_chain(longest)
    assert len(encode_log(longest)) < CHAIN_BYTES_MAX


def test_a_chain_that_grows_makes_only_its_end_anew() -> None:
    """What did not change is the very same object: one segment more costs no more objects."""
    decoder = ChainDecoder()
    was = decode_log(entry(long_log(500)), decoder)
    nodeset = was.open_segment.nodeset
    changes: list[Callable[[LogRecord], LogRecord]] = [
        extended,
        lambda it: extended(it, sequencer=SequencerId(NodeId("z"), Generation(1))),
        lambda it: extended(extended(it)),
        lambda it: replace(it, chain=(*it.chain[:-1], replace(it.open_segment, index=777))),
        lambda it: extended(it, nodeset=replicas(3, 4, 9)),
        lambda it: extended(it, nodeset=nodeset),
    ]
    for change in changes:
        changed = change(was)
        now = decode_log(entry(changed), decoder)
        assert now == changed
        assert all(one is two for one, two in zip(was.chain[:-1], now.chain, strict=False))
        was = now
    assert was.open_segment.nodeset is nodeset


def test_a_decoder_that_forgot_makes_all_anew() -> None:
    record = long_log(50)
    decoder = ChainDecoder()
    first = decode_log(entry(record), decoder)
    assert decode_log(entry(record), decoder).chain[0] is first.chain[0]
    decoder.forget(KEY)
    assert decode_log(entry(record), decoder).chain[0] is not first.chain[0]


def test_a_decoder_remembers_a_bounded_number_of_chains() -> None:
    decoder = ChainDecoder()
    short = long_log(KEPT_SEGMENTS_MIN)
    first = decode_log(entry(short), decoder)
    for i in range(KEPT_CHAINS_MAX):
        assert decode_log(entry(short), decoder).chain[0] is first.chain[0]
        decode_log(entry(replace(short, name=f"log{i}")), decoder)
        decode_log(entry(short), decoder)
    for i in range(KEPT_CHAINS_MAX):
        decode_log(entry(replace(short, name=f"other{i}")), decoder)
    assert decode_log(entry(short), decoder).chain[0] is not first.chain[0]


def test_logs_that_are_alike_share_what_they_have_in_common() -> None:
    """Nodesets and settings of ten thousand logs are a few objects, and a chain that grows later
    changes nothing of the others."""
    decoder = ChainDecoder()
    settings = (("replicas", "3", "default"),)
    logs = [replace(long_log(1), name=f"log{index}", created_with=settings) for index in range(3)]
    first, second, third = (decode_log(entry(log), decoder) for log in logs)
    assert [first, second, third] == logs
    assert first.open_segment.nodeset is second.open_segment.nodeset
    assert first.created_with is second.created_with
    grown = replace(third, chain=long_log(40).chain)
    assert decode_log(entry(grown), decoder) == grown
    assert first == logs[0]
