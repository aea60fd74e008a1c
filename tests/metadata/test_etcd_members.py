"""How etcd's members are spoken to: encrypted, as a user; and what their errors mean."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from helpers.etcd_server import EtcdCluster, make_tls_files

from metadata.config import EtcdConfig
from metadata.etcd import EtcdMetadataStore, open_etcd
from metadata.etcd_members import EtcdMembers
from metadata.etcd_wire import WATCH
from metadata.store import ABSENT, Changed, Entry, SnapshotComplete
from metadata.url import parse_metadata_url
from sharedlog.clock import SystemClock
from sharedlog.errors import (
    DeadlineExceeded,
    MetadataUnavailable,
    ProtocolError,
    SharedLogError,
    Unreachable,
)

STATUS = grpc.StatusCode


@asynccontextmanager
async def opened(etcd: EtcdCluster, config: EtcdConfig) -> AsyncIterator[EtcdMetadataStore]:
    url = parse_metadata_url(etcd.url("sharedlog/test"))
    store = open_etcd(url, config, clock=SystemClock(), new_id=lambda: uuid.uuid4().hex)
    try:
        yield store
    finally:
        await store.close()


@pytest.mark.slow
async def test_over_tls_with_a_certificate_of_its_own(tmp_path: Path) -> None:
    """Both sides show certificates; without ours, or if theirs is not known, nothing is said."""
    tls = make_tls_files(tmp_path)
    with EtcdCluster(tmp_path / "etcd", members=1, tls=tls) as etcd:
        full = EtcdConfig(
            ca_file=tls.ca, cert_file=tls.client_cert, key_file=tls.client_key, timeout_s=20.0
        )
        async with opened(etcd, full) as store:
            version = await store.put("k", b"v", expected=ABSENT)
            watch = store.watch("k")
            assert await anext(watch) == Changed(Entry("k", b"v", version))
            assert await anext(watch) == SnapshotComplete()
            await watch.aclose()
            await store.delete("k", expected=version)
        for lacking in (
            EtcdConfig(timeout_s=0.5),
            EtcdConfig(ca_file=tls.ca, timeout_s=0.5),
            EtcdConfig(tls=True, timeout_s=0.5),
        ):
            async with opened(etcd, lacking) as store:
                with pytest.raises(MetadataUnavailable, match="does not answer"):
                    await store.get("k")


@pytest.mark.slow
async def test_as_a_user_whose_token_is_fetched_again(tmp_path: Path) -> None:
    """The password is in a file. A token that etcd no longer knows, as after its restart, is
    replaced; who may not, or is nobody, is told so in one line."""
    password = tmp_path / "password"
    password.write_text("secret\n")
    with EtcdCluster(tmp_path / "etcd", members=1) as etcd:
        member = etcd.members[0]
        for name in ("root", "node", "stranger"):
            member.ask("auth/user/add", name=name, password="secret")
        member.ask("auth/role/add", name="sharedlog")
        below = {"key": "c2hhcmVkbG9nLw==", "range_end": "c2hhcmVkbG9nMA=="}  # sharedlog/
        member.ask("auth/role/grant", name="sharedlog", perm={"permType": 2, **below})
        member.ask("auth/user/grant", user="node", role="sharedlog")
        member.ask("auth/user/grant", user="root", role="root")
        member.ask("auth/enable")
        config = EtcdConfig(user="node", password_file=str(password), timeout_s=20.0)
        async with opened(etcd, config) as store:
            version = await store.put("k", b"1", expected=ABSENT)
            etcd.kill(member)
            etcd.start()
            version = await store.put("k", b"2", expected=version)
            entry = await store.get("k")
            assert entry is not None
            assert entry.version == version
        stranger = EtcdConfig(user="stranger", password_file=str(password))
        async with opened(etcd, stranger) as store:
            with pytest.raises(MetadataUnavailable, match="refuses: permission denied"):
                await store.get("k")
        async with opened(etcd, EtcdConfig()) as store:
            with pytest.raises(MetadataUnavailable, match="refuses: user name is empty"):
                await store.get("k")
        password.write_text("wrong")
        async with opened(etcd, config) as store:
            with pytest.raises(MetadataUnavailable, match="refuses: authentication failed"):
                await store.get("k")


@pytest.mark.parametrize(
    ("status", "details", "expected", "says"),
    [
        (STATUS.UNAVAILABLE, "etcdserver: no leader", MetadataUnavailable, "m:1: no leader"),
        (STATUS.UNAVAILABLE, "etcdserver: leader changed", MetadataUnavailable, "leader changed"),
        (STATUS.UNKNOWN, "context deadline exceeded", MetadataUnavailable, "context deadline"),
        (STATUS.UNAUTHENTICATED, "etcdserver: invalid auth token", MetadataUnavailable, "token"),
        (
            STATUS.INVALID_ARGUMENT,
            "etcdserver: revision of auth store is old",
            MetadataUnavailable,
            "auth store",
        ),
        (STATUS.RESOURCE_EXHAUSTED, "etcdserver: too many requests", MetadataUnavailable, "many"),
        (
            STATUS.RESOURCE_EXHAUSTED,
            "etcdserver: mvcc: database space exceeded",
            ProtocolError,
            "m:1 refuses: mvcc: database space exceeded",
        ),
        (STATUS.PERMISSION_DENIED, "etcdserver: permission denied", ProtocolError, "refuses"),
        (
            STATUS.UNAVAILABLE,
            (
                "failed to connect to all addresses; last error: UNKNOWN: ipv4:10.0.0.1:1: Failed "
                "to connect to remote host: connect: Connection refused (111)"
            ),
            Unreachable,
            "can't reach m:1: Connection refused (111)",
        ),
        (STATUS.DEADLINE_EXCEEDED, "Deadline Exceeded", DeadlineExceeded, "no answer from m:1"),
        (STATUS.UNIMPLEMENTED, "unknown service etcdserverpb.KV", ProtocolError, "UNIMPLEMENTED"),
    ],
)
async def test_errors_say_whether_they_may_pass(
    status: STATUS, details: str, expected: type[SharedLogError], says: str
) -> None:
    """Elections, restarts, expired tokens and overload pass; what etcd refuses stays refused."""
    members = EtcdMembers(["m:1"], EtcdConfig(), name="n")
    error = members._error_of("m:1", status, details)
    assert type(error) is expected
    assert says in str(error)
    await members.close()


async def test_a_member_that_failed_is_left_once() -> None:
    """Calls that fail together leave one member behind them, not several."""
    members = EtcdMembers(["a:1", "b:1", "c:1"], EtcdConfig(), name="n")
    first, _ = await members.stream(WATCH, timeout_s=1.0)
    for _ in range(5):
        members.leave(first)
    second, _ = await members.stream(WATCH, timeout_s=1.0)
    assert str(members).split(",").index(second) == (str(members).split(",").index(first) + 1) % 3
    await members.close()
