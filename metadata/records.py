"""What is kept in the metadata store: nodes and logs, and how they become bytes.

| key             | value        | changed by                                     |
|-----------------|--------------|------------------------------------------------|
| `cluster`       | ClusterRecord | the first node, once                          |
| `nodes/<node>`  | NodeRecord   | the node itself, at start                      |
| `logs/<name>`   | LogRecord    | create, and every change of the log's chain    |

A value is one line of JSON, so that a person can read it in an emergency, after its CRC32C:
`{8 hex digits} {json}`. Unknown fields are kept out of the way: a newer node may have written them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from sharedlog.ids import Generation, LogId, LogletId, NodeId, Offset, SequencerId, StorageId

CLUSTER_KEY = "cluster"
NODES_PREFIX = "nodes/"
LOGS_PREFIX = "logs/"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterRecord:
    """The cluster's identity."""

    cluster_id: str  # 32 hex digits, random
    created_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRecord:
    """A node as it last registered itself."""

    node_id: NodeId
    generation: Generation
    storage_id: StorageId  # of the store it serves now; "" without the role log-server
    address: str  # host:port of its gRPC server
    http_address: str  # host:port of metrics and health; "" if off
    location: str
    roles: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """One member of a nodeset, as it was when the segment was made."""

    node_id: NodeId
    storage_id: StorageId
    location: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A part [base, end) of a log under one immutable configuration; `end` is None while open."""

    index: int
    base: Offset
    end: Offset | None = None
    sequencer: SequencerId
    nodeset: tuple[Replica, ...]
    write_quorum: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LogRecord:
    """A log and its chain: one value, so that a reconfiguration is one compare-and-swap."""

    log_id: LogId
    name: str
    replicas: int  # wanted; a segment's own nodeset says what it has
    write_quorum: int
    created_ms: int
    create_nonce: str  # tells a repeated create from a second one
    chain: tuple[Segment, ...] = field(default=())

    @property
    def open_segment(self) -> Segment:
        """The last segment, the only one that can be open. A chain has at least one."""
        return self.chain[-1]

    def loglet(self, segment: Segment) -> LogletId:
        """Id of the loglet that implements `segment`."""
        return LogletId(self.log_id, segment.index)
