"""The methods that clients call, and how to define one whose messages are plain protobuf."""

from __future__ import annotations

from typing import TypeVar

from google.protobuf.message import Message

from sharedlog.rpc.read_answer import decode_read_answer, encode_read_answer
from sharedlog.rpc.session_request import decode_session_request, encode_session_request
from sharedlog.rpc.transport import Method
from sharedlog.v1 import (
    admin_pb2,
    archive_pb2,
    cluster_config_pb2,
    cluster_pb2,
    cursor_pb2,
    history_pb2,
    log_pb2,
    log_server_pb2,
    namespace_pb2,
)

ReqMessage = TypeVar("ReqMessage", bound=Message)
RespMessage = TypeVar("RespMessage", bound=Message)


def proto_method(
    path: str,
    request: type[ReqMessage],
    response: type[RespMessage],
    *,
    streaming: bool = False,
    waiting_max: int = 64,
) -> Method[ReqMessage, RespMessage]:
    """A method whose messages are protobuf messages; `path` is "Service/Method" of sharedlog.v1."""
    return Method(
        path=f"/sharedlog.v1.{path}",
        encode_request=request.SerializeToString,
        decode_request=request.FromString,
        encode_response=response.SerializeToString,
        decode_response=response.FromString,
        streaming=streaming,
        waiting_max=waiting_max,
    )


CREATE_LOG = proto_method(
    "LogService/CreateLog", log_pb2.CreateLogRequest, log_pb2.CreateLogResponse
)
DESCRIBE_LOG = proto_method(
    "LogService/DescribeLog", log_pb2.DescribeLogRequest, log_pb2.DescribeLogResponse
)
SET_RETENTION = proto_method(
    "LogService/SetRetention", log_pb2.SetRetentionRequest, log_pb2.SetRetentionResponse
)
LIST_LOGS = proto_method("LogService/ListLogs", log_pb2.ListLogsRequest, log_pb2.ListLogsResponse)
APPEND = proto_method("LogService/Append", log_pb2.AppendRequest, log_pb2.AppendResponse)
FENCE = proto_method("LogService/Fence", log_pb2.FenceRequest, log_pb2.FenceResponse)
APPEND_SESSION = Method(
    path="/sharedlog.v1.LogService/AppendSession",
    encode_request=encode_session_request,
    decode_request=decode_session_request,
    encode_response=log_pb2.AppendSessionResponse.SerializeToString,
    decode_response=log_pb2.AppendSessionResponse.FromString,
    streaming=True,
)
READ = proto_method("LogService/Read", log_pb2.ReadRequest, log_pb2.ReadResponse, streaming=True)
READ_RECORDS = proto_method(
    "LogService/ReadRecords", log_pb2.ReadRequest, log_pb2.ReadRecordsResponse, streaming=True
)
FIND_TAIL = proto_method("LogService/FindTail", log_pb2.FindTailRequest, log_pb2.FindTailResponse)
GET_KNOWN_TAIL = proto_method(
    "LogService/GetKnownTail", log_pb2.GetKnownTailRequest, log_pb2.GetKnownTailResponse
)
FIND_OFFSET = proto_method(
    "LogService/FindOffset", log_pb2.FindOffsetRequest, log_pb2.FindOffsetResponse
)
GET_NODES = proto_method(
    "ClusterService/GetNodes", cluster_pb2.GetNodesRequest, cluster_pb2.GetNodesResponse
)
GET_STATUS = proto_method(
    "ClusterService/GetStatus", cluster_pb2.GetStatusRequest, cluster_pb2.GetStatusResponse
)
READ_LOGLET = Method(
    path="/sharedlog.v1.LogServerService/ReadLoglet",
    encode_request=log_server_pb2.ReadLogletRequest.SerializeToString,
    decode_request=log_server_pb2.ReadLogletRequest.FromString,
    encode_response=encode_read_answer,
    decode_response=decode_read_answer,
    streaming=True,
    waiting_max=4,  # of a MiB each
)
LIST_LOGLETS = proto_method(
    "LogServerService/ListLoglets",
    log_server_pb2.ListLogletsRequest,
    log_server_pb2.ListLogletsResponse,
)
RAISE_COMMITTED_TAIL = proto_method(
    "LogServerService/RaiseCommittedTail",
    log_server_pb2.RaiseCommittedTailRequest,
    log_server_pb2.RaiseCommittedTailResponse,
)
DIGEST = proto_method(
    "LogServerService/Digest", log_server_pb2.DigestRequest, log_server_pb2.DigestResponse
)
FIND_TIME = proto_method(
    "LogServerService/FindTime", log_server_pb2.FindTimeRequest, log_server_pb2.FindTimeResponse
)
TRIM = proto_method(
    "LogServerService/Trim", log_server_pb2.TrimRequest, log_server_pb2.TrimResponse
)
PING = proto_method("ClusterService/Ping", cluster_pb2.PingRequest, cluster_pb2.PingResponse)
REPORT_SUSPECT = proto_method(
    "ClusterService/ReportSuspect",
    cluster_pb2.ReportSuspectRequest,
    cluster_pb2.ReportSuspectResponse,
)
RECONFIGURE = proto_method(
    "AdminService/Reconfigure", admin_pb2.ReconfigureRequest, admin_pb2.ReconfigureResponse
)
PREPARE_MOVE = proto_method(
    "AdminService/PrepareMove", admin_pb2.PrepareMoveRequest, admin_pb2.PrepareMoveResponse
)
DIGEST_LOG = proto_method(
    "AdminService/DigestLog",
    admin_pb2.DigestLogRequest,
    admin_pb2.DigestLogResponse,
    streaming=True,
)
CHECK_LOG = proto_method(
    "AdminService/CheckLog", admin_pb2.CheckLogRequest, admin_pb2.CheckLogResponse, streaming=True
)
ACCEPT_LOSS = proto_method(
    "AdminService/AcceptLoss", admin_pb2.AcceptLossRequest, admin_pb2.AcceptLossResponse
)
SET_NODE_STATE = proto_method(
    "AdminService/SetNodeState", admin_pb2.SetNodeStateRequest, admin_pb2.SetNodeStateResponse
)
REMOVE_NODE = proto_method(
    "AdminService/RemoveNode", admin_pb2.RemoveNodeRequest, admin_pb2.RemoveNodeResponse
)
SET_NAMESPACE = proto_method(
    "NamespaceService/SetNamespace",
    namespace_pb2.SetNamespaceRequest,
    namespace_pb2.SetNamespaceResponse,
)
GET_NAMESPACE = proto_method(
    "NamespaceService/GetNamespace",
    namespace_pb2.GetNamespaceRequest,
    namespace_pb2.GetNamespaceResponse,
)
LIST_NAMESPACES = proto_method(
    "NamespaceService/ListNamespaces",
    namespace_pb2.ListNamespacesRequest,
    namespace_pb2.ListNamespacesResponse,
)
DELETE_NAMESPACE = proto_method(
    "NamespaceService/DeleteNamespace",
    namespace_pb2.DeleteNamespaceRequest,
    namespace_pb2.DeleteNamespaceResponse,
)
OPEN_CURSOR = proto_method(
    "CursorService/OpenCursor", cursor_pb2.OpenCursorRequest, cursor_pb2.OpenCursorResponse
)
COMMIT_CURSOR = proto_method(
    "CursorService/CommitCursor", cursor_pb2.CommitCursorRequest, cursor_pb2.CommitCursorResponse
)
GET_CURSOR = proto_method(
    "CursorService/GetCursor", cursor_pb2.GetCursorRequest, cursor_pb2.GetCursorResponse
)
LIST_CURSORS = proto_method(
    "CursorService/ListCursors", cursor_pb2.ListCursorsRequest, cursor_pb2.ListCursorsResponse
)
DELETE_CURSOR = proto_method(
    "CursorService/DeleteCursor", cursor_pb2.DeleteCursorRequest, cursor_pb2.DeleteCursorResponse
)
OFFLOAD_LOG = proto_method(
    "ArchiveService/OffloadLog",
    archive_pb2.OffloadLogRequest,
    archive_pb2.OffloadLogResponse,
    streaming=True,
)
TRIM_LOG = proto_method(
    "ArchiveService/TrimLog",
    archive_pb2.TrimLogRequest,
    archive_pb2.TrimLogResponse,
    streaming=True,
)
PURGE_LOG = proto_method(
    "ArchiveService/PurgeLog", archive_pb2.PurgeLogRequest, archive_pb2.PurgeLogResponse
)
DESCRIBE_ARCHIVE = proto_method(
    "ArchiveService/DescribeArchive",
    archive_pb2.DescribeArchiveRequest,
    archive_pb2.DescribeArchiveResponse,
)
VERIFY_ARCHIVE = proto_method(
    "ArchiveService/VerifyArchive",
    archive_pb2.VerifyArchiveRequest,
    archive_pb2.VerifyArchiveResponse,
    streaming=True,
)
SWEEP_ARCHIVE = proto_method(
    "ArchiveService/SweepArchive",
    archive_pb2.SweepArchiveRequest,
    archive_pb2.SweepArchiveResponse,
    streaming=True,
)
FORK_LOG = proto_method(
    "HistoryService/ForkLog", history_pb2.ForkLogRequest, history_pb2.ForkLogResponse
)
RESTORE_ARCHIVE = proto_method(
    "HistoryService/RestoreArchive",
    history_pb2.RestoreArchiveRequest,
    history_pb2.RestoreArchiveResponse,
    streaming=True,
)
LIST_ARCHIVED_CLUSTERS = proto_method(
    "HistoryService/ListArchivedClusters",
    history_pb2.ListArchivedClustersRequest,
    history_pb2.ListArchivedClustersResponse,
)
DESCRIBE_CLUSTER = proto_method(
    "ClusterConfigService/DescribeCluster",
    cluster_config_pb2.DescribeClusterRequest,
    cluster_config_pb2.DescribeClusterResponse,
)
RENAME_CLUSTER = proto_method(
    "ClusterConfigService/RenameCluster",
    cluster_config_pb2.RenameClusterRequest,
    cluster_config_pb2.RenameClusterResponse,
)
DESCRIBE_NODE = proto_method(
    "ClusterConfigService/DescribeNode",
    cluster_config_pb2.DescribeNodeRequest,
    cluster_config_pb2.DescribeNodeResponse,
)
