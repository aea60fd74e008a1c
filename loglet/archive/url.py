"""Which object store, as one line of configuration: `file:///FOLDER` or `s3://BUCKET/PREFIX`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final
from urllib.parse import SplitResult, unquote, urlsplit

from metadata.s3.bucket import PART, S3, BucketUrl, is_path, parse_bucket, shown_url
from sharedlog.errors import InvalidArgument

__all__ = [
    "ArchiveUrl",
    "BucketUrl",
    "FolderUrl",
    "check_key",
    "check_prefix",
    "parse_archive_url",
]

FILE: Final = "file"
KEY_BYTES_MAX: Final = 512
"""Of a key below the root. S3 takes 1,024 with the prefix, file systems take 255 for each part."""
_FORMS: Final = "the form is file:///FOLDER or s3://BUCKET/PREFIX"


@dataclass(frozen=True, slots=True)
class FolderUrl:
    """`file:///FOLDER`."""

    folder: PurePosixPath

    def __str__(self) -> str:
        return f"{FILE}://{self.folder}"


ArchiveUrl = FolderUrl | BucketUrl


def parse_archive_url(url: str) -> ArchiveUrl:
    """What a URL of an archive names.

    Raises:
        InvalidArgument: none does it; the message repeats the URL without what may be secret in it.
    """
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise InvalidArgument(f"archive URL: {error}; {_FORMS}") from error
    shown = shown_url(parts)
    if "@" in parts.netloc:
        raise InvalidArgument(
            f"archive URL {shown!r}: it holds credentials; they are taken from the environment"
        )
    if parts.query or parts.fragment:
        raise InvalidArgument(f"archive URL {shown!r}: options belong in [archive]; {_FORMS}")
    if parts.scheme == FILE:
        return _folder(parts, shown)
    if parts.scheme == S3:
        return parse_bucket(parts, f"archive URL {shown!r}")
    raise InvalidArgument(f"archive URL {shown!r}: {_FORMS}")


def check_key(key: str) -> None:
    """Refuse what is no key of an object.

    A key is parts of a-z A-Z 0-9 . _ = and -, with slashes between. Keys come from manifests too,
    and what a manifest says must not lead out of the archive.

    Raises:
        InvalidArgument: it is none.
    """
    if not is_path(key) or len(key) > KEY_BYTES_MAX:
        raise InvalidArgument(f"{key[:KEY_BYTES_MAX]!r} is no key of an object in the archive")


def check_prefix(prefix: str) -> None:
    """Refuse what no key can begin with.

    Raises:
        InvalidArgument: it is none.
    """
    folder, _, rest = prefix.rpartition("/")
    fits = len(prefix) <= KEY_BYTES_MAX and (not rest or PART.fullmatch(rest))
    if not fits or ("/" in prefix and not is_path(folder)):
        raise InvalidArgument(f"{prefix[:KEY_BYTES_MAX]!r} is no beginning of a key in the archive")


def _folder(parts: SplitResult, shown: str) -> FolderUrl:
    if parts.netloc not in ("", "localhost"):
        raise InvalidArgument(
            f"archive URL {shown!r}: three slashes are needed before an absolute path, "
            "e.g. file:///var/lib/sharedlog-archive"
        )
    folder = PurePosixPath(unquote(parts.path))
    if not folder.is_absolute() or ".." in folder.parts or "\0" in str(folder):
        raise InvalidArgument(f"archive URL {shown!r}: an absolute path without .. is needed")
    if len(folder.parts) == 1:
        raise InvalidArgument(f"archive URL {shown!r}: name a folder below /")
    return FolderUrl(PurePosixPath("/", *folder.parts[1:]))
