"""Names of objects, what objects hold, and what a watch of them is told."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metadata.errors import MetadataCorrupt
from metadata.s3.config import MetadataS3Config
from metadata.s3.listing import take_objects
from metadata.s3.names import NAME_BYTES_MAX, check_name, key_of, name_of, prefix_of
from metadata.s3.objects import Damaged, Removed
from metadata.s3.records import (
    PAST_KEPT,
    Record,
    comes_after,
    decode,
    encode,
    made_as,
    next_record,
)
from metadata.s3.watchers import Watcher
from metadata.store import ABSENT, Changed, Deleted, Entry, Version
from sharedlog.errors import InvalidArgument
from sharedlog.limits import METADATA_KEY_BYTES_MAX

KEYS = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=12)
NASTY = st.text(st.sampled_from("a./=%-2F"), min_size=1, max_size=8)


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("cluster", "cluster="),
        ("logs/orders.eu", "logs/orders.eu="),
        ("logs/a/b", "logs/a/b="),
        ("namespaces/", "namespaces/="),
        ("a=b c", "a=3Db=20c="),
        (".hidden/../x//y", "=2Ehidden/=2E./x/=2Fy="),
        ("/a", "=2Fa="),
    ],
)
def test_names_are_readable(key: str, name: str) -> None:
    assert name_of(key) == name
    assert key_of(name) == key


@given(st.one_of(KEYS, NASTY), st.one_of(KEYS, NASTY))
def test_names_are_one_to_one_and_keep_prefixes(key: str, other: str) -> None:
    """A listing of S3 by a prefix is one of keys; no name is another one's folder, or a trial's."""
    assert key_of(name_of(key)) == key
    assert name_of(key + other).startswith(prefix_of(key))
    assert name_of(other).startswith(prefix_of(key)) == other.startswith(key)
    assert not name_of(other).startswith(name_of(key) + "/")
    assert not name_of(key).startswith((".", "/"))


@pytest.mark.parametrize("name", ["", "=", "logs/a", "a=3d=", "a=41=", ".probe-1-0", "é="])
def test_other_objects_are_nobodys(name: str) -> None:
    """Whatever else lies there is passed over."""
    assert key_of(name) is None


def test_a_name_that_s3_does_not_take_is_refused() -> None:
    check_name("p" * 400 + "/", "x" * METADATA_KEY_BYTES_MAX)
    with pytest.raises(InvalidArgument, match=f"S3 takes {NAME_BYTES_MAX:,}"):
        check_name("", " " * METADATA_KEY_BYTES_MAX)


def changes(count: int, *, key: str = "k") -> list[Record]:
    """So many, each upon the one before."""
    made: list[Record] = []
    for index in range(count):
        present = made[-1] if made else None
        made.append(next_record(present, key, b"v", nonce=f"n{index}", now_ms=1_000, above=ABSENT))
    return made


@given(st.binary(max_size=50), st.booleans(), st.integers(0, 12))
def test_what_is_written_is_read(value: bytes, deleted: bool, before: int) -> None:
    present = changes(before)[-1] if before else None
    kept = None if deleted else value
    record = next_record(present, "k", kept, nonce="n", now_ms=7, above=ABSENT)
    assert decode("k", encode(record)) == record
    assert record.entry() == (None if deleted else Entry("k", value, record.version))


@given(st.data())
def test_a_flipped_bit_is_found_out(data: st.DataObject) -> None:
    """Field note 24: one flipped bit is damage, wherever it is, and never absence."""
    written = encode(changes(3)[-1])
    bit = data.draw(st.integers(0, 8 * len(written) - 1))
    changed = bytearray(written)
    changed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(MetadataCorrupt, match=r"^k: "):
        decode("k", bytes(changed))


@pytest.mark.parametrize("data", [b"", b"{}", b"00000000 {}"])
def test_what_is_no_object_of_ours_is_damage(data: bytes) -> None:
    with pytest.raises(MetadataCorrupt):
        decode("k", data)


def test_an_object_under_another_key_is_damage() -> None:
    with pytest.raises(MetadataCorrupt, match="that of the key 'k'"):
        decode("j", encode(changes(1)[-1]))


def test_versions_grow_whatever_clocks_say() -> None:
    """Above the one before, above all that was met, and as late as the clock."""

    def version(present: Record | None, *, now_ms: int, above: int) -> int:
        return next_record(
            present, "k", b"", nonce="n", now_ms=now_ms, above=Version(above)
        ).version

    present = Record("k", Version(500), "n", None)
    assert version(None, now_ms=400, above=0) == 400
    assert version(present, now_ms=400, above=0) == 501
    assert version(present, now_ms=400, above=900) == 901
    assert version(present, now_ms=1_000, above=900) == 1_000


def test_the_past_tells_whose_change_was_made() -> None:
    """As far as it reaches; beyond that nothing is claimed."""
    made = changes(PAST_KEPT + 3)
    last = made[-1]
    for record in made[-PAST_KEPT - 1 :]:
        assert made_as(last, record.nonce) == record.version
        assert comes_after(last, record)
    assert made_as(last, made[1].nonce) is None
    assert not comes_after(last, made[1])
    assert not comes_after(last, None)
    assert comes_after(made[PAST_KEPT - 1], None)
    assert not comes_after(made[PAST_KEPT], None)


def watcher(*, events_max: int = 10, bytes_max: int = 1_000) -> Watcher:
    return Watcher("", events_max, bytes_max)


def changed(record: Record) -> Changed:
    entry = record.entry()
    assert entry is not None
    return Changed(entry)


def gone(record: Record) -> Record:
    return next_record(record, record.key, None, nonce="gone", now_ms=0, above=ABSENT)


def test_a_watcher_takes_nothing_that_is_late() -> None:
    """A deleted key does not come back by a finding that was read before and comes after."""
    first, second, third = changes(3)
    found = watcher()
    assert found.accept([first]) == [changed(first)]
    assert found.accept([third, second, first]) == [changed(third)]
    tombstone = gone(third)
    assert found.accept([tombstone, third, tombstone]) == [Deleted("k", tombstone.version)]
    again = next_record(tombstone, "k", b"", nonce="a", now_ms=0, above=ABSENT)
    assert found.accept([third, again]) == [changed(again)]


def test_a_tombstone_of_what_was_never_told_is_no_news() -> None:
    found = watcher()
    assert found.accept([gone(changes(1)[0])]) == []


def test_of_what_waits_the_last_is_told() -> None:
    """In the order of the last changes; what is known already does not wait."""
    first, second, third = changes(3)
    other = changes(1, key="other")[0]
    found = watcher()
    for finding in (second, other, first, third):
        found.offer(finding)
    assert found.take() == [changed(other), changed(third)]
    found.offer(second)
    assert not found.has_news
    assert found.take() == []


@pytest.mark.parametrize("limits", [{"events_max": 3}, {"bytes_max": 8}])
def test_what_waits_is_bounded(limits: dict[str, int]) -> None:
    """A watcher that lags too far is told the difference instead; one large value always fits."""
    found = watcher(**limits)
    found.offer(next_record(None, "k", b"v" * 100, nonce="n", now_ms=1, above=ABSENT))
    assert found.take()
    for index in range(4):
        found.offer(changes(1, key=f"key{index}")[0])
    assert found.has_news
    assert found.take() is None
    found.restart()
    assert not found.has_news


def test_damage_is_told_and_so_is_what_comes_back() -> None:
    """What a person brings back may be the very value that was there before."""
    record = changes(1)[0]
    found = watcher()
    found.accept([record])
    [damage] = found.accept([Damaged("k", b"garbage", "why")])
    assert damage == Changed(Entry("k", b"garbage", Version(record.version + 1)))
    assert found.accept([record]) == [changed(record)]
    assert found.accept([record]) == []


def test_what_was_removed_is_told_once() -> None:
    record = changes(1)[0]
    found = watcher()
    found.accept([record])
    assert found.lacking({"other"}) == ["k"]
    assert found.accept([Removed("k")]) == [Deleted("k", Version(record.version + 1))]
    assert found.accept([Removed("k")]) == []
    assert found.accept([record]) == [changed(record)]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"poll_interval_s": 0.0}, "poll_interval_s and timeout_s"),
        ({"timeout_s": 0.0}, "poll_interval_s and timeout_s"),
        ({"fetches_max": 33}, "fetches_max must be from 1 to connections_max"),
        ({"cache_bytes": 1}, "cache_bytes is below"),
        ({"watch_events_max": 0}, "limits of watchers"),
        ({"endpoint": "minio"}, "endpoint is 'minio'"),
        ({"backoff_max_s": 0.01}, "backoff_max_s is below"),
    ],
)
def test_settings_that_can_not_be_right(settings: dict[str, object], words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        MetadataS3Config(**settings).validate()  # type: ignore[arg-type]  # fields of the class


PAGE = """<?xml version="1.0" encoding="UTF-8"?>
<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>b</Name>
<EncodingType>url</EncodingType><IsTruncated>true</IsTruncated>
<Contents><Key>p/a%3D&amp;b=</Key><LastModified>2026-11-28T12:00:00.500Z</LastModified>
<ETag>&quot;e1&quot;</ETag><Size>7</Size><StorageClass>STANDARD</StorageClass></Contents>
<Contents><Key>p/c=</Key><LastModified>2026-11-28T12:00:01Z</LastModified>
<ETag>e2</ETag><Size>0</Size></Contents>
<NextContinuationToken>next</NextContinuationToken></ListBucketResult>"""


@pytest.mark.parametrize("page", [PAGE, PAGE.replace(' xmlns="http', ' other="http')])
def test_objects_are_taken_out_of_a_listing(page: str) -> None:
    """As the library would have read them; the rest stays for it to read."""
    answer = {"status_code": 200, "body": page.encode()}
    taken: dict[str, list[dict[str, object]]] = {}
    take_objects(answer, taken)
    first, second = taken["Contents"]
    assert (first["Key"], first["ETag"], first["Size"]) == ("p/a%3D&b=", '"e1"', 7)
    assert str(first["LastModified"]) == "2026-11-28 12:00:00.500000+00:00"
    assert (second["Key"], second["ETag"], second["Size"]) == ("p/c=", "e2", 0)
    left = answer["body"]
    assert isinstance(left, bytes)
    assert b"Contents" not in left
    assert b"next<" in left
    assert b">url<" in left


@pytest.mark.parametrize(
    ("code", "body"), [(200, PAGE[:300]), (200, ""), (503, PAGE), (200, "<a><Contents/></a>")]
)
def test_what_is_no_listing_is_left_to_the_library(code: int, body: str) -> None:
    answer = {"status_code": code, "body": body.encode()}
    taken: dict[str, object] = {}
    take_objects(answer, taken)
    assert (answer["body"], taken) == (body.encode(), {})
