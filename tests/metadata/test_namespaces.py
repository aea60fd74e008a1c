"""Namespaces: what a log inherits, what may be set, and changes over a real store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metadata.core import majority
from metadata.embedded import EmbeddedMetadataStore
from metadata.encoding import decode_namespace, encode_namespace, namespace_key
from metadata.errors import MetadataCorrupt
from metadata.namespace_registry import (
    StoredNamespace,
    delete_namespace,
    fetch_namespaces,
    set_namespace,
)
from metadata.namespaces import (
    Asked,
    NamespaceChange,
    check_change,
    check_prefix,
    prefixes_of,
    settings_of,
)
from metadata.records import NamespaceRecord, Spread
from metadata.store import ABSENT, Entry, MetadataStore, Version
from sharedlog.clock import SystemClock
from sharedlog.errors import InvalidArgument, VersionMismatch
from sharedlog.limits import LOG_NAME_CHARS_MAX, NAMESPACES_MAX
from sharedlog.retention import NO_RETENTION, Retention

DAY = 86_400


def space(
    prefix: str,
    replicas: int | None = None,
    write_quorum: int | None = None,
    spread: Spread | None = None,
    retention: Retention = NO_RETENTION,
) -> NamespaceRecord:
    return NamespaceRecord(
        prefix=prefix,
        replicas=replicas,
        write_quorum=write_quorum,
        spread=spread,
        retention=retention,
        changed_ms=1,
        change_nonce="n",
    )


def by_prefix(*records: NamespaceRecord) -> dict[str, NamespaceRecord]:
    return {record.prefix: record for record in records}


TREE = by_prefix(
    space("", replicas=3),
    space("team/", spread=(("zone", 2),)),
    space("team/tmp/", replicas=1, spread=()),
)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("a", "3 (namespace:), 2 (default),  (default)"),
        ("team/a", "3 (namespace:), 2 (default), zone:2 (namespace:team/)"),
        ("team", "3 (namespace:), 2 (default),  (default)"),
        ("team/tmp/a/b", "1 (namespace:team/tmp/), 1 (default),  (namespace:team/tmp/)"),
        ("teams/a", "3 (namespace:), 2 (default),  (default)"),
    ],
)
def test_each_setting_comes_from_the_longest_prefix_that_sets_it(name: str, told: str) -> None:
    """Setting by setting; an empty spread is set, a missing one is inherited."""
    found = settings_of(name, TREE, default_replicas=3).kept()
    assert ", ".join(f"{value} ({source})" for _, value, source in found) == told


def test_what_the_creator_asks_for_goes_before_what_is_inherited() -> None:
    """Setting by setting too: what is not asked for is inherited still."""
    found = settings_of("team/a", TREE, asked=Asked(replicas=5), default_replicas=3)
    assert (found.replicas.value, found.replicas.source) == (5, "create")
    assert (found.write_quorum.value, found.write_quorum.source) == (3, "default")
    assert found.spread.value == (("zone", 2),)


def test_nobody_says_anything() -> None:
    """The cluster's default and its majority."""
    found = settings_of("x", {}, default_replicas=4)
    assert (found.replicas.value, found.write_quorum.value, found.spread.value) == (4, 3, ())
    assert {source for _, _, source in found.told()} == {"default"}


def test_limits_are_inherited_one_by_one_and_nobody_need_set_any() -> None:
    """0 ends one that a shorter prefix sets; a log keeps what somebody said of it, and no more."""
    tree = by_prefix(
        space("", retention=Retention(local_bytes=10 << 30, total_age_s=30 * DAY)),
        space("a/", retention=Retention(local_age_s=7 * DAY)),
        space("a/b/", retention=Retention(local_bytes=0)),
    )
    found = settings_of("a/b/x", tree, default_replicas=3)
    assert found.retention == Retention(local_age_s=7 * DAY, total_age_s=30 * DAY)
    limits = (
        ("local_bytes", "", "namespace:a/b/"),
        ("local_age", "7d", "namespace:a/"),
        ("total_age", "30d", "namespace:"),
    )
    assert found.told()[4:] == found.kept()[3:] == limits
    asked = Asked(retention=Retention(total_age_s=0, local_age_s=60))
    found = settings_of("x", tree, asked=asked, default_replicas=3)
    assert found.retention == Retention(local_bytes=10 << 30, local_age_s=60)
    assert found.told()[5:] == (("local_age", "1m", "create"), ("total_age", "", "create"))
    found = settings_of("x", {}, default_replicas=3)
    assert found.retention == NO_RETENTION
    assert len(found.kept()) == 3
    assert {source for _, _, source in found.told()[3:]} == {"default"}


def test_limits_that_cannot_be_together_are_refused_with_their_sources() -> None:
    """Wherever they come from; a namespace that makes one below it impossible, too."""
    above = space("", retention=Retention(total_age_s=DAY))
    below = space("a/", retention=Retention(local_age_s=2 * DAY))
    with pytest.raises(InvalidArgument, match=r"total age of 1d is less than .* 2d") as refused:
        settings_of("a/x", by_prefix(above, below), default_replicas=3)
    assert "local_age 2d (namespace:a/), total_age 1d (namespace:)" in str(refused.value)
    with pytest.raises(InvalidArgument, match="namespace 'a/' could not be any more"):
        check_change(by_prefix(above, below), "", default_replicas=3)


def test_a_combination_that_cannot_be_is_refused_with_its_sources() -> None:
    """2 of 5 is no majority, wherever the two come from."""
    tree = by_prefix(space("a/", write_quorum=2, replicas=3), space("a/b/", replicas=5))
    with pytest.raises(InvalidArgument, match="no majority") as refused:
        settings_of("a/b/x", tree, default_replicas=3)
    assert "replicas 5 (namespace:a/b/), write_quorum 2 (namespace:a/)" in str(refused.value)


@pytest.mark.parametrize("prefix", ["", "a/", "a/b/", "a.b-c_d/", "x" * 254 + "/"][:4])
def test_prefixes_that_can_be(prefix: str) -> None:
    """The empty one, and the beginning of a log's name up to a slash."""
    check_prefix(prefix)


@pytest.mark.parametrize("prefix", ["a", "/", "/a/", "a b/", "a/b", "ä/", "x" * 255 + "/", "a/\n"])
def test_prefixes_that_cannot_be(prefix: str) -> None:
    """No slash at the end, or no log's name could begin so."""
    with pytest.raises(InvalidArgument):
        check_prefix(prefix)


def test_the_longest_prefix_leaves_room_for_a_name() -> None:
    """254 characters are taken: a log needs one more."""
    check_prefix("x" * (LOG_NAME_CHARS_MAX - 2) + "/")
    with pytest.raises(InvalidArgument):
        check_prefix("x" * (LOG_NAME_CHARS_MAX - 1) + "/")


def test_a_change_is_checked_against_all_that_lies_below() -> None:
    """A prefix may be in order by itself and make one below it impossible."""
    tree = by_prefix(space("", replicas=5), space("a/", write_quorum=2, replicas=3))
    check_change(tree, "", default_replicas=3)
    tree = by_prefix(space("", replicas=5), space("a/", write_quorum=2))
    with pytest.raises(InvalidArgument, match=r"namespace 'a/' could not be any more: .*majority"):
        check_change(tree, "", default_replicas=3)
    full = by_prefix(*(space(f"n{index}/") for index in range(NAMESPACES_MAX + 1)))
    with pytest.raises(InvalidArgument, match="1,000 namespaces"):
        check_change(full, "n1/", default_replicas=3)


_NAMES = st.lists(st.sampled_from("ab"), min_size=1, max_size=4).map("/".join)
_RECORDS = st.dictionaries(
    st.lists(st.sampled_from("ab"), max_size=3).map(lambda it: "".join(f"{x}/" for x in it)),
    st.tuples(
        st.none() | st.integers(1, 5), st.none() | st.integers(1, 5), st.none() | st.just(())
    ),
)


@given(name=_NAMES, tree=_RECORDS)
def test_inheritance_is_what_a_walk_up_the_name_finds(
    name: str, tree: dict[str, tuple[int | None, int | None, tuple[()] | None]]
) -> None:
    """For any tree: the first prefix upwards that sets a setting gives it, or else it is default;
    what can't be is refused and nothing else is."""
    records = by_prefix(*(space(prefix, *values) for prefix, values in tree.items()))
    wanted: list[int] = []
    for index, default in ((0, 3), (1, 0)):
        up = [tree[prefix][index] for prefix in prefixes_of(name) if prefix in tree]
        wanted.append(next((value for value in up if value is not None), default) or 0)
    replicas, quorum = wanted[0], wanted[1] or majority(wanted[0])
    can_be = quorum <= replicas < 2 * quorum
    try:
        found = settings_of(name, records, default_replicas=3)
    except InvalidArgument:
        assert not can_be
    else:
        assert can_be
        assert (found.replicas.value, found.write_quorum.value) == (replicas, quorum)


# Over a store.


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[EmbeddedMetadataStore]:
    opened = EmbeddedMetadataStore(tmp_path / "store", SystemClock())
    yield opened
    await opened.close()


async def put(
    store: MetadataStore,
    prefix: str,
    change: NamespaceChange,
    *,
    expected: Version | None = None,
    nonce: str = "",
) -> StoredNamespace:
    return await set_namespace(
        store,
        prefix,
        change,
        expected=expected,
        nonce=nonce or repr(change),
        now_ms=7,
        default_replicas=3,
    )


async def test_a_change_keeps_what_it_does_not_name(store: EmbeddedMetadataStore) -> None:
    """Settings are set, kept, and inherited again, one by one."""
    await put(store, "a/", NamespaceChange(replicas=3, write_quorum=2))
    await put(store, "a/", NamespaceChange(spread=(("zone", 2),)))
    found = await put(store, "a/", NamespaceChange(inherit=("write_quorum",)))
    assert found.record.replicas == 3
    assert found.record.write_quorum is None
    assert found.record.spread == (("zone", 2),)
    assert (await fetch_namespaces(store))["a/"] == found


async def test_limits_are_set_kept_ended_and_inherited_again(
    store: EmbeddedMetadataStore,
) -> None:
    """Each by itself, as the other settings are."""
    await put(store, "a/", NamespaceChange(retention=Retention(local_bytes=5, local_age_s=DAY)))
    change = NamespaceChange(retention=Retention(total_age_s=DAY, local_bytes=0))
    found = await put(store, "a/", change)
    assert found.record.retention == Retention(local_bytes=0, local_age_s=DAY, total_age_s=DAY)
    found = await put(store, "a/", NamespaceChange(replicas=3, inherit=("local_age",)))
    assert found.record.retention == Retention(local_bytes=0, total_age_s=DAY)
    found = await put(store, "a/", NamespaceChange(inherit=("total_age", "local_bytes")))
    assert (found.record.retention, found.record.replicas) == (NO_RETENTION, 3)
    assert (await fetch_namespaces(store))["a/"] == found


async def test_a_change_waits_for_the_version_that_it_was_made_for(
    store: EmbeddedMetadataStore,
) -> None:
    """A compare-and-swap; a repeat of one whose answer was lost is told from a lost race."""
    first = await put(store, "a/", NamespaceChange(replicas=3), expected=ABSENT)
    with pytest.raises(VersionMismatch):
        await put(store, "a/", NamespaceChange(replicas=5), expected=ABSENT)
    second = await put(store, "a/", NamespaceChange(replicas=5), expected=first.version, nonce="x")
    again = await put(store, "a/", NamespaceChange(replicas=5), expected=first.version, nonce="x")
    assert again == second
    with pytest.raises(VersionMismatch):
        await delete_namespace(store, "a/", expected=first.version, default_replicas=3)
    assert await delete_namespace(store, "a/", expected=second.version, default_replicas=3)
    assert not await delete_namespace(store, "a/", expected=None, default_replicas=3)
    assert await fetch_namespaces(store) == {}


async def test_what_others_rest_on_is_not_deleted(store: EmbeddedMetadataStore) -> None:
    """Without its replicas the write quorum below could not be."""
    await put(store, "a/", NamespaceChange(replicas=5))
    await put(store, "a/b/", NamespaceChange(write_quorum=4))
    with pytest.raises(InvalidArgument, match="'a/b/' could not be any more"):
        await delete_namespace(store, "a/", expected=None, default_replicas=3)
    with pytest.raises(InvalidArgument, match="'a/b/' could not be any more"):
        await put(store, "a/", NamespaceChange(inherit=("replicas",)))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (NamespaceChange(replicas=8), "1 to 7"),
        (NamespaceChange(replicas=3, write_quorum=1), "majority"),
        (NamespaceChange(write_quorum=4), "can't be had from 3"),
        (NamespaceChange(spread=(("zone", 4),)), "can't be had"),
        (NamespaceChange(spread=(("town", 1),)), "no level"),
        (NamespaceChange(inherit=("colour",)), "no setting 'colour'"),
        (NamespaceChange(replicas=3, inherit=("replicas",)), "both set and inherited"),
        (
            NamespaceChange(retention=Retention(local_age_s=1), inherit=("local_age",)),
            "local_age can't be both",
        ),
        (NamespaceChange(retention=Retention(local_bytes=-1)), "local_bytes is -1"),
        (NamespaceChange(retention=Retention(local_age_s=2, total_age_s=1)), "less than"),
    ],
)
async def test_what_cannot_be_is_refused(
    store: EmbeddedMetadataStore, change: NamespaceChange, reason: str
) -> None:
    """With the reason, and nothing is written."""
    with pytest.raises(InvalidArgument, match=reason):
        await put(store, "a/", change)
    assert await fetch_namespaces(store) == {}


async def test_changes_at_once_are_all_made(store: EmbeddedMetadataStore) -> None:
    """Of different settings by different people: none undoes another's."""
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(put(store, "a/", NamespaceChange(replicas=3)))
        tasks.create_task(put(store, "a/", NamespaceChange(write_quorum=2)))
        tasks.create_task(put(store, "a/", NamespaceChange(spread=(("node", 2),))))
    record = (await fetch_namespaces(store))["a/"].record
    assert (record.replicas, record.write_quorum, record.spread) == (3, 2, (("node", 2),))


def test_a_record_survives_its_bytes_and_damage_is_found() -> None:
    """Set, empty and inherited stay three things; a flipped bit is no namespace."""
    kept = Retention(local_bytes=0, total_age_s=5)
    for record in (
        space("x/", retention=kept),
        space("a/"),
        space("", 3, 2, ()),
        space("a/b/", None, None, (("zone", 2),)),
    ):
        value = encode_namespace(record)
        entry = Entry(namespace_key(record.prefix), value, Version(1))
        assert decode_namespace(entry) == record
        damaged = value[:-2] + bytes([value[-2] ^ 1]) + value[-1:]
        with pytest.raises(MetadataCorrupt):
            decode_namespace(Entry(entry.key, damaged, Version(1)))
