"""ArchiveService: what operators do to a log's history, at any node.

All of it may be repeated, and done by two nodes at once. `TrimLog` goes to the process that orders
the log, which alone can write a checkpoint (`work.py`): an asked node forwards it there once
(`direct_only`), and trims by itself, without a checkpoint, if that process can't be reached.

This file translates, and finds out what is committed; the work is in `work.py`, `verifier.py` and
`cleaner.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Final, Protocol

from loglet.archive.layout import manifest_key
from loglet.archive.manifests import Manifests
from loglet.archive.object_store import ObjectStore
from loglet.archive.offload import Step
from metadata.core import check_log_name
from metadata.records import LogRecord
from metadata.view import ClusterView
from node.archive.cleaner import Cleaner
from node.archive.verifier import Verifier
from node.archive.work import History
from node.limits import Places
from sharedlog.errors import (
    DeadlineExceeded,
    InvalidArgument,
    SharedLogError,
    Unreachable,
)
from sharedlog.ids import Offset, SequencerId
from sharedlog.rpc import methods
from sharedlog.rpc.transport import Server, ServerStream, Transport
from sharedlog.v1 import archive_pb2, cluster_pb2

TASKS_MAX: Final = 16
"""Offloads, trims, verifications and sweeps that a node does at a time for those who ask."""
GRACE_MS: Final = 24 * 3_600 * 1_000
"""Of a sweep that does not say."""
PING_TIMEOUT_S: Final = 0.5
PROBE_TIMEOUT_S: Final = 5.0

OffloadStream = ServerStream[archive_pb2.OffloadLogResponse, archive_pb2.OffloadLogRequest]
TrimStream = ServerStream[archive_pb2.TrimLogResponse, archive_pb2.TrimLogRequest]
VerifyStream = ServerStream[archive_pb2.VerifyArchiveResponse, archive_pb2.VerifyArchiveRequest]
SweepStream = ServerStream[archive_pb2.SweepArchiveResponse, archive_pb2.SweepArchiveRequest]


class FindsMoments(Protocol):
    """What is needed of `node/offsets.py:Offsets`."""

    async def of(self, name: str, timestamp_ms: int, tail: Offset) -> Offset:
        """The first offset below `tail` that is not earlier, or the tail."""
        ...


class ArchiveTools:
    """What works on the objects themselves; a node without an archive has none."""

    def __init__(
        self,
        store: ObjectStore,
        manifests: Manifests,
        cleaner: Cleaner,
        *,
        probe: Callable[[], Awaitable[None]],
    ) -> None:
        self.store = store
        self.manifests = manifests
        self.cleaner = cleaner
        self.verifier = Verifier(store, manifests)
        self.probe = probe


class ArchiveService:
    """See the module's docstring. `tools` None: there is no archive."""

    def __init__(
        self,
        *,
        me: SequencerId,
        view: ClusterView,
        transport: Transport,
        history: History,
        offsets: FindsMoments,
        tools: ArchiveTools | None,
    ) -> None:
        self._me = me
        self._view = view
        self._transport = transport
        self._history = history
        self._offsets = offsets
        self._tools = tools
        self._places = Places("works on the archive", TASKS_MAX)

    def register(self, server: Server) -> None:
        """Serve every method of ArchiveService on `server`."""
        server.add_stream(methods.OFFLOAD_LOG, self.offload_log)
        server.add_stream(methods.TRIM_LOG, self.trim_log)
        server.add_call(methods.PURGE_LOG, self.purge_log)
        server.add_call(methods.DESCRIBE_ARCHIVE, self.describe_archive)
        server.add_stream(methods.VERIFY_ARCHIVE, self.verify_archive)
        server.add_stream(methods.SWEEP_ARCHIVE, self.sweep_archive)

    # ------------------------------------------------------------------ history

    async def offload_log(self, stream: OffloadStream) -> None:
        """Handler of OffloadLog. **Cancellation:** ends it between any two steps; safe.

        Raises:
            InvalidArgument: there is no archive. What `History.committed` and `offload` raise.
        """
        request = await stream.receive()
        if request is None:
            return
        check_log_name(request.log)
        with self._places.take():
            record, known = await self._history.committed(request.log)
            progress = _progress(record, known.tail)

            async def told(step: Step) -> bool:
                _count(progress, step)
                await stream.send(progress)
                return True

            record = await self._history.offload(record, known, known.tail, told=told)
        progress.archived_end = record.archived_end
        await stream.send(progress)

    async def trim_log(self, stream: TrimStream) -> None:
        """Handler of TrimLog. **Cancellation:** ends it between any two steps; safe.

        Raises:
            InvalidArgument: no bound; or it can't be offloaded, for there is no archive. What
            `History.committed` and `trim` raise.
        """
        request = await stream.receive()
        if request is None:
            return
        check_log_name(request.log)
        with self._places.take():
            record, _ = await self._view.fetch_log(request.log)
            named = record.open_segment.sequencer
            elsewhere = named != self._me and not request.direct_only
            if not (elsewhere and await self._forward_trim(stream, request, named)):
                await self._trim(stream, request)

    async def _trim(self, stream: TrimStream, request: archive_pb2.TrimLogRequest) -> None:
        record, known = await self._history.committed(request.log)
        wanted = await self._bound(request.log, request.bound, known.tail)
        progress = _progress(record, min(wanted, known.tail))
        last = archive_pb2.TrimLogResponse(offload=progress, done=True, wanted=wanted)
        if request.dry_run:
            point = await self._history.trim_point(record, known, wanted)
            last.trimmed, last.start = max(point, record.trimmed), record.start
            await stream.send(last)
            return

        async def told(step: Step) -> bool:
            _count(progress, step)
            await stream.send(archive_pb2.TrimLogResponse(offload=progress))
            return True

        trimmed = await self._history.trim(record, known, wanted, told=told)
        progress.archived_end = trimmed.record.archived_end
        last.offload.CopyFrom(progress)
        last.trimmed, last.start = trimmed.below, trimmed.record.start
        last.waiting.extend(trimmed.waiting)
        await stream.send(last)

    async def _forward_trim(
        self, stream: TrimStream, request: archive_pb2.TrimLogRequest, named: SequencerId
    ) -> bool:
        """Whether the process that orders the log has done it; False: there is none now."""
        node = await self._view.fetch_node(named.node_id)
        if node is None or node.generation != named.generation:
            return False
        forwarded = archive_pb2.TrimLogRequest()
        forwarded.CopyFrom(request)
        forwarded.direct_only = True
        try:
            await self._transport.call(
                node.address, methods.PING, cluster_pb2.PingRequest(), timeout_s=PING_TIMEOUT_S
            )
            there = self._transport.stream(node.address, methods.TRIM_LOG)
            try:
                await there.send(forwarded)
                await there.end()
                while (answer := await there.receive()) is not None:
                    await stream.send(answer)
                    if answer.done:
                        return True
            finally:
                there.cancel()
        except (Unreachable, DeadlineExceeded):
            pass
        return False

    async def purge_log(self, request: archive_pb2.PurgeLogRequest) -> archive_pb2.PurgeLogResponse:
        """Forget the beginning of a log for ever, or say what that would be.

        Raises:
            InvalidArgument: no bound, or beyond the tail. What `History.committed` and `purge`
            raise.

        **Cancellation:** it may be done in part; do it again.
        """
        check_log_name(request.log)
        record, known = await self._history.committed(request.log)
        below = await self._bound(request.log, request.bound, known.tail)
        if below > known.tail:
            raise InvalidArgument(
                f"log {request.log} can't be purged up to {below}: its tail is {known.tail}"
            )
        if request.dry_run:
            dropped = await self._history.would_drop(record, below)
            return archive_pb2.PurgeLogResponse(
                start=max(below, record.start),
                start_before=record.start,
                objects=len(dropped.keys),
                bytes=dropped.size,
            )
        done = await self._history.purge(record, known, below)
        return archive_pb2.PurgeLogResponse(
            start=done.record.start,
            start_before=done.start_before,
            objects=len(done.dropped.keys),
            bytes=done.dropped.size,
            waiting=done.waiting,
            left=done.left,
        )

    async def _bound(self, name: str, bound: archive_pb2.HistoryBound, tail: Offset) -> Offset:
        match bound.WhichOneof("bound"):
            case "before":
                return Offset(bound.before)
            case "older_than_ms":
                return await self._offsets.of(name, bound.older_than_ms, tail)
            case _:
                raise InvalidArgument("up to where is not said: an offset or a moment is needed")

    # ------------------------------------------------------------------ the archive

    async def describe_archive(
        self, request: archive_pb2.DescribeArchiveRequest
    ) -> archive_pb2.DescribeArchiveResponse:
        """Where the archive is, whether it can be used, what it has of a log.

        Raises:
            LogNotFound. MetadataUnavailable. That the archive does not answer is told.

        **Cancellation:** a trial may leave objects behind, see `probe`.
        """
        record: LogRecord | None = None
        if request.log:
            check_log_name(request.log)
            record, _ = await self._view.fetch_log(request.log)
        found = archive_pb2.DescribeArchiveResponse()
        if self._tools is None:
            return found
        found.url = self._tools.store.url
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                if request.probe:
                    await self._tools.probe()
                if record is not None:
                    await self._describe_log(found, record)
        except SharedLogError as error:
            found.problem = str(error)
        except TimeoutError:
            found.problem = f"it does not answer within {PROBE_TIMEOUT_S:g} s"
        return found

    async def _describe_log(
        self, found: archive_pb2.DescribeArchiveResponse, record: LogRecord
    ) -> None:
        manifests = self._needed_tools().manifests
        loaded = await manifests.load(record.log_id)
        if loaded is None:
            return
        manifest = loaded.manifest
        pages, entries = manifest.pages, manifest.entries
        found.log.CopyFrom(
            archive_pb2.ArchivedLog(
                log_id=f"{record.log_id:016x}",
                manifest_key=manifest_key(manifests.cluster_id, record.log_id),
                revision=manifest.revision,
                changed_ms=manifest.changed_ms,
                start=manifest.start,
                end=manifest.end,
                archived_end=record.archived_end,
                objects=len(entries) + sum(it.objects for it in pages),
                bytes=sum(it.size for it in entries) + sum(it.size for it in pages),
                pages=len(pages),
                forks=manifest.forks,
            )
        )

    async def verify_archive(self, stream: VerifyStream) -> None:
        """Handler of VerifyArchive. **Cancellation:** ends it.

        Raises:
            LogNotFound. InvalidArgument: there is no archive. What `Verifier.verify` raises.
        """
        request = await stream.receive()
        if request is None:
            return
        verifier = self._needed_tools().verifier
        check_log_name(request.log)
        with self._places.take():
            # Newer than any manifest that is read from now on could be behind.
            record, _ = await self._view.refresh_log(request.log)
            async with aclosing(verifier.verify(record, full=request.full)) as steps:
                async for step in steps:
                    await stream.send(
                        archive_pb2.VerifyArchiveResponse(
                            done=step.done,
                            total=step.total,
                            bytes=step.size,
                            findings=[
                                archive_pb2.ArchiveFinding(**found._asdict())
                                for found in step.findings
                            ],
                        )
                    )

    async def sweep_archive(self, stream: SweepStream) -> None:
        """Handler of SweepArchive. **Cancellation:** ends it; what was told is deleted.

        Raises:
            LogNotFound. InvalidArgument: there is no archive. What `Cleaner.sweep` raises.
        """
        request = await stream.receive()
        if request is None:
            return
        cleaner = self._needed_tools().cleaner
        check_log_name(request.log)
        grace_ms = request.grace_ms if request.HasField("grace_ms") else GRACE_MS
        if grace_ms < 0:
            raise InvalidArgument(f"a grace time of {grace_ms} ms can't be")
        with self._places.take():
            record, _ = await self._view.refresh_log(request.log)
            steps = cleaner.sweep(record, grace_ms=grace_ms, dry_run=request.dry_run)
            async with aclosing(steps):
                async for step in steps:
                    await stream.send(
                        archive_pb2.SweepArchiveResponse(
                            listed=step.listed,
                            young=step.young,
                            swept=[
                                archive_pb2.SweptObject(
                                    key=it.key, bytes=it.size, modified_ms=it.modified_ms
                                )
                                for it in step.objects
                            ],
                        )
                    )

    def _needed_tools(self) -> ArchiveTools:
        if self._tools is None:
            raise InvalidArgument("the cluster has no archive: set [archive] url on all nodes")
        return self._tools


def _progress(record: LogRecord, target: Offset) -> archive_pb2.OffloadLogResponse:
    return archive_pb2.OffloadLogResponse(archived_end=record.archived_end, target=target)


def _count(progress: archive_pb2.OffloadLogResponse, step: Step) -> None:
    assert step.made is not None
    progress.archived_end = step.manifest.end
    progress.objects += 1
    progress.bytes += step.made.size
