"""sharedlog for scripts, notebooks and threads: the same client, with calls that wait.

    import sharedlog.sync

    with sharedlog.sync.connect("127.0.0.1:4100") as cluster:
        log = cluster.log("orders")
        offset = log.append(b"hello", key=b"k")
        for record in log.read(start=0):
            ...
        with log.appender() as appender:
            pending = appender.append(b"world")
            pending.result()

Names, parameters, types and errors are those of the asyncio client, which does the work on one
thread that all clusters of the process share. Everything may be used by any number of threads, also
by one in which an event loop runs, such as a notebook's: it is held up for as long as a call takes.

| module | what it is |
|---|---|
| `loop_thread` | the thread: its start, its end, exits and forks |
| `bridge` | a cluster's way there, and the end of all that went it |
| `facade` | blocking methods made from asyncio ones, a line for each |
| `read_ahead` | reading: some batches ahead, crossed many at a time |
| `appender`, `pending` | appends, handed over many at a time |
| `cluster`, `log`, `cursor`, `namespaces`, `admin` | the methods |
"""

from __future__ import annotations

from sharedlog.sync.admin import Admin
from sharedlog.sync.appender import Appender
from sharedlog.sync.cluster import Cluster, connect
from sharedlog.sync.cursor import Cursor
from sharedlog.sync.log import Log
from sharedlog.sync.pending import PendingAppend

__all__ = ["Admin", "Appender", "Cluster", "Cursor", "Log", "PendingAppend", "connect"]
