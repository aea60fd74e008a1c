"""What those who run a cluster ask of it: reconfigure, inspect, drain, trim, give up what is lost.

Any node answers. What changes something may be repeated: a reconfiguration names the segment that
it ends, so a second try of one whose answer was lost finds it done.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Final, TypeVar

from google.protobuf.message import Message

from sharedlog.connection import Connection
from sharedlog.errors import InvalidArgument
from sharedlog.rpc.methods import (
    ACCEPT_LOSS,
    CHECK_LOG,
    DESCRIBE_ARCHIVE,
    DESCRIBE_CLUSTER,
    DESCRIBE_LOG,
    DESCRIBE_NODE,
    DIGEST_LOG,
    FORK_LOG,
    LIST_ARCHIVED_CLUSTERS,
    OFFLOAD_LOG,
    PURGE_LOG,
    RECONFIGURE,
    REMOVE_NODE,
    RENAME_CLUSTER,
    RESTORE_ARCHIVE,
    SET_NODE_STATE,
    SWEEP_ARCHIVE,
    TRIM_LOG,
    VERIFY_ARCHIVE,
)
from sharedlog.rpc.transport import Method
from sharedlog.v1 import (
    admin_pb2,
    archive_pb2,
    cluster_config_pb2,
    history_pb2,
    log_pb2,
    types_pb2,
)

_CHANGE_TIMEOUT_S: Final = 30.0
"""A change waits for servers that are slow, and copies what must be copied first."""
_PURGE_TIMEOUT_S: Final = 120.0
"""What was purged is deleted object by object."""

_ARCHIVE_TIMEOUT_S: Final = 300.0
"""What is not archived yet is archived first; what there is may have to be listed."""

Answer = TypeVar("Answer", bound=Message)
Request = TypeVar("Request", bound=Message)


class Admin:
    """The cluster from its operator's side. Made by `Cluster.admin`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def reconfigure(
        self,
        name: str,
        *,
        sequencer: str = "",
        nodeset: Sequence[str] = (),
        replicas: int = 0,
        write_quorum: int = 0,
        spread: Mapping[str, int] | None = None,
        near: str | None = None,
        dry_run: bool = False,
        reason: str = "",
        timeout_s: float = _CHANGE_TIMEOUT_S,
    ) -> admin_pb2.ReconfigureResponse:
        """End the log's open segment and begin another; what is not given stays or is chosen.

        `spread` maps "zone", "region" or "node" to how many of them a write quorum must span; an
        empty one ends an earlier spread. `near` is where the log's writers are, a location or its
        beginning, e.g. "eu-1.zone-a": a node there orders it from now on, if any can; "" ends that.

        Raises:
            LogNotFound. InvalidArgument: what is asked for can't be. LogUnavailable: too few nodes
            answer. Unrepairable: too much of the open segment is lost.

        **Cancellation:** the change may or may not be made.
        """
        request = admin_pb2.ReconfigureRequest(
            log=name,
            sequencer=sequencer,
            nodeset=nodeset,
            replicas=replicas,
            write_quorum=write_quorum,
            spread=spread,
            set_spread=spread is not None,
            near=near,
            dry_run=dry_run,
            reason=reason,
            segment_index=(await self._open_segment(name)).index,
        )
        return await self._connection.call(RECONFIGURE, request, timeout_s=timeout_s)

    async def accept_loss(
        self,
        name: str,
        segment_index: int,
        *,
        reason: str,
        dry_run: bool = False,
        timeout_s: float = _CHANGE_TIMEOUT_S,
    ) -> admin_pb2.AcceptLossResponse:
        """Give up what no log server can give back, so that the log goes on; kept in its chain.

        Raises:
            LogNotFound. InvalidArgument: nothing is lost there, or servers that are only away may
            still have it.

        **Cancellation:** it may or may not be done.
        """
        request = admin_pb2.AcceptLossRequest(
            log=name, segment_index=segment_index, reason=reason, dry_run=dry_run
        )
        return await self._connection.call(ACCEPT_LOSS, request, timeout_s=timeout_s)

    async def fork_log(
        self,
        name: str,
        new_name: str,
        *,
        at: int | None = None,
        replicas: int = 0,
        write_quorum: int = 0,
        timeout_s: float = _ARCHIVE_TIMEOUT_S,
    ) -> history_pb2.ForkLogResponse:
        """A new log that shares what lies below `at`, or below the tail, of another one.

        The answer tells where it goes on: below `at`, where a batch lies across that.

        Raises:
            LogNotFound, LogExists. InvalidArgument: the cluster has no archive, or the log nothing
            below `at`. ArchiveUnavailable: it may be done in part; it can be done again.

        **Cancellation:** it may or may not be done.
        """
        request = history_pb2.ForkLogRequest(
            log=name,
            new_log=new_name,
            at=at,
            nonce=f"{self._connection.rng.getrandbits(128):032x}",
            replicas=replicas,
            write_quorum=write_quorum,
        )
        return await self._connection.call(
            FORK_LOG, request, timeout_s=timeout_s, attempt_timeout_s=timeout_s
        )

    async def restore_archive(
        self,
        cluster_id: str,
        logs: Sequence[str] = (),
        *,
        prefix: str = "",
        dry_run: bool = False,
        replicas: int = 0,
        write_quorum: int = 0,
    ) -> AsyncGenerator[history_pb2.RestoreArchiveResponse, None]:
        """Make logs of what the archive has of a cluster: what became of each, as it is done.

        It can be done again: what was restored before stays as it is.

        Raises:
            InvalidArgument: the cluster has no archive, or that nothing of the other cluster.
            ArchiveUnavailable.

        **Cancellation:** what was restored stays.
        """
        request = history_pb2.RestoreArchiveRequest(
            cluster_id=cluster_id,
            logs=logs,
            prefix=prefix,
            dry_run=dry_run,
            replicas=replicas,
            write_quorum=write_quorum,
        )
        async with aclosing(self._stream(RESTORE_ARCHIVE, request)) as answers:
            async for answer in answers:
                yield answer

    async def archived_clusters(
        self, *, timeout_s: float = _ARCHIVE_TIMEOUT_S
    ) -> Sequence[history_pb2.ArchivedCluster]:
        """The clusters of which the archive has logs.

        Raises:
            InvalidArgument: the cluster has no archive. ArchiveUnavailable.
        """
        request = history_pb2.ListArchivedClustersRequest()
        answer = await self._connection.call(
            LIST_ARCHIVED_CLUSTERS, request, timeout_s=timeout_s, attempt_timeout_s=timeout_s
        )
        return answer.clusters

    async def set_node_state(
        self, node_id: str, state: str, *, dry_run: bool = False
    ) -> admin_pb2.SetNodeStateResponse:
        """Begin ("draining") or end ("read-write") a drain, or declare a store lost ("data-loss").

        Raises:
            InvalidArgument: there is no such node, or it can't be in that state.
        """
        request = admin_pb2.SetNodeStateRequest(node_id=node_id, state=state, dry_run=dry_run)
        return await self._connection.call(SET_NODE_STATE, request)

    async def remove_node(
        self, node_id: str, *, dry_run: bool = False, timeout_s: float = _CHANGE_TIMEOUT_S
    ) -> admin_pb2.RemoveNodeResponse:
        """Declare a node gone for good, if no segment names it and its process has ended.

        The answer says whether it is removed, and otherwise each reason why not.

        Raises:
            InvalidArgument: there is no such node. MetadataUnavailable: it may or may not be done.

        **Cancellation:** it may or may not be done; it can be done again.
        """
        request = admin_pb2.RemoveNodeRequest(node_id=node_id, dry_run=dry_run)
        return await self._connection.call(REMOVE_NODE, request, timeout_s=timeout_s)

    async def describe_cluster(self) -> cluster_config_pb2.DescribeClusterResponse:
        """Who the cluster is: its id, its name, when it was made.

        Raises:
            MetadataUnavailable.
        """
        request = cluster_config_pb2.DescribeClusterRequest()
        return await self._connection.call(DESCRIBE_CLUSTER, request)

    async def rename_cluster(
        self, name: str, *, expected_version: int | None = None
    ) -> cluster_config_pb2.DescribeClusterResponse:
        """Give the cluster another name; nodes that are told the old one are refused from then on.

        `expected_version`: only if its record has it, as `describe_cluster` tells.

        Raises:
            InvalidArgument: that is no name. VersionMismatch.
            MetadataUnavailable: it may or may not be done; it can be done again.
        """
        request = cluster_config_pb2.RenameClusterRequest(
            name=name, expected_version=expected_version
        )
        return (await self._connection.call(RENAME_CLUSTER, request)).cluster

    async def describe_node(self, node_id: str) -> cluster_config_pb2.DescribeNodeResponse:
        """The node's settings that differ from their defaults, and where each came from.

        Raises:
            InvalidArgument: there is no such node. Unreachable, DeadlineExceeded: it is not there.
        """
        request = cluster_config_pb2.DescribeNodeRequest(node_id=node_id)
        return await self._connection.call(DESCRIBE_NODE, request)

    async def digest(
        self, name: str, segment_index: int | None = None
    ) -> AsyncGenerator[admin_pb2.DigestLogResponse, None]:
        """Which log server holds what, a message for each segment, in order.

        Raises:
            LogNotFound. InvalidArgument: there is no such segment.
        """
        request = admin_pb2.DigestLogRequest(log=name, segment_index=segment_index)
        async with aclosing(self._stream(DIGEST_LOG, request)) as answers:
            async for answer in answers:
                yield answer

    async def check(
        self, name: str, segment_index: int | None = None
    ) -> AsyncGenerator[admin_pb2.CheckLogResponse, None]:
        """Read every replica and compare: progress and findings as they come.

        Raises:
            LogNotFound. InvalidArgument: there is no such segment.
        """
        request = admin_pb2.CheckLogRequest(log=name, segment_index=segment_index)
        async with aclosing(self._stream(CHECK_LOG, request)) as answers:
            async for answer in answers:
                yield answer

    # A log's history.

    async def offload(self, name: str) -> AsyncGenerator[archive_pb2.OffloadLogResponse, None]:
        """Archive all that is committed by now: a message for each object, and a last one.

        Raises:
            LogNotFound. InvalidArgument: the cluster has no archive. ArchiveUnavailable.
        """
        request = archive_pb2.OffloadLogRequest(log=name)
        async with aclosing(self._stream(OFFLOAD_LOG, request)) as answers:
            async for answer in answers:
                yield answer

    async def trim(
        self,
        name: str,
        *,
        before: int | None = None,
        older_than_ms: int | None = None,
        dry_run: bool = False,
    ) -> AsyncGenerator[archive_pb2.TrimLogResponse, None]:
        """Have log servers keep nothing below a point; archived first. See `Log.trim`.

        Up to an offset, or to the first record that is not older than a moment (Unix time in
        milliseconds). Progress while it goes on; the last message is `done` and says how far it
        went, and which log servers were not told yet.

        Raises:
            LogNotFound. InvalidArgument: the cluster has no archive. ArchiveUnavailable.
        """
        request = archive_pb2.TrimLogRequest(
            log=name, bound=_bound(before, older_than_ms), dry_run=dry_run
        )
        async with aclosing(self._stream(TRIM_LOG, request)) as answers:
            async for answer in answers:
                yield answer

    async def purge(
        self,
        name: str,
        *,
        before: int | None = None,
        older_than_ms: int | None = None,
        dry_run: bool = False,
        timeout_s: float = _PURGE_TIMEOUT_S,
    ) -> archive_pb2.PurgeLogResponse:
        """Forget a log's records below a point for ever. See `Log.purge`.

        Raises:
            LogNotFound. InvalidArgument: the point lies beyond the tail.

        **Cancellation:** it may or may not be done; it may be repeated.
        """
        request = archive_pb2.PurgeLogRequest(
            log=name, bound=_bound(before, older_than_ms), dry_run=dry_run
        )
        return await self._connection.call(
            PURGE_LOG, request, timeout_s=timeout_s, attempt_timeout_s=timeout_s
        )

    async def describe_archive(
        self, name: str = "", *, probe: bool = False
    ) -> archive_pb2.DescribeArchiveResponse:
        """Where the archive is, whether it can be used, and what it has of a log.

        `probe`: it is tried out, by writing, reading and deleting there.

        Raises:
            LogNotFound.
        """
        request = archive_pb2.DescribeArchiveRequest(log=name, probe=probe)
        # The node waits for the archive for some seconds, and then says that it does not answer.
        return await self._connection.call(
            DESCRIBE_ARCHIVE, request, attempt_timeout_s=self._connection.config.timeout_s
        )

    async def verify_archive(
        self, name: str, *, full: bool = False
    ) -> AsyncGenerator[archive_pb2.VerifyArchiveResponse, None]:
        """Look at all that is archived of a log, `full`: at every byte: progress and findings.

        Raises:
            LogNotFound. InvalidArgument: the cluster has no archive. ArchiveUnavailable.
        """
        request = archive_pb2.VerifyArchiveRequest(log=name, full=full)
        async with aclosing(self._stream(VERIFY_ARCHIVE, request)) as answers:
            async for answer in answers:
                yield answer

    async def sweep_archive(
        self, name: str, *, grace_ms: int | None = None, dry_run: bool = False
    ) -> AsyncGenerator[archive_pb2.SweepArchiveResponse, None]:
        """Delete a log's objects that nothing names and that are older: a message for each step.

        Raises:
            LogNotFound. InvalidArgument: the cluster has no archive. ArchiveUnavailable.
        """
        request = archive_pb2.SweepArchiveRequest(log=name, grace_ms=grace_ms, dry_run=dry_run)
        async with aclosing(self._stream(SWEEP_ARCHIVE, request)) as answers:
            async for answer in answers:
                yield answer

    async def _open_segment(self, name: str) -> types_pb2.Segment:
        request = log_pb2.DescribeLogRequest(name=name, open_only=True)
        return (await self._connection.call(DESCRIBE_LOG, request)).log.chain[-1]

    async def _stream(
        self, method: Method[Request, Answer], request: Request
    ) -> AsyncGenerator[Answer, None]:
        stream = self._connection.transport.stream(self._connection.address(), method)
        try:
            await stream.send(request)
            await stream.end()
            while (answer := await stream.receive()) is not None:
                yield answer
        finally:
            stream.cancel()


def _bound(before: int | None, older_than_ms: int | None) -> archive_pb2.HistoryBound:
    if before is not None and older_than_ms is None:
        if before < 0:
            raise InvalidArgument(f"{before} is no offset")
        return archive_pb2.HistoryBound(before=before)
    if older_than_ms is not None and before is None:
        return archive_pb2.HistoryBound(older_than_ms=older_than_ms)
    raise InvalidArgument("either an offset or a moment is needed")
