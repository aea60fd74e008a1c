"""Looking into a metadata store, and mending a value by hand: `dump`, `get`, `put`.

A value is text: its checksum, and JSON (`encoding.py`). What a person writes may be the JSON alone;
the checksum is added. A value whose form is known is decoded, and checked like one that a node
would write, before it is put.
"""

from __future__ import annotations

import base64
import difflib
import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from metadata.core import check_chain
from metadata.encoding import (
    cursor_key,
    decode_cluster,
    decode_cursor,
    decode_lease,
    decode_log,
    decode_namespace,
    decode_node,
    log_key,
    namespace_key,
    node_key,
    sealed,
)
from metadata.moved import where_moved, where_moving
from metadata.records import (
    CLUSTER_KEY,
    CONTROLLER_KEY,
    CURSORS_PREFIX,
    LOGS_PREFIX,
    NAMESPACES_PREFIX,
    NODES_PREFIX,
)
from metadata.store import Entry, Version
from sharedlog.errors import InvalidArgument, SharedLogError

_DIFF_CONTEXT: Final = 3
_CHECKSUM_CHARS: Final = 8  # and a blank


def line_of(entry: Entry) -> dict[str, Any]:
    """A line of a dump. A value that is no text is in `value_base64` instead."""
    line: dict[str, Any] = {"key": entry.key, "version": entry.version}
    try:
        line["value"] = entry.value.decode()
    except UnicodeDecodeError:
        line["value_base64"] = base64.b64encode(entry.value).decode()
    return line


def value_from(key: str, text: bytes) -> bytes:
    """The value that a person means: with its checksum, which JSON alone lacks."""
    value = text.strip()
    return sealed(key, value) if value.startswith(b"{") else value


def check_value_of(key: str, value: bytes) -> str:
    """What is wrong with the value of this key, in a clause; "" if nothing.

    Raises:
        InvalidArgument: the form of such a key's value is not known, so nobody can tell.
    """
    if where_moved(value) or where_moving(value):
        raise InvalidArgument(f"{key}: the value says that the cluster is being moved")
    checks = (check for prefix, check in _CHECKS.items() if key.startswith(prefix))
    check = _EXACT.get(key) or next(checks, None)
    if check is None:
        raise InvalidArgument(f"{key}: no key of a cluster begins like that")
    try:
        found = check(Entry(key, value, Version(1)))
    except SharedLogError as error:
        return str(error).removeprefix(f"{key}: ")
    return "" if found in ("", key) else f"it is the value of the key {found}"


def diff_of(before: bytes | None, after: bytes) -> list[str]:
    """Lines of a unified diff of the two, laid out."""
    old = [] if before is None else _laid_out(before)
    return list(
        difflib.unified_diff(old, _laid_out(after), "is", "becomes", lineterm="", n=_DIFF_CONTEXT)
    )


def _laid_out(value: bytes) -> list[str]:
    text = value.decode(errors="backslashreplace")
    head, brace, rest = text.partition("{")
    try:
        body = json.loads(brace + rest)
    except ValueError:
        return text.splitlines()
    said = [] if len(head) == _CHECKSUM_CHARS + 1 else head.splitlines()
    return [*said, *json.dumps(body, indent=2, ensure_ascii=False).splitlines()]


def _log(entry: Entry) -> str:
    record = decode_log(entry)
    check_chain(record)
    return log_key(record.name)


def _node(entry: Entry) -> str:
    return node_key(decode_node(entry).node_id)


def _namespace(entry: Entry) -> str:
    return namespace_key(decode_namespace(entry).prefix)


def _cursor(entry: Entry) -> str:
    record = decode_cursor(entry)
    return cursor_key(record.log_id, record.name)


def _cluster(entry: Entry) -> str:
    decode_cluster(entry)
    return ""


def _lease(entry: Entry) -> str:
    decode_lease(entry)
    return ""


_Check = Callable[[Entry], str]

_EXACT: Final[Mapping[str, _Check]] = {CLUSTER_KEY: _cluster, CONTROLLER_KEY: _lease}
_CHECKS: Final[Mapping[str, _Check]] = {
    NODES_PREFIX: _node,
    LOGS_PREFIX: _log,
    NAMESPACES_PREFIX: _namespace,
    CURSORS_PREFIX: _cursor,
}
"""By the key, or how it begins: decodes, and returns the key that the record belongs to."""
