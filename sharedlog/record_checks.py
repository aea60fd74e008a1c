"""Whether a record that an application hands over can be one. Pure."""

from __future__ import annotations

from sharedlog.batch import Headers
from sharedlog.errors import InvalidArgument


def check_record(value: object, key: object, headers: Headers | None) -> None:
    """Refuse what is not bytes: found later, it would take its whole batch down.

    Other buffers are refused too: their owner may change them while they wait.

    Raises:
        InvalidArgument: says which part has which type.
    """
    if not isinstance(value, bytes):
        raise InvalidArgument(f"a record's value is bytes, not {type(value).__name__}")
    if key is not None and not isinstance(key, bytes):
        raise InvalidArgument(f"a record's key is bytes, not {type(key).__name__}")
    if headers:
        for name, content in headers.items():
            if not isinstance(name, str) or not isinstance(content, bytes):
                raise InvalidArgument("a record's headers map names (str) to values (bytes)")
