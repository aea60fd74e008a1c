"""Forks and restores at the front door (HistoryService): any node of a cluster with an archive."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import aclosing

from loglet.archive.layout import ManifestPlace, directory_of, parse_directory
from loglet.archive.manifest import Manifest
from metadata.namespaces import Asked
from metadata.view import ClusterView
from node.archive.fork import Forks, restore_nonce
from node.wire import describe_log
from sharedlog.errors import InvalidArgument, SharedLogError
from sharedlog.ids import Offset
from sharedlog.limits import NONCE_CHARS_MAX, REPLICAS_MAX
from sharedlog.rpc import methods
from sharedlog.rpc.transport import Server, ServerStream
from sharedlog.v1 import history_pb2 as pb

log = logging.getLogger("node")

RestoreStream = ServerStream[pb.RestoreArchiveResponse, pb.RestoreArchiveRequest]


class HistoryService:
    """Serves HistoryService. `forks` None: the cluster has no archive."""

    def __init__(
        self, *, cluster_id: str, view: ClusterView, forks: Forks | None, new_id: Callable[[], str]
    ) -> None:
        self._cluster_id = cluster_id
        self._view = view
        self._forks = forks
        self._new_id = new_id

    def register(self, server: Server) -> None:
        """Serve every method of HistoryService on `server`."""
        server.add_call(methods.FORK_LOG, self.fork_log)
        server.add_stream(methods.RESTORE_ARCHIVE, self.restore_archive)
        server.add_call(methods.LIST_ARCHIVED_CLUSTERS, self.list_archived_clusters)

    async def fork_log(self, request: pb.ForkLogRequest) -> pb.ForkLogResponse:
        """Make a log that shares what another has. Raises what `Forks.fork` raises.

        **Cancellation:** it may be done in part; the same request goes on there.
        """
        if len(request.nonce) > NONCE_CHARS_MAX:
            raise InvalidArgument(f"the nonce has more than {NONCE_CHARS_MAX} characters")
        made = await self._with_archive().fork(
            request.log,
            request.new_log,
            Offset(request.at) if request.HasField("at") else None,
            _asked(request),
            nonce=request.nonce or self._new_id(),
        )
        self._view.learn(made.record, made.version)
        told = describe_log(made.record, made.version, self._view.node)
        return pb.ForkLogResponse(log=told, at=made.end)

    async def restore_archive(self, stream: RestoreStream) -> None:
        """Handler of RestoreArchive. **Cancellation:** ends it; what was restored stays.

        Raises:
            InvalidArgument: there is no archive, or it has nothing of the cluster.
            ArchiveUnavailable: it can't be listed.
        """
        request = await stream.receive()
        if request is None:
            return
        forks = self._with_archive()
        if parse_directory(f"{request.cluster_id}/{0:016x}") is None:
            raise InvalidArgument(f"{request.cluster_id!r} is no cluster's id: 32 hex digits")
        wanted, seen = set(request.logs), set()
        found = 0
        async with aclosing(forks.places(request.cluster_id)) as places:
            async for place in places:
                found += 1
                try:
                    manifest = await forks.manifest(place)
                except SharedLogError as error:
                    await stream.send(_unreadable(place, error))
                    continue
                if manifest.is_held:
                    continue  # a fork that was never made
                name = manifest.settings.name
                if not wanted or name in wanted:
                    seen.add(name)
                    await stream.send(await self._restore(forks, manifest, request))
        if not found:
            raise InvalidArgument(f"the archive has nothing of cluster {request.cluster_id}")
        for name in sorted(wanted - seen):
            await stream.send(
                pb.RestoreArchiveResponse(
                    log=name,
                    outcome=pb.RestoreArchiveResponse.OUTCOME_FAILED,
                    error="the archive has no log of that name",
                )
            )

    async def list_archived_clusters(
        self, _: pb.ListArchivedClustersRequest
    ) -> pb.ListArchivedClustersResponse:
        """The clusters of which the archive has logs. **Cancellation:** safe."""
        return pb.ListArchivedClustersResponse(
            clusters=[
                pb.ArchivedCluster(
                    cluster_id=it.cluster_id,
                    logs=it.logs,
                    is_own=it.cluster_id == self._cluster_id,
                )
                for it in await self._with_archive().clusters()
            ]
        )

    async def _restore(
        self, forks: Forks, manifest: Manifest, request: pb.RestoreArchiveRequest
    ) -> pb.RestoreArchiveResponse:
        """Restore one log; a failure is told, for others may do better."""
        answer = pb.RestoreArchiveResponse(
            log=manifest.settings.name,
            log_id=manifest.log_id,
            new_log=request.prefix + manifest.settings.name,
            start=manifest.start,
            end=manifest.end,
            outcome=pb.RestoreArchiveResponse.OUTCOME_RESTORED,
        )
        try:
            if request.dry_run:
                made = await forks.find(answer.new_log, restore_nonce(manifest))
            else:
                made = await forks.restore(manifest, answer.new_log, _asked(request))
        except SharedLogError as error:
            answer.outcome = pb.RestoreArchiveResponse.OUTCOME_FAILED
            answer.error, answer.retryable = str(error), error.retryable
            fields = {"log": answer.new_log, "error": str(error)}
            log.warning("restore.failed", extra=fields)
            return answer
        if made is not None:
            answer.start, answer.end = made.start, made.end
            if not made.is_new:
                answer.outcome = pb.RestoreArchiveResponse.OUTCOME_PRESENT
            self._view.learn(made.record, made.version)
        return answer

    def _with_archive(self) -> Forks:
        if self._forks is None:
            raise InvalidArgument("the cluster has no archive: set [archive] url on all nodes")
        return self._forks


def _unreadable(place: ManifestPlace, error: SharedLogError) -> pb.RestoreArchiveResponse:
    """What the log was called is not known; others can be restored."""
    return pb.RestoreArchiveResponse(
        log_id=place.log_id,
        outcome=pb.RestoreArchiveResponse.OUTCOME_FAILED,
        error=f"the manifest in {directory_of(*place)}: {error}",
        retryable=error.retryable,
    )


def _asked(request: pb.ForkLogRequest | pb.RestoreArchiveRequest) -> Asked:
    """What a request says of copies. With fewer of them a spread may not be had: it is dropped."""
    if max(request.replicas, request.write_quorum) > REPLICAS_MAX:
        raise InvalidArgument(f"a log has at most {REPLICAS_MAX} replicas")
    return Asked(
        replicas=request.replicas or None,
        write_quorum=request.write_quorum or None,
        spread=() if request.replicas else None,
    )
