"""Which metadata store a tool opens, and how: from a node's configuration, or said anew.

Sections `[metadata_etcd]` and `[metadata_s3]`, and `metadata`, are read as a node reads them: from
the file, and over it from variables such as `SHAREDLOG_METADATA_S3__ENDPOINT`. What else the file
has is the node's.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from metadata.config import EtcdConfig, MetadataSettings
from metadata.s3.config import MetadataS3Config
from sharedlog.errors import InvalidArgument

_ENV: Final = "SHAREDLOG_METADATA"

T = TypeVar("T", EtcdConfig, MetadataS3Config)


def load_settings(path: Path | None, environ: Mapping[str, str]) -> tuple[str, MetadataSettings]:
    """The URL of the store, "" if nothing names one, and what it needs beside it.

    Raises:
        InvalidArgument: the file can't be read, or has what can't be right.
    """
    told = {} if path is None else _read(path)
    url = environ.get(_ENV) or told.get("metadata", "")
    if not isinstance(url, str):
        raise InvalidArgument(f"{path}: metadata: a URL is needed")
    etcd = _section(EtcdConfig, "metadata_etcd", told, environ)
    s3 = _section(MetadataS3Config, "metadata_s3", told, environ)
    return url, MetadataSettings(etcd=etcd, s3=s3)


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise InvalidArgument(f"can't read {path}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"{path}: {error}") from error


def _section(kind: type[T], name: str, told: Mapping[str, Any], environ: Mapping[str, str]) -> T:
    given = told.get(name, {})
    if not isinstance(given, dict):
        raise InvalidArgument(f"{name}: it is a section, with fields of its own")
    for field in fields(kind):
        variable = f"SHAREDLOG_{name}__{field.name}".upper()
        if variable in environ:
            given = given | {field.name: environ[variable]}
    unknown = sorted(given.keys() - {field.name for field in fields(kind)})
    if unknown:
        raise InvalidArgument(f"{name}.{unknown[0]}: there is no such setting")
    try:
        found = msgspec.convert(given, kind, strict=False)
        found.validate()
    except (msgspec.ValidationError, InvalidArgument) as error:
        raise InvalidArgument(f"{name}: {error}") from error
    return found
