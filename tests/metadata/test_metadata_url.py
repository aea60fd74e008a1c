"""URLs of metadata stores, and what they open."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from helpers.metadata_backends import served

from metadata.config import EtcdConfig, MetadataSettings
from metadata.etcd import EtcdMetadataStore
from metadata.s3.config import MetadataS3Config
from metadata.s3.store import S3MetadataStore
from metadata.store import ABSENT
from metadata.url import open_metadata_store, parse_metadata_url
from sharedlog.clock import SystemClock
from sharedlog.errors import InvalidArgument
from sharedlog.rpc.grpc_client import GrpcTransport


@pytest.fixture
async def transport() -> AsyncIterator[GrpcTransport]:
    found = GrpcTransport()
    yield found
    await found.close()


@pytest.mark.parametrize("url", ["embedded://127.0.0.1:4099", "embedded://[::1]:4099"])
def test_urls_of_an_embedded_store(url: str) -> None:
    """It is one process, and `status` says so."""
    parsed = parse_metadata_url(url)
    assert str(parsed) == url
    assert parsed.address == url.removeprefix("embedded://")
    assert "single point of failure" in parsed.describe()


def test_urls_of_etcd() -> None:
    """Several members, and a prefix, whose slashes at the ends mean nothing."""
    url = "etcd://e1.example:2379,10.0.0.2:2379,[::1]:2379/sharedlog/prod"
    parsed = parse_metadata_url(url)
    assert str(parsed) == parsed.describe() == url
    assert parsed.addresses == ("e1.example:2379", "10.0.0.2:2379", "[::1]:2379")
    assert parsed.prefix == "sharedlog/prod"
    assert parse_metadata_url(f"{url}/") == parsed
    assert parse_metadata_url("etcd://h:1/p").addresses == ("h:1",)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "127.0.0.1:4099",
        "embedded:/x",
        "embedded://",
        "embedded://host",
        "embedded://host:0",
        "embedded://host:x",
        "embedded://host:70000",
        "embedded://host:1/path",
        "embedded://[::1:4",
        "embedded://user@host:1",
        "etcd://",
        "etcd:///prefix",
        "etcd://host:1",
        "etcd://host:1/",
        "etcd://host/prefix",
        "etcd://host:1,/prefix",
        "etcd://host:1,host:0/prefix",
        "etcd://user:word@host:1/prefix",
        "etcd://host:1/a//b",
        "etcd://host:1/a b",
        "etcd://host:1/a?b=c",
        "etcd://host:1/%61",
        "etcd://host:1/" + "a" * 256,
        "s3://",
        "s3:///prefix",
        "s3://b",
        "s3://bucket/a//b",
        "s3://bucket/a?b=c",
        "s3://bucket/a#b",
        "s3://key:secret@bucket/a",
        "s3://[bucket/a",
        "zk://host:1",
    ],
)
async def test_urls_that_name_none(url: str, transport: GrpcTransport) -> None:
    """One line that says what the form is."""
    with pytest.raises(InvalidArgument, match=r"metadata URL .*: the forms? (is|are) "):
        open_metadata_store(url, transport, clock=SystemClock(), new_id=lambda: "n")


async def test_a_url_opens_an_embedded_store(tmp_path: Path, transport: GrpcTransport) -> None:
    """The transport is its caller's: closing the store leaves it open."""
    async with served(tmp_path) as server:
        url = f"embedded://{server.address}"
        for key in ("a", "b"):
            store = open_metadata_store(url, transport, clock=SystemClock(), new_id=lambda: "n")
            assert await store.put(key, b"v", expected=ABSENT) > ABSENT
            await store.close()


async def test_a_url_opens_etcd(transport: GrpcTransport) -> None:
    """Nothing is connected yet; a file that can't be read is told at once."""
    url = "etcd://127.0.0.1:1/p"
    store = open_metadata_store(url, transport, clock=SystemClock(), new_id=lambda: "n")
    assert isinstance(store, EtcdMetadataStore)
    await store.close()
    settings = MetadataSettings(etcd=EtcdConfig(ca_file="/nowhere/ca.pem"))
    with pytest.raises(InvalidArgument, match=r"can't read /nowhere/ca\.pem: No such file"):
        open_metadata_store(
            url, transport, clock=SystemClock(), new_id=lambda: "n", settings=settings
        )


@pytest.mark.parametrize("url", ["s3://bucket", "s3://my.bucket-1/sharedlog/prod"])
async def test_a_url_opens_a_bucket(url: str, transport: GrpcTransport) -> None:
    """Nothing is connected yet; settings that can't be right are told at once."""
    parsed = parse_metadata_url(url)
    assert str(parsed) == parsed.describe() == url
    assert parse_metadata_url(f"{url}/") == parsed
    store = open_metadata_store(url, transport, clock=SystemClock(), new_id=lambda: "n")
    assert isinstance(store, S3MetadataStore)
    assert store.url == url
    await store.close()
    settings = MetadataSettings(s3=MetadataS3Config(endpoint="minio:9000"))
    with pytest.raises(InvalidArgument, match="endpoint is 'minio:9000'"):
        open_metadata_store(
            url, transport, clock=SystemClock(), new_id=lambda: "n", settings=settings
        )


@pytest.mark.parametrize(
    "url",
    [
        "s3://key:secret@bucket/a",
        "s3://bucket/a?X-Amz-Signature=secret",
        "etcd://root:secret@host:1,host:2/prefix",
        "etcd://host:1,root:se/cret:secret@host:2/prefix",
        "embedded://root:secret@host:1",
        "embedded://root:secret#and@host:1",
        "http://root:secret@host:1",
    ],
)
def test_what_is_secret_in_a_url_is_not_repeated(url: str) -> None:
    """It would be in logs, and on screens."""
    with pytest.raises(InvalidArgument, match=r"the forms? (is|are)") as refused:
        parse_metadata_url(url)
    assert "secret" not in str(refused.value)


def test_where_credentials_of_a_bucket_come_from_is_said() -> None:
    with pytest.raises(InvalidArgument, match="from the environment"):
        parse_metadata_url("s3://key:secret@bucket/a")
