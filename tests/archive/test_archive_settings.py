"""URLs and settings of an archive: what is taken, and with what words the rest is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from helpers.archive_stores import opened

from loglet.archive.config import ArchiveConfig
from loglet.archive.url import parse_archive_url
from node.config import load_config
from node.errors import ConfigError
from sharedlog.errors import ArchiveUnsuitable, InvalidArgument
from sharedlog.limits import MIB


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("file:///var/lib/archive", "file:///var/lib/archive"),
        ("file:///var/lib/archive/", "file:///var/lib/archive"),
        ("file://localhost/a//b", "file:///a/b"),
        ("file:///with%20space", "file:///with space"),
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/", "s3://bucket"),
        ("s3://my.bucket-1/pre/fix/", "s3://my.bucket-1/pre/fix"),
    ],
)
def test_urls_of_archives(url: str, shown: str) -> None:
    assert str(parse_archive_url(url)) == shown


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "the form is file:///FOLDER or s3://BUCKET/PREFIX"),
        ("/var/lib/archive", "the form is"),
        ("gs://bucket/prefix", "the form is"),
        ("http://bucket", "the form is"),
        ("s3:bucket", "no name of a bucket"),
        ("s3://", "no name of a bucket"),
        ("s3://b", "no name of a bucket"),
        ("s3://-bucket", "no name of a bucket"),
        ("s3://bucket:80/x", "no name of a bucket"),
        ("s3://bucket/a//b", "single slashes"),
        ("s3://bucket/../b", "single slashes"),
        ("s3://bucket/a b", "single slashes"),
        ("s3://bucket/" + "p" * 150 + ("/" + "p" * 150) * 2, "longer than 400"),
        ("s3://bucket/x?region=eu", r"options belong in \[archive\]"),
        ("s3://bucket/x#y", r"options belong in \[archive\]"),
        ("file://var/lib", "three slashes"),
        ("file:relative", "absolute path"),
        ("file:///", "a folder below /"),
        ("file:///a/../b", "without .."),
        ("file:///a%00", "absolute path"),
        ("s3://[bucket", "archive URL"),
    ],
)
def test_what_is_no_url_of_an_archive(url: str, words: str) -> None:
    """In one line that says what is wanted."""
    with pytest.raises(InvalidArgument, match=words) as refused:
        parse_archive_url(url)
    assert "\n" not in str(refused.value)
    with pytest.raises(InvalidArgument):
        opened(url)


@pytest.mark.parametrize(
    "url", ["s3://AKIA:hidden@bucket/x", "s3://hidden@bucket", "gs://u:hidden@b/x?sig=hidden"]
)
def test_what_may_be_secret_in_a_url_is_not_told(url: str) -> None:
    with pytest.raises(InvalidArgument, match="holds credentials") as refused:
        parse_archive_url(url)
    assert "hidden" not in str(refused.value)
    assert "AKIA" not in str(refused.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"url": "ftp://x"}, "the form is"),
        ({"endpoint": "minio:9000"}, "endpoint is 'minio:9000'"),
        ({"endpoint": "https://"}, "https://HOST:PORT is needed"),
        ({"endpoint": "https://h:x"}, "endpoint is no URL"),
        ({"endpoint": "https://u:hidden@h"}, "endpoint holds credentials"),
        ({"sse_kms_key_id": "key"}, "sse must be aws:kms"),
        ({"sse_kms_key_id": "key", "sse": "AES256"}, "sse must be aws:kms"),
        ({"storage_class": "GLACIER"}, "readable at once"),
        ({"storage_class": "deep_archive"}, "readable at once"),
        ({"part_bytes": 5 * MIB - 1}, "part_bytes"),
        ({"part_bytes": 32 * MIB}, "multipart_bytes"),
        ({"read_timeout_s": 0.0}, "above 0"),
        ({"backoff_max_s": 0.01}, "backoff_max_s is below"),
        ({"attempts_max": 0}, "at least 1"),
        ({"connections_max": 0}, "at least 1"),
    ],
)
def test_settings_that_can_not_be_right(settings: dict[str, object], words: str) -> None:
    """A node does not start with them, and says in which section they are."""
    config = replace(ArchiveConfig(), **settings)  # type: ignore[arg-type]  # fields of the class
    with pytest.raises(InvalidArgument, match=words) as refused:
        config.validate()
    assert "hidden" not in str(refused.value)
    node = {"node_id": "n1", "metadata": "embedded://127.0.0.1:4099"}
    with pytest.raises(ConfigError, match=rf"^\[archive\]: .*{words}"):
        load_config(None, environ={}, flags=node | {"archive": settings})


def test_the_section_of_a_node(tmp_path: Path) -> None:
    """From file and variables; a field that there is not is refused."""
    path = tmp_path / "node.toml"
    start = 'node_id = "n1"\nmetadata = "embedded://127.0.0.1:4099"\n[archive]\n'
    path.write_text(f'{start}url = "s3://history/c1"\naddressing = "path"\n')
    environ = {"SHAREDLOG_ARCHIVE__REGION": "eu-central-1"}
    config = load_config(path, environ=environ, flags={}).archive
    assert config == ArchiveConfig(url="s3://history/c1", addressing="path", region="eu-central-1")
    for wrong, words in (
        ('addressing = "both"', "addressing"),
        ('sse = "rot13"', "sse"),
        ('path_style = "yes"', "unknown field archive.path_style"),
    ):
        path.write_text(start + wrong)
        with pytest.raises(ConfigError, match=words):
            load_config(path, environ={}, flags={})


def test_a_library_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loglet.archive.object_store.find_spec", lambda _: None)
    with pytest.raises(ArchiveUnsuitable, match=r"pip install 'sharedlog\[s3\]'"):
        opened("s3://bucket/prefix")
