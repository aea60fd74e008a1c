"""Keys of the metadata store as names of objects: readable, and one to one.

`logs/orders.eu` lies under `logs/orders.eu=`. The `=` at the end keeps names apart that would be a
folder and an object on servers that keep objects in folders: `logs/a` is `logs/a=` there, and
`logs/a/b` is `logs/a/b=`. What is not plain in a name is written `=` and two hex digits: all but
letters, digits, `_` and `-`; a dot with which a part begins; a slash that ends no part. Whether a
character is plain depends only on the one before it, so **a prefix of a key is a prefix of its
name**, and a listing of S3 is one of keys. No name begins with a dot: those are a trial's.
"""

from __future__ import annotations

import re
from typing import Final

from sharedlog.errors import InvalidArgument

NAME_BYTES_MAX: Final = 1_024
"""Of an object's name with the prefix of the URL, as S3 has it."""

_END: Final = "="
_ESCAPED: Final = re.compile(r"=([0-9A-F]{2})")
_PLAIN: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")


def name_of(key: str) -> str:
    """Where the value of `key` lies."""
    return prefix_of(key) + _END


def prefix_of(prefix: str) -> str:
    """How the names of all keys begin that begin with `prefix`, and of no others."""
    written = []
    before = "/"
    for character in prefix:
        plain = character in _PLAIN or (character in "./" and before != "/")
        written.append(character if plain else f"={ord(character):02X}")
        before = character
    return "".join(written)


def key_of(name: str) -> str | None:
    """Whose value lies there; None: it is no key's name."""
    if not name.endswith(_END) or name == _END:
        return None
    key = _ESCAPED.sub(lambda found: chr(int(found[1], 16)), name[: -len(_END)])
    return key if name_of(key) == name else None


def check_name(root: str, key: str) -> None:
    """Raises `InvalidArgument` if the key's name is too long below `root`."""
    length = len(root) + len(name_of(key))
    if length > NAME_BYTES_MAX:
        raise InvalidArgument(
            f"{key}: its object's name would have {length:,} bytes; S3 takes {NAME_BYTES_MAX:,}"
        )
