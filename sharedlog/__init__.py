"""sharedlog: a durable, totally ordered, replicated log, as an application sees it.

    import sharedlog

    async with sharedlog.connect("127.0.0.1:4100") as cluster:
        log = cluster.log("orders")
        offset = await log.append(b"hello", key=b"k")
        async for record in log.read(start=0):
            ...

`sharedlog.sync` is the same client for scripts, notebooks and threads, with calls that wait.

Importing this package costs next to nothing: a name is loaded when it is first used, and with it
gRPC. `sharedlog.errors` has every error.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from sharedlog import errors, sync
    from sharedlog.appender import Appender
    from sharedlog.batch import Headers, Record
    from sharedlog.cluster import Cluster, connect
    from sharedlog.config import AppenderConfig, ClientConfig, ReaderConfig
    from sharedlog.control import ControlRecord
    from sharedlog.cursor import Cursor
    from sharedlog.errors import (
        AppendIndefinite,
        ConditionFailed,
        CursorLost,
        CursorNotFound,
        DataLoss,
        FencingTokenMismatch,
        InvalidArgument,
        LogExists,
        LogNotFound,
        LogUnavailable,
        OffsetMismatch,
        OffsetOutOfRange,
        ProducerFenced,
        Purged,
        SharedLogError,
        Unreachable,
    )
    from sharedlog.ids import Offset
    from sharedlog.log import Log, NewRecord
    from sharedlog.pending import PendingAppend
    from sharedlog.read_window import ReadProgress
    from sharedlog.retention import Retention
    from sharedlog.starts import EARLIEST, Start, Timestamp, from_tail, from_time

__version__ = "0.1.0"

__all__ = [
    "EARLIEST",
    "AppendIndefinite",
    "Appender",
    "AppenderConfig",
    "ClientConfig",
    "Cluster",
    "ConditionFailed",
    "ControlRecord",
    "Cursor",
    "CursorLost",
    "CursorNotFound",
    "DataLoss",
    "FencingTokenMismatch",
    "Headers",
    "InvalidArgument",
    "Log",
    "LogExists",
    "LogNotFound",
    "LogUnavailable",
    "NewRecord",
    "Offset",
    "OffsetMismatch",
    "OffsetOutOfRange",
    "PendingAppend",
    "ProducerFenced",
    "Purged",
    "ReadProgress",
    "ReaderConfig",
    "Record",
    "Retention",
    "SharedLogError",
    "Start",
    "Timestamp",
    "Unreachable",
    "__version__",
    "connect",
    "errors",
    "from_tail",
    "from_time",
    "sync",
]

_FROM: Final = {
    "Appender": "appender",
    "AppenderConfig": "config",
    "ClientConfig": "config",
    "Cluster": "cluster",
    "ControlRecord": "control",
    "Cursor": "cursor",
    "Headers": "batch",
    "Log": "log",
    "NewRecord": "log",
    "Offset": "ids",
    "PendingAppend": "pending",
    "ReadProgress": "read_window",
    "ReaderConfig": "config",
    "Record": "batch",
    "Retention": "retention",
    "EARLIEST": "starts",
    "Start": "starts",
    "Timestamp": "starts",
    "connect": "cluster",
    "from_tail": "starts",
    "from_time": "starts",
}


def __getattr__(name: str) -> object:
    if name in ("errors", "sync"):
        return importlib.import_module(f"sharedlog.{name}")
    if name not in __all__:
        raise AttributeError(f"module 'sharedlog' has no attribute {name!r}")
    module = importlib.import_module(f"sharedlog.{_FROM.get(name, 'errors')}")
    found: object = getattr(module, name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
