"""The blocking client has what the asyncio one has: every method, every parameter, every type."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator
from typing import assert_type

import pytest

import sharedlog
import sharedlog.admin
import sharedlog.cursors
import sharedlog.namespaces
import sharedlog.pending
import sharedlog.sync.appender
import sharedlog.sync.cursor
import sharedlog.sync.namespaces
import sharedlog.sync.pending
from sharedlog import cluster as aio_cluster
from sharedlog.v1 import admin_pb2, types_pb2

PAIRS: list[tuple[type, type]] = [
    (sharedlog.Cluster, sharedlog.sync.Cluster),
    (sharedlog.Log, sharedlog.sync.Log),
    (sharedlog.Appender, sharedlog.sync.Appender),
    (sharedlog.PendingAppend, sharedlog.sync.PendingAppend),
    (sharedlog.pending.AppendBatch, sharedlog.sync.pending.AppendBatch),
    (sharedlog.admin.Admin, sharedlog.sync.Admin),
    (sharedlog.Cursor, sharedlog.sync.Cursor),
    (sharedlog.cursors.Cursors, sharedlog.sync.cursor.Cursors),
    (sharedlog.namespaces.Namespaces, sharedlog.sync.namespaces.Namespaces),
]

INTERNAL = {
    (sharedlog.Log, "learn"): "for `Cluster.create_log`, which has the answer",
    (sharedlog.Appender, "append_at_once"): "for the blocking appender, on the loop",
    (sharedlog.Appender, "is_closing"): "what its session asks",
    (sharedlog.Appender, "on_progress"): "what its session tells",
    (sharedlog.Appender, "on_sent"): "what its session tells",
    (sharedlog.pending.AppendBatch, "finish"): "for the queue",
    (sharedlog.Cursor, "on_handed_out"): "for the blocking one, which hands out itself",
}

WAITS = {
    (sharedlog.PendingAppend, "result"): "waits, so it takes `timeout_s`",
    (sharedlog.PendingAppend, "exception"): "waits, so it takes `timeout_s`",
}


def public_methods(cls: type) -> dict[str, Callable[..., object]]:
    return {
        name: found
        for name, found in inspect.getmembers(cls, inspect.isroutine)
        if not name.startswith("_")
    }


def parameters(method: Callable[..., object]) -> list[tuple[str, object, object]]:
    found = list(inspect.signature(method).parameters.values())
    return [(p.name, p.kind, p.default) for p in found if p.name != "self"]


@pytest.mark.parametrize(("asyncio_class", "blocking_class"), PAIRS, ids=lambda it: it.__name__)
def test_every_public_method_is_there_with_the_same_parameters(
    asyncio_class: type, blocking_class: type
) -> None:
    """A method that the asyncio client gains is missed here until the blocking one has it, which
    takes a line: `name = blocking(aio.Log.name)`."""
    blocking = public_methods(blocking_class)
    wrong = []
    for name, method in public_methods(asyncio_class).items():
        if (asyncio_class, name) in INTERNAL:
            continue
        if name not in blocking:
            wrong.append(f"{blocking_class.__module__}.{blocking_class.__name__} has no {name}")
            continue
        wanted, found = parameters(method), parameters(blocking[name])
        if (asyncio_class, name) in WAITS:
            assert [p[0] for p in found[len(wanted) :]] == ["timeout_s"]
            found = found[: len(wanted)]
        if found != wanted:
            wrong.append(f"{blocking_class.__name__}.{name} takes {found}, not {wanted}")
        assert not inspect.iscoroutinefunction(blocking[name]), name
        assert blocking[name].__doc__, name
    assert not wrong, "\n".join(wrong)


def test_every_class_that_waits_has_its_blocking_one() -> None:
    """A class of the asyncio client with coroutines is added to the pairs."""
    missing = []
    for name in sharedlog.__all__:
        found = getattr(sharedlog, name)
        waits = isinstance(found, type) and any(
            inspect.iscoroutinefunction(method) or inspect.isasyncgenfunction(method)
            for method in public_methods(found).values()
        )
        if waits and found not in {pair[0] for pair in PAIRS}:
            missing.append(name)
    assert not missing, missing


def test_connect_takes_the_same() -> None:
    """So does the way in."""
    assert parameters(sharedlog.sync.connect) == parameters(aio_cluster.connect)


def test_what_is_left_out_exists() -> None:
    """An exception whose method is gone is taken off the list."""
    for cls, name in (*INTERNAL, *WAITS):
        assert hasattr(cls, name), (cls, name)


def types(cluster: sharedlog.sync.Cluster) -> None:
    """Never run: what a type checker is told, without `await`."""
    log = cluster.log("orders")
    assert_type(log, sharedlog.sync.Log)
    assert_type(cluster.create_log("orders", replicas=3), sharedlog.sync.Log)
    assert_type(cluster.list_logs("o"), list[types_pb2.LogDescription])
    assert_type(log.append(b"x", key=b"k", timeout_s=1), sharedlog.Offset)
    assert_type(log.append_batch([b"x"]), range)
    assert_type(log.tail(), sharedlog.Offset)
    assert_type(log.read(start=3, follow=True), Generator[sharedlog.Record, None, None])
    assert_type(log.read_batches(), Generator[list[sharedlog.Record], None, None])
    with log.appender(linger_s=0.1) as appender:
        assert_type(appender, sharedlog.sync.Appender)
        assert_type(appender.append(b"x").result(), sharedlog.Offset)
        assert_type(appender.append_many([b"x"])[0].exception(), sharedlog.SharedLogError | None)
    digest = cluster.admin.digest("orders")
    assert_type(digest, Generator[admin_pb2.DigestLogResponse, None, None])
    log.append("text")  # type: ignore[arg-type]  # found by the checker
    log.read(begin=3)  # type: ignore[call-arg]  # likewise
