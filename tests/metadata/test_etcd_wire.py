"""What is sent to etcd, what lies in it, and how far a watch has come."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.peers import etcd_wire as by_hand
from metadata.errors import MetadataCorrupt
from metadata.etcd_watch import Place
from metadata.etcd_wire import decode_value, delete_if, encode_value, end_of_prefix, put_if
from metadata.store import Version
from sharedlog.v1 import etcd_pb2 as pb

KEYS = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=40)
NONCES = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=255)


@given(key=st.binary(min_size=1, max_size=50), value=st.binary(min_size=1, max_size=300))
def test_a_put_has_the_numbers_of_etcd(key: bytes, value: bytes) -> None:
    """Our messages are etcd's under other names: the encoding by hand says the same."""
    assert pb.EtcdPutRequest(key=key, value=value).SerializeToString() == by_hand.encode_put(
        key, value
    )
    request = put_if(key, value, Version(7))
    assert [number for number, _ in by_hand.decode_fields(request.SerializeToString())] == [1, 2, 3]


def test_a_condition_names_the_revision_of_the_last_change() -> None:
    """`Compare{result 1: EQUAL = 0, target 2: MOD = 2, key 3, mod_revision 6}`; 0 is sent too."""
    for expected in (0, 7):
        sent = delete_if(b"k", Version(expected)).SerializeToString()
        (_, condition), *_ = by_hand.decode_fields(sent)
        assert isinstance(condition, bytes)
        assert dict(by_hand.decode_fields(condition)) == {2: 2, 3: b"k", 6: expected}


@given(key=KEYS, value=st.binary(max_size=300), nonce=NONCES)
def test_values_come_back(key: str, value: bytes, nonce: str) -> None:
    """With the nonce of their put."""
    assert decode_value(key, encode_value(key, value, nonce)) == (value, nonce)


@given(
    key=KEYS,
    value=st.binary(max_size=50),
    nonce=NONCES,
    flip=st.integers(min_value=0),
    cut=st.integers(min_value=0),
)
def test_what_was_not_written_is_found_out(
    key: str, value: bytes, nonce: str, flip: int, cut: int
) -> None:
    """Field note 24: any flipped bit, any lost end, and any other key."""
    stored = encode_value(key, value, nonce)
    flipped = bytearray(stored)
    flipped[flip // 8 % len(stored)] ^= 1 << flip % 8
    for found in (bytes(flipped), stored[: cut % len(stored)]):
        with pytest.raises(MetadataCorrupt):
            decode_value(key, found)
    with pytest.raises(MetadataCorrupt):
        decode_value(key + "x", stored)


@given(prefix=KEYS, key=KEYS)
def test_a_range_has_what_the_prefix_has(prefix: str, key: str) -> None:
    """Keys in [prefix, end) are those that start with it."""
    start, name = prefix.encode(), key.encode()
    assert (start <= name < end_of_prefix(start)) == name.startswith(start)
    longer = start + name
    assert start <= longer < end_of_prefix(start)


def answer(
    *revisions: int,
    at: int = 100,
    fragment: bool = False,
    watch_id: int = 0,
    created: bool = False,
) -> pb.EtcdWatchResponse:
    return pb.EtcdWatchResponse(
        header=pb.EtcdHeader(revision=at),
        events=[pb.EtcdEvent(kv=pb.EtcdKeyValue(mod_revision=it)) for it in revisions],
        fragment=fragment,
        watch_id=watch_id,
        created=created,
    )


def taken(place: Place, response: pb.EtcdWatchResponse) -> list[int]:
    return [event.kv.mod_revision for event in place.take(response)]


def test_a_watch_resumes_behind_the_last_event_it_was_told() -> None:
    """Not behind the store's revision, which may be ahead of events that are still to come."""
    place = Place(next_revision=5)
    assert taken(place, answer(5, 7, at=100)) == [5, 7]
    assert place.next_revision == 8
    assert taken(place, answer(6, 7, 8)) == [8]  # told again after a lost connection
    assert place.next_revision == 9


def test_a_revision_that_came_in_part_is_asked_for_again() -> None:
    """A fragment may end within a revision that changed several keys."""
    place = Place(next_revision=5)
    assert taken(place, answer(5, 6, 6, fragment=True)) == [5, 6, 6]
    assert place.next_revision == 6
    assert taken(place, answer(6, 7)) == [6, 7]
    assert place.next_revision == 8


def test_only_progress_of_the_watch_itself_counts() -> None:
    """The answer to a question for signs of life may be ahead of events that are still to come."""
    place = Place(next_revision=5)
    place.take(answer(at=50, watch_id=-1))
    place.take(answer(at=50, created=True))
    assert place.next_revision == 5
    place.take(answer(at=50))
    assert place.next_revision == 51
