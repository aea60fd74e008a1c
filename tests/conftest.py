"""For every test: nothing that it started outlives it.

A leaked task or thread fails the test that leaked it, not a later one that it happens to disturb.
What is checked: threads of ours (libraries keep pools of their own), asyncio tasks that were still
pending when their loop closed, and gRPC channels that were never closed.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes, and the making of some, is for the machine to say, not for a test:
# by default one that had to wait 0.2 s for its turn counts as a failure.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")

_THREADS_OF_LIBRARIES = (
    "grpc",
    "asyncio_",
    "ThreadPoolExecutor-",
    "pytest_timeout",
    "execnet",
    "rich",
)
"""Beginnings of names of threads that belong to a library for the whole run."""

_SETTLE_S = 2.0


def pytest_sessionfinish() -> None:
    """End the servers that tests of this process have shared."""
    for name in ("helpers.etcd_server", "helpers.s3_server"):
        shared = sys.modules.get(name)
        if shared is not None:
            shared.stop_shared()


@pytest.fixture(autouse=True)
def _no_leaks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    channels = _watch_channels(monkeypatch)
    before = set(threading.enumerate())
    pending_tasks: list[str] = []
    _watch_loops(monkeypatch, pending_tasks)
    yield
    assert not pending_tasks, f"tasks were pending when their loop closed: {pending_tasks}"
    threads = _threads_left(before)
    assert not threads, f"threads outlived the test: {threads}"
    gc.collect(0)
    left = [address for address, channel in channels if _is_open(channel())]
    assert not left, f"gRPC channels were not closed: {left}"


def _watch_loops(monkeypatch: pytest.MonkeyPatch, pending: list[str]) -> None:
    """Note the tasks that are neither done nor being cancelled when a loop is closed."""
    close = asyncio.SelectorEventLoop.close

    def watched(loop: asyncio.SelectorEventLoop) -> None:
        if not loop.is_closed():
            pending.extend(
                task.get_name() for task in asyncio.all_tasks(loop) if not task.cancelling()
            )
        close(loop)

    monkeypatch.setattr(asyncio.SelectorEventLoop, "close", watched)


def _watch_channels(
    monkeypatch: pytest.MonkeyPatch,
) -> list[tuple[str, weakref.ReferenceType[Any]]]:
    """Every channel that our transport opens during the test."""
    import grpc

    opened: list[tuple[str, weakref.ReferenceType[Any]]] = []
    make = grpc.aio.insecure_channel

    def watched(target: str, *args: Any, **kwargs: Any) -> Any:
        channel = make(target, *args, **kwargs)
        opened.append((target, weakref.ref(channel)))
        return channel

    monkeypatch.setattr(grpc.aio, "insecure_channel", watched)
    return opened


def _is_open(channel: Any) -> bool:
    if channel is None:
        return False
    inner = getattr(channel, "_channel", None)
    closed = getattr(inner, "closed", None)
    return callable(closed) and not closed()


def _threads_left(before: set[threading.Thread]) -> list[str]:
    """Threads that the test started, after some time to end."""
    until = time.monotonic() + _SETTLE_S
    while True:
        left = [
            thread.name
            for thread in threading.enumerate()
            if thread not in before
            and thread.is_alive()
            and not thread.name.startswith(_THREADS_OF_LIBRARIES)
            and "_poll_wrapper" not in thread.name  # grpc's own, one for the process
        ]
        if not left or time.monotonic() > until:
            return left
        time.sleep(0.01)
