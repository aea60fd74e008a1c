"""How a process takes its place in the cluster.

The folder of a node remembers which cluster it belongs to, in the file `cluster`. A node that finds
another cluster behind its metadata address, or an empty store although there was one, refuses to
start: it would register, and in time serve, among strangers. So does one whose setting `cluster`
names another cluster than the store holds.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, TypeVar

from metadata.core import ROLE_METADATA
from metadata.records import NodeRecord
from metadata.registry import join_cluster, register_node
from metadata.store import MetadataStore
from node.config import NodeConfig
from node.errors import StartError
from sharedlog.clock import Clock
from sharedlog.errors import DeadlineExceeded, MetadataUnavailable, Unreachable
from sharedlog.ids import NodeId, StorageId
from sharedlog.tasks import first_error

log = logging.getLogger("node")

T = TypeVar("T")

_RETRY_EVERY_S: Final = 0.2
_SAY_SO_AFTER_S: Final = 1.0
_SAY_SO_EVERY_S: Final = 5.0


async def join(
    store: MetadataStore, config: NodeConfig, *, clock: Clock, new_id: Callable[[], str]
) -> str:
    """Join the cluster and remember its id, which is returned; waits for the metadata store.

    A node that is told its cluster's name waits for that to be made, too; but for the one that
    hosts the metadata store: nobody else could make it there.

    Raises:
        WrongCluster: the metadata store is another cluster's.
        StartError: the node's folder can't be used.
    """
    folder = Path(config.dir)
    known = _read_cluster_id(folder)

    async def attempt() -> str:
        cluster = await join_cluster(
            store,
            known_cluster_id=known,
            new_id=new_id,
            now_ms=clock.now_ms(),
            name=config.cluster,
            make=not config.cluster or ROLE_METADATA in config.roles,
        )
        return cluster.cluster_id

    cluster_id = await _until_metadata_answers(attempt, config, clock)
    if not known:
        _write_cluster_id(folder, cluster_id)
    return cluster_id


async def register(
    store: MetadataStore,
    config: NodeConfig,
    *,
    cluster_id: str,
    storage_id: StorageId | None,
    clock: Clock,
    new_id: Callable[[], str],
) -> NodeRecord:
    """Register this process start, which supersedes any earlier one; waits for the metadata store.

    Raises:
        WrongCluster: the metadata store has become another cluster's.

    **Cancellation:** the start may or may not be registered; the next one takes a further number.
    """

    async def attempt() -> NodeRecord:
        return await register_node(
            store,
            node_id=NodeId(config.node_id),
            storage_id=storage_id or StorageId(""),
            address=config.address,
            http_address=config.http_address,
            location=config.location,
            roles=config.roles,
            known_cluster_id=cluster_id,
            new_id=new_id,
            now_ms=clock.now_ms(),
        )

    return await _until_metadata_answers(attempt, config, clock)


async def _until_metadata_answers(
    attempt: Callable[[], Awaitable[T]], config: NodeConfig, clock: Clock
) -> T:
    """Try until it works; an operator who looks on is told what is waited for."""
    reason = "no answer yet"

    async def say_so() -> None:
        await clock.sleep(_SAY_SO_AFTER_S)
        while True:
            fields = {"metadata": config.metadata_url, "error": reason}
            log.warning("node.waiting_for_metadata", extra=fields)
            await clock.sleep(_SAY_SO_EVERY_S)

    try:
        async with asyncio.TaskGroup() as tasks:
            saying = tasks.create_task(say_so(), name="say-waiting")
            try:
                while True:
                    try:
                        return await attempt()
                    except (MetadataUnavailable, Unreachable, DeadlineExceeded) as error:
                        reason = str(error)
                    await clock.sleep(_RETRY_EVERY_S)
            finally:
                saying.cancel()
    except BaseExceptionGroup as group:
        raise first_error(group) from None


def _read_cluster_id(folder: Path) -> str:
    try:
        return (folder / "cluster").read_text("ascii").strip()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise StartError(f"can't read {folder / 'cluster'}: {error}") from error


def _write_cluster_id(folder: Path, cluster_id: str) -> None:
    """All or nothing, and durable: a half-written id would look like another cluster's."""
    final, draft = folder / "cluster", folder / "cluster.new"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with draft.open("w", encoding="ascii") as file:
            file.write(cluster_id + "\n")
            file.flush()
            os.fsync(file.fileno())
        draft.replace(final)
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise StartError(f"can't write {final}: {error.strerror or error}") from error
