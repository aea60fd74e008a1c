"""Changing a log and a node's state over a store that races, loses answers, or is away."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.unsure_store import Unsure, unsure

from metadata import registry
from metadata.core import Load
from metadata.embedded import EmbeddedMetadataStore
from metadata.encoding import encode_log
from metadata.records import NODE_STATES, LogRecord, NodeRecord
from metadata.registry import (
    STATE_CHANGES,
    change_log,
    commit_change,
    create_log,
    fetch_log,
    register_node,
    set_node_state,
)
from metadata.store import MetadataStore, Version
from sharedlog.clock import SystemClock
from sharedlog.errors import (
    InvalidArgument,
    LogNotFound,
    LogUnavailable,
    MetadataUnavailable,
    VersionMismatch,
)
from sharedlog.ids import LogId, NodeId, Offset, StorageId


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[EmbeddedMetadataStore]:
    opened = EmbeddedMetadataStore(tmp_path / "store", SystemClock())
    yield opened
    await opened.close()


async def register(store: MetadataStore, *, storage_id: str = "s1") -> NodeRecord:
    return await register_node(
        store,
        node_id=NodeId("n1"),
        storage_id=StorageId(storage_id),
        address="n1:4100",
        roles=("log-server", "sequencer") if storage_id else ("sequencer",),
        known_cluster_id="",
        new_id=lambda: "c1",
        now_ms=1,
    )


async def create(store: MetadataStore) -> tuple[LogRecord, Version]:
    return await create_log(
        store,
        name="orders",
        replicas=1,
        write_quorum=0,
        nonce="a",
        alive=[await register(store)],
        load=Load(),
        log_id=LogId(1),
        now_ms=2,
    )


def ending(index: int, *, end: int) -> Callable[[LogRecord], LogRecord | None]:
    """What a reconfiguration builds: ends segment `index` at `end`, if it is still the open one."""

    def build(record: LogRecord) -> LogRecord | None:
        was = record.open_segment
        if was.index != index:
            return None
        opened = replace(was, index=index + 1, base=Offset(end))
        return replace(record, chain=(*record.chain[:-1], replace(was, end=Offset(end)), opened))

    return build


async def test_a_change_is_made_once_and_names_its_maker(store: EmbeddedMetadataStore) -> None:
    await create(store)
    record, version, won = await commit_change(store, "orders", ending(0, end=10), "x")
    assert won
    assert record.change_nonce == "x"
    assert await fetch_log(store, "orders") == (record, version)
    again = await commit_change(store, "orders", ending(0, end=11), "x")
    assert again == (record, version, True)


async def test_a_known_record_saves_the_read(store: EmbeddedMetadataStore) -> None:
    start = await create(store)
    counting = Unsure(store)
    await commit_change(unsure(counting), "orders", ending(0, end=10), "x", start=start)
    assert counting.gets == 0
    _, _, won = await commit_change(unsure(counting), "orders", ending(1, end=20), "y", start=start)
    assert not won  # by what was known segment 1 was not open, so nobody asked further
    _, _, won = await commit_change(unsure(counting), "orders", ending(1, end=20), "y")
    assert won


async def test_a_loser_adopts_the_winners_chain(store: EmbeddedMetadataStore) -> None:
    """Field note 7: two found different ends; the chain decides, and the loser takes it as is."""
    start = await create(store)
    winner, version, _ = await commit_change(store, "orders", ending(0, end=10), "x", start=start)
    found = await commit_change(store, "orders", ending(0, end=12), "y", start=start)
    assert found == (winner, version, False)


async def test_a_change_of_another_field_is_no_defeat(store: EmbeddedMetadataStore) -> None:
    """The same end, on top of what the other one changed: a sealed quorum's end stays valid."""
    old, version = start = await create(store)
    await change_log(
        store, old, replace(old, change_nonce="other", spread=(("node", 1),)), expected=version
    )
    record, _, won = await commit_change(store, "orders", ending(0, end=10), "x", start=start)
    assert won
    assert record.spread == (("node", 1),)
    assert record.chain[0].end == 10


@pytest.mark.parametrize("fate", ["made", "not made", "late"])
async def test_an_unknown_outcome_is_settled_by_reading_back(
    store: EmbeddedMetadataStore, fate: str
) -> None:
    """Field note 50, for changes: by the nonce one's own change is known again, and made once."""
    await create(store)
    record, version, won = await commit_change(
        unsure(Unsure(store, fate)), "orders", ending(0, end=10), "x"
    )
    assert won
    assert await fetch_log(store, "orders") == (record, version)
    assert len(record.chain) == 2


async def test_the_read_back_may_fail_as_well(store: EmbeddedMetadataStore) -> None:
    start = await create(store)
    flaky = Unsure(store, "made")
    flaky.gets_fail = 2
    _, _, won = await commit_change(unsure(flaky), "orders", ending(0, end=10), "x", start=start)
    assert won


async def test_a_store_that_stays_away_leaves_it_open(store: EmbeddedMetadataStore) -> None:
    """Field note 52: reconfiguration waits; the same call, made again, tells what became of it."""
    start = await create(store)
    away = Unsure(store, "made")
    away.gets_fail = registry.READ_BACKS_MAX
    with pytest.raises(MetadataUnavailable):
        await commit_change(unsure(away), "orders", ending(0, end=10), "x", start=start)
    record, _, won = await commit_change(store, "orders", ending(0, end=99), "x", start=start)
    assert won
    assert record.chain[0].end == 10


async def test_without_a_put_nothing_is_read_back(store: EmbeddedMetadataStore) -> None:
    await create(store)
    away = Unsure(store)
    away.gets_fail = 1
    with pytest.raises(MetadataUnavailable):
        await commit_change(unsure(away), "orders", ending(0, end=10), "x")
    assert away.gets == 1


async def test_somebody_elses_change_after_a_lost_answer(store: EmbeddedMetadataStore) -> None:
    """Whose a segment is can't be told any more; that it has ended is what counts."""
    await create(store)

    class Meanwhile(Unsure):
        async def put(self, key: str, value: bytes, *, expected: Version) -> Version:
            try:
                return await super().put(key, value, expected=expected)
            finally:
                await commit_change(store, "orders", ending(1, end=20), "y")

    found, _, won = await commit_change(
        unsure(Meanwhile(store, "made")), "orders", ending(0, end=10), "x"
    )
    assert not won
    assert [it.end for it in found.chain] == [10, 20, None]


async def test_what_build_refuses_is_not_made(store: EmbeddedMetadataStore) -> None:
    old = await create(store)

    def wrong(record: LogRecord) -> LogRecord:
        return replace(record, name="other")

    with pytest.raises(InvalidArgument, match="names the log"):
        await commit_change(store, "orders", wrong, "x")
    with pytest.raises(LogNotFound):
        await commit_change(store, "nothing", wrong, "x")
    assert await fetch_log(store, "orders") == old


async def test_a_value_that_is_too_large_is_refused_only_if_it_makes_the_chain_longer(
    store: EmbeddedMetadataStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Field note 51: the size is limited with a clear error, and room is left to mend things."""
    old, version = await create(store)
    longer = ending(0, end=10)(old)
    assert longer is not None
    monkeypatch.setattr(registry, "CHAIN_BYTES_MAX", len(encode_log(longer)) - 1)
    with pytest.raises(LogUnavailable, match="Go on in a new log"):
        await change_log(store, old, longer, expected=version)
    monkeypatch.setattr(registry, "CHAIN_BYTES_MAX", len(encode_log(longer)))
    moved = await change_log(store, old, longer, expected=version)
    monkeypatch.setattr(registry, "CHAIN_BYTES_MAX", 0)
    await change_log(store, longer, replace(longer, change_nonce="y"), expected=moved)


async def test_a_state_outlives_restarts_but_not_the_store(store: EmbeddedMetadataStore) -> None:
    """Field note 20: a wiped disk is a new server, and begins as one."""
    await register(store)
    assert (await set_node_state(store, NodeId("n1"), "draining")).state == "draining"
    assert (await register(store)).state == "draining"
    assert (await register(store, storage_id="")).state == "draining"
    assert (await register(store)).state == "draining"
    assert (await register(store, storage_id="s2")).state == "read-write"
    await set_node_state(store, NodeId("n1"), "data-loss")
    again = await register(store, storage_id="s2")
    assert (again.state, again.generation) == ("data-loss", 6)
    assert (await set_node_state(store, NodeId("n1"), "read-write")).generation == 6


async def test_a_state_is_that_of_the_store_that_a_node_had_last(
    store: EmbeddedMetadataStore,
) -> None:
    """A node that ran without its log server in between remembers which store its state was set of:
    a new disk does not inherit it, the old one finds it again."""
    await register(store)
    await set_node_state(store, NodeId("n1"), "data-loss")
    for _ in range(2):
        without = await register(store, storage_id="")
        assert (without.state, without.past_storage_id) == ("data-loss", "s1")
    assert (await register(store)).state == "data-loss"
    await register(store, storage_id="")
    anew = await register(store, storage_id="s2")
    assert (anew.state, anew.past_storage_id) == ("read-write", "")


@pytest.mark.parametrize("was", NODE_STATES)
@pytest.mark.parametrize("wanted", [*NODE_STATES, "provisioning"])
async def test_states_change_by_the_table(
    store: EmbeddedMetadataStore, was: str, wanted: str
) -> None:
    await register(store)
    if was == "gone":
        await set_node_state(store, NodeId("n1"), "draining")
    await set_node_state(store, NodeId("n1"), was)
    if wanted == was or wanted in STATE_CHANGES[was]:
        assert (await set_node_state(store, NodeId("n1"), wanted)).state == wanted
    else:
        with pytest.raises(InvalidArgument, match=f"n1 is {was}: it can't be set to"):
            await set_node_state(store, NodeId("n1"), wanted)


async def test_a_state_is_set_of_the_store_that_was_looked_at(
    store: EmbeddedMetadataStore,
) -> None:
    """A decision about one store does not hit the one that has taken its place meanwhile."""
    await register(store, storage_id="s1")
    await register(store, storage_id="s2")
    with pytest.raises(InvalidArgument, match="another store by now"):
        await set_node_state(store, NodeId("n1"), "data-loss", storage_id=StorageId("s1"))
    found = await set_node_state(store, NodeId("n1"), "data-loss", storage_id=StorageId("s2"))
    assert found.state == "data-loss"
    with pytest.raises(InvalidArgument, match="no node 'n2'"):
        await set_node_state(store, NodeId("n2"), "draining")


async def test_a_restart_in_between_is_no_defeat(store: EmbeddedMetadataStore) -> None:
    await register(store)

    class Restarting(Unsure):
        async def put(self, key: str, value: bytes, *, expected: Version) -> Version:
            if self.gets == 1:
                await register(store)
            return await super().put(key, value, expected=expected)

    found = await set_node_state(unsure(Restarting(store)), NodeId("n1"), "draining")
    assert (found.generation, found.state) == (2, "draining")


async def test_lost_races_have_an_end(
    store: EmbeddedMetadataStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "RACES_MAX", 3)
    await create(store)

    class Losing(Unsure):
        async def put(self, key: str, value: bytes, *, expected: Version) -> Version:
            raise VersionMismatch(key=key, expected=expected, actual=None)

    with pytest.raises(MetadataUnavailable, match="lost 3 races"):
        await commit_change(unsure(Losing(store)), "orders", ending(0, end=10), "x")
    with pytest.raises(MetadataUnavailable, match="lost 3 races"):
        await set_node_state(unsure(Losing(store)), NodeId("n1"), "draining")
