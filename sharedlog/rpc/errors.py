"""Errors on the wire: a `SharedLogError` to a protobuf `Error` and back.

Class, message and fields survive the way; the fields as JSON values.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Final, TypeVar

from sharedlog import archive_errors, errors
from sharedlog.errors import ProtocolError, SharedLogError
from sharedlog.v1 import types_pb2

_T = TypeVar("_T")

_LOADED: Final = (errors, archive_errors)
"""Where the classes are that a peer may raise; servers have some more."""

TEXT_BYTES_MAX: Final = 1_000
"""UTF-8 bytes of a message, and of a field's text; longer ones are cut."""

ERROR_METADATA_KEY: Final = "sharedlog-error-bin"
"""Trailing metadata of a failed call: a serialized `Error`."""


def error_to_proto(error: SharedLogError) -> types_pb2.Error:
    """The wire form of an error.

    It travels in a header, and gRPC drops a call whose headers are large: a text that someone made
    long, such as a log's name, is cut.
    """
    fields = {name: json.dumps(_cut(value), default=str) for name, value in vars(error).items()}
    return types_pb2.Error(kind=type(error).__name__, message=_cut(str(error)), fields=fields)


def error_from_proto(wire: types_pb2.Error) -> SharedLogError:
    """The error that the peer raised; a class unknown to this version becomes `ProtocolError`."""
    found = _classes().get(wire.kind)
    if found is None:
        return ProtocolError(f"{wire.kind}: {wire.message}")
    try:
        fields = {name: json.loads(value) for name, value in wire.fields.items()}
    except ValueError:
        return ProtocolError(f"{wire.kind}: {wire.message} (with malformed fields)")
    return _rebuild(found, wire.message, fields)


def copy_error(error: SharedLogError) -> SharedLogError:
    """An equal error, to be raised where the first can't be: a raised one carries its traceback."""
    copied = _rebuild(type(error), str(error), vars(error))
    copied.__cause__ = error
    return copied


def _cut(value: _T) -> _T | str:
    if not isinstance(value, str):
        return value
    raw = value.encode("utf-8", "replace")
    if len(raw) <= TEXT_BYTES_MAX:
        return value
    return raw[: TEXT_BYTES_MAX - 3].decode("utf-8", "ignore") + "…"


def _rebuild(
    kind: type[SharedLogError], message: str, fields: Mapping[str, object]
) -> SharedLogError:
    """An error without its class's own constructor, which would make the message anew."""
    error = kind.__new__(kind)
    Exception.__init__(error, message)
    vars(error).update(fields)
    return error


def _classes() -> dict[str, type[SharedLogError]]:
    return {found.__name__: found for found in _walk(errors.SharedLogError)}


def _walk(root: type[SharedLogError]) -> Iterator[type[SharedLogError]]:
    yield root
    for child in root.__subclasses__():
        yield from _walk(child)
