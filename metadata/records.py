"""What is kept in the metadata store: nodes and logs, and how they become bytes.

| key                       | value           | changed by                                        |
|---------------------------|-----------------|---------------------------------------------------|
| `cluster`                 | ClusterRecord   | who makes it, once; `rename`, its name            |
| `controller`              | LeaseRecord     | who takes, renews or leaves the controller's lease |
| `nodes/<node>`            | NodeRecord      | the node, at start; operators and the controller  |
| `logs/<name>`             | LogRecord       | create, and every change of the log's chain       |
| `namespaces/<prefix>`     | NamespaceRecord | operators (`namespaces.py`)                       |
| `cursors/<log_id>/<name>` | CursorRecord    | the cursor's owner, operators (`cursors.py`)      |

A value is one line of JSON, so that a person can read it in an emergency, after its CRC32C:
`{8 hex digits} {json}` (`encoding.py`). Unknown fields are kept out of the way: a newer node may
have written them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from sharedlog.ids import Generation, LogId, LogletId, NodeId, Offset, SequencerId, StorageId
from sharedlog.retention import NO_RETENTION, Retention

STATE_READ_WRITE: Final = "read-write"
STATE_DRAINING: Final = "draining"  # takes no new segments; what it has is moved away
STATE_GONE: Final = "gone"  # drained: no segment names it any more
STATE_DATA_LOSS: Final = "data-loss"  # its store will never answer again
NODE_STATES: Final = (STATE_READ_WRITE, STATE_DRAINING, STATE_GONE, STATE_DATA_LOSS)

CLUSTER_KEY = "cluster"
CONTROLLER_KEY = "controller"
NODES_PREFIX = "nodes/"
LOGS_PREFIX = "logs/"
NAMESPACES_PREFIX = "namespaces/"
CURSORS_PREFIX = "cursors/"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterRecord:
    """The cluster's identity."""

    cluster_id: str  # 32 hex digits, random: its fingerprint, which nodes and stores remember
    created_ms: int
    name: str = ""  # for people and for nodes that are told which cluster is theirs; may be empty


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseRecord:
    """Who holds a lease; see `lease.py`."""

    holder: NodeId  # "": nobody, it was let go
    nonce: str  # of the holder's process
    counter: int  # grows with each write
    ttl_ms: int  # its holder writes it anew within this time


_NO_STORE: Final = StorageId("")
_FIRST: Final = Offset(0)


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
    # One of `NODE_STATES`: of the store above, so a node with a new store is read-write again.
    state: str = STATE_READ_WRITE
    # The store that it had last, while it runs without one; "" while it has one, or never had.
    past_storage_id: StorageId = _NO_STORE

    @property
    def last_storage_id(self) -> StorageId:
        """The store that it has, or else the one that it had last; "" if it never had any."""
        return self.storage_id or self.past_storage_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """One member of a nodeset, as it was when the segment was made."""

    node_id: NodeId
    storage_id: StorageId
    location: str = ""


Spread = tuple[tuple[str, int], ...]
"""(level, count) pairs in order of the levels: see `quorum.py`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LostRange:
    """Offsets [first, end) that an operator has given up, for no log server can give them back.

    `first == end`: records at or above it may have been lost, and nobody can say how many.
    """

    first: Offset
    end: Offset
    accepted_ms: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A part [base, end) of a log under one immutable configuration; `end` is None while open."""

    index: int
    base: Offset
    end: Offset | None = None
    sequencer: SequencerId
    nodeset: tuple[Replica, ...]
    write_quorum: int
    spread: Spread = ()
    timestamp_ms: int = 0  # no batch of the segment has an earlier one
    lost: tuple[LostRange, ...] = ()  # in order

    @property
    def is_archived(self) -> bool:
        """It is wholly in the archive, and no log server ever had it: see `history_rules.py`."""
        return not self.nodeset


CreatedWith = tuple[tuple[str, str, str], ...]
"""(setting, value, source) of each setting that was in force when a log was created: see
`namespaces.py`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NamespaceRecord:
    """What is inherited by the logs under a prefix that are created from now on.

    A field that is None is inherited from a shorter prefix.
    """

    prefix: str  # ends with "/", or is empty: of every log
    changed_ms: int
    change_nonce: str  # of the last change: tells a repeated one from another
    replicas: int | None = None
    write_quorum: int | None = None
    spread: Spread | None = None
    retention: Retention = NO_RETENTION  # field by field; 0: no limit
    near: str | None = None  # "": nowhere in particular


@dataclass(frozen=True, slots=True, kw_only=True)
class CursorRecord:
    """A place in a log that its owner moves; see `cursors.py`."""

    log_id: LogId
    name: str
    position: Offset  # first offset that is not done with
    epoch: int  # counts the owners since the cursor was made, from 1
    owner: str  # random, of the opening
    owner_name: str  # as the owner calls itself
    change: int = 0  # the last that the present owner made, by its own count
    changed_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LogRecord:
    """A log and its chain: one value, so that a reconfiguration is one compare-and-swap.

    `start`, `trimmed` and `archived_end` only grow; what they may be is in `archive_rules.py`.
    """

    log_id: LogId
    name: str
    replicas: int  # wanted; a segment's own nodeset says what it has
    write_quorum: int
    created_ms: int
    create_nonce: str  # tells a repeated create from a second one
    chain: tuple[Segment, ...] = field(default=())
    spread: Spread = ()  # wanted of each new segment
    change_nonce: str = ""  # of the last change: tells whose it was when an answer got lost
    created_with: CreatedWith = ()  # stays as it was, whatever is changed later
    start: Offset = _FIRST  # below it nothing can be read any more: it was purged
    trimmed: Offset = _FIRST  # log servers may drop what ends at or below it
    archived_end: Offset = _FIRST  # all of [start, archived_end) is in the archive
    retention: Retention = NO_RETENTION  # None: no limit
    near: str = ""  # where its writers are, as in a location; "": nobody says

    @property
    def open_segment(self) -> Segment:
        """The last segment, the only one that can be open. A chain has at least one."""
        return self.chain[-1]

    def loglet(self, segment: Segment) -> LogletId:
        """Id of the loglet that implements `segment`."""
        return LogletId(self.log_id, segment.index)
