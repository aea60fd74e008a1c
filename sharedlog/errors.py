"""Every error that a caller can meet, as one tree.

    SharedLogError
    ├── InvalidArgument            you asked for what can't be; mend the call
    │   ├── InvalidLogName
    │   ├── EmptyBatch
    │   ├── RecordTooLarge
    │   ├── BatchTooLarge
    │   └── OffsetOutOfRange       below 0 or beyond the tail; carries the tail
    ├── LogNotFound
    ├── LogExists
    ├── CursorNotFound
    ├── CursorLost                 another owner has it, or it was deleted; carries its position
    ├── AppendIndefinite           the record may or may not be in the log
    ├── LogUnavailable             the log takes no appends or tells no tail now
    │   └── Unrepairable           too much of it is lost: a person must decide (`log accept-loss`)
    ├── ProducerFenced             another session of the same producer has taken over
    ├── SequenceGap                a batch does not follow the one before it in its session
    ├── ConditionFailed            what the append was to depend on does not hold
    │   ├── OffsetMismatch         `match_offset` is not the tail; carries the tail
    │   └── FencingTokenMismatch   the log has another fencing token; carries it
    ├── NotSequencer               another process orders this log; carries which, if known
    ├── Overloaded                 a limit was reached; carries when to try again
    ├── StoreReadOnly              a log server's disk is full or nearly so
    ├── Unreachable                no connection, or it broke
    ├── DeadlineExceeded           a call that changes nothing ran out of time
    ├── DataLoss                   every replica that should hold the records lost or damaged them
    ├── CorruptBatch               bytes that are no batch, or whose checksum does not match
    ├── CodecUnavailable           a batch can't be compressed or decompressed here: install it
    ├── WrongStorage               the disk was swapped or wiped: not the store that was asked for
    ├── WrongCluster               the node belongs to another cluster
    ├── Superseded                 a newer process of the same node has started; this one must stop
    ├── Sealed                     the loglet takes no stores any more
    ├── WrongSequencer             the loglet was opened by another sequencer
    ├── LogletNotOpen              the loglet was never opened here
    ├── MissingPrefix              a store does not follow what is held here
    ├── StoreFailed                the disk failed; the process stops
    ├── VersionMismatch            a compare-and-swap lost
    ├── MetadataUnavailable        the metadata store does not answer; a change may have been made
    └── ProtocolError              the peer broke the protocol, or met an error of its own

**Definite and indefinite.** An append that raises `AppendIndefinite` may be in the log. An append
that raises anything else is not in the log and never will be.

A class exists where a caller would act differently. Errors travel between processes with their
class, message and fields (`sharedlog/rpc/errors.py`); fields are plain attributes with JSON values.
"""

from __future__ import annotations

from typing import ClassVar, Literal

StatusName = Literal[
    "INVALID_ARGUMENT",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "OUT_OF_RANGE",
    "FAILED_PRECONDITION",
    "ABORTED",
    "UNKNOWN",
    "UNAVAILABLE",
    "RESOURCE_EXHAUSTED",
    "DEADLINE_EXCEEDED",
    "DATA_LOSS",
    "INTERNAL",
]
"""Name of a `grpc.StatusCode`; a name, so that this module does not import grpc."""


class SharedLogError(Exception):
    """The root. `str(error)` is one line for a person."""

    retryable: ClassVar[bool] = False
    """The same call may succeed later, unchanged."""
    grpc_status: ClassVar[StatusName] = "INTERNAL"

    def __init__(self, message: str) -> None:
        super().__init__(message)


class InvalidArgument(SharedLogError):
    """The call itself is wrong; it will never succeed as it is."""

    grpc_status: ClassVar[StatusName] = "INVALID_ARGUMENT"


class InvalidLogName(InvalidArgument):
    """Not a log's name."""

    def __init__(self, *, name: str) -> None:
        super().__init__(
            f"{name!r} is no log name: 1 to 255 of a-z A-Z 0-9 . _ / -, "
            "starting with a letter or digit"
        )
        self.name = name


class EmptyBatch(InvalidArgument):
    """A batch needs at least one record."""

    def __init__(self) -> None:
        super().__init__("the batch is empty; an append needs at least one record")


class RecordTooLarge(InvalidArgument):
    """One record exceeds the limit."""

    def __init__(self, *, size_bytes: int, max_bytes: int) -> None:
        super().__init__(f"the record has {size_bytes:,} bytes; at most {max_bytes:,} are taken")
        self.size_bytes = size_bytes
        self.max_bytes = max_bytes


class BatchTooLarge(InvalidArgument):
    """One batch exceeds a limit; `unit` is "bytes" or "records"."""

    def __init__(self, *, size: int, max_size: int, unit: str) -> None:
        super().__init__(f"the batch has {size:,} {unit}; at most {max_size:,} are taken")
        self.size = size
        self.max_size = max_size
        self.unit = unit


class OffsetOutOfRange(InvalidArgument):
    """A read starts below 0 or beyond the tail."""

    grpc_status = "OUT_OF_RANGE"

    def __init__(self, *, offset: int, tail: int | None) -> None:
        known = "offsets start at 0" if tail is None else f"the tail is {tail}"
        super().__init__(f"offset {offset} is out of range: {known}")
        self.offset = offset
        self.tail = tail


class LogNotFound(SharedLogError):
    """No log has this name."""

    grpc_status = "NOT_FOUND"

    def __init__(self, *, name: str) -> None:
        super().__init__(f"there is no log {name!r}")
        self.name = name


class LogExists(SharedLogError):
    """A log of this name exists already."""

    grpc_status = "ALREADY_EXISTS"

    def __init__(self, *, name: str) -> None:
        super().__init__(f"a log {name!r} exists already")
        self.name = name


class CursorNotFound(SharedLogError):
    """The log has no cursor of this name."""

    grpc_status = "NOT_FOUND"

    def __init__(self, *, name: str) -> None:
        super().__init__(f"there is no cursor {name!r}")
        self.name = name


class CursorLost(SharedLogError):
    """Another owner has taken the cursor over, or it was deleted: nothing was changed.

    `position` is where it is now, None if it is no more; `epoch` and `owner` are the new owner's.
    """

    grpc_status = "ABORTED"

    def __init__(self, *, name: str, position: int | None, epoch: int, owner: str) -> None:
        where = "it does not exist" if position is None else f"it is at {position}"
        whose = f"; {owner or 'somebody'} owns it in epoch {epoch}" if epoch else ""
        super().__init__(f"cursor {name!r} is not this owner's: {where}{whose}")
        self.name = name
        self.position = position
        self.epoch = epoch
        self.owner = owner


class AppendIndefinite(SharedLogError):
    """The outcome is unknown: the record may be in the log, now or later, or never."""

    grpc_status = "UNKNOWN"


class LogUnavailable(SharedLogError):
    """The log takes no appends or tells no tail until something changes; the message says what."""

    retryable = True
    grpc_status: ClassVar[StatusName] = "UNAVAILABLE"


class Unrepairable(LogUnavailable):
    """Too few of a segment's log servers can ever answer again for the log to go on by itself.

    Nothing is wrong with what was read before. `segment_index` says which segment.
    """

    retryable = False
    grpc_status = "FAILED_PRECONDITION"

    def __init__(self, message: str, *, segment_index: int) -> None:
        super().__init__(message)
        self.segment_index = segment_index


class ProducerFenced(SharedLogError):
    """A newer session or life of the same producer is known: this one appends no more.

    `life`: the epoch of a named producer's life that has begun since; None if it is another session
    of this one.
    """

    grpc_status = "ABORTED"

    def __init__(self, message: str, *, life: int | None = None) -> None:
        super().__init__(message)
        self.life = life


class SequenceGap(SharedLogError):
    """A batch does not follow its producer's last one: one before it was refused or never came."""

    retryable = True
    grpc_status = "ABORTED"


class ConditionFailed(SharedLogError):
    """The append was to depend on something that does not hold: nothing was appended."""

    grpc_status = "FAILED_PRECONDITION"


class OffsetMismatch(ConditionFailed):
    """The batch would not get the offset that it must get. `tail` is what it would have got."""

    def __init__(self, *, match_offset: int, tail: int) -> None:
        super().__init__(f"the append was to get offset {match_offset}, and the tail is {tail}")
        self.match_offset = match_offset
        self.tail = tail


class FencingTokenMismatch(ConditionFailed):
    """The log's fencing token is another one: `current`, "" for none."""

    def __init__(self, *, given: str, current: str) -> None:
        has = f"the log's is {current!r}" if current else "the log has none"
        super().__init__(f"the append came with fencing token {given!r}, and {has}")
        self.given = given
        self.current = current


class NotSequencer(SharedLogError):
    """The asked process does not order this log."""

    retryable = True
    grpc_status = "FAILED_PRECONDITION"

    def __init__(self, message: str, *, sequencer_node_id: str | None = None) -> None:
        super().__init__(message)
        self.sequencer_node_id = sequencer_node_id


class Overloaded(SharedLogError):
    """A limit was reached; nothing was done."""

    retryable = True
    grpc_status = "RESOURCE_EXHAUSTED"

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class StoreReadOnly(SharedLogError):
    """A log server takes no stores because its disk, or its store's limit, is reached."""

    retryable = True
    grpc_status = "RESOURCE_EXHAUSTED"


class Unreachable(SharedLogError):
    """There is no connection to the peer, or it broke."""

    retryable = True
    grpc_status = "UNAVAILABLE"


class DeadlineExceeded(SharedLogError):
    """No answer in time, of a call that changes nothing."""

    retryable = True
    grpc_status = "DEADLINE_EXCEEDED"


class DataLoss(SharedLogError):
    """Records [first, end) can't be read from any replica that should hold them."""

    grpc_status = "DATA_LOSS"

    def __init__(self, message: str, *, first: int, end: int) -> None:
        super().__init__(message)
        self.first = first
        self.end = end


class CorruptBatch(SharedLogError):
    """The bytes are no batch, or not those that were checksummed."""

    grpc_status = "DATA_LOSS"


class CodecUnavailable(SharedLogError):
    """What a batch is compressed with is not installed, or unknown to this version.

    Nothing is wrong with the batch: with what the message names, the same call succeeds. `codec` is
    its number in the batch's header.
    """

    grpc_status = "FAILED_PRECONDITION"

    def __init__(self, message: str, *, codec: int) -> None:
        super().__init__(message)
        self.codec = codec


class WrongStorage(SharedLogError):
    """The request names another store than the one that this node has."""

    grpc_status = "FAILED_PRECONDITION"


class WrongCluster(SharedLogError):
    """The node, or its store, belongs to another cluster."""

    grpc_status = "FAILED_PRECONDITION"


class Superseded(SharedLogError):
    """A newer process of the same node has registered; the older one stops."""

    grpc_status = "FAILED_PRECONDITION"


class Sealed(SharedLogError):
    """The loglet is sealed: it takes nothing more from its sequencer."""

    grpc_status = "FAILED_PRECONDITION"


class WrongSequencer(SharedLogError):
    """The loglet belongs to another sequencer."""

    grpc_status = "FAILED_PRECONDITION"


class LogletNotOpen(SharedLogError):
    """The loglet was never opened on this log server."""

    grpc_status = "FAILED_PRECONDITION"


class MissingPrefix(SharedLogError):
    """A store at N where N-1 is neither held nor known to be committed."""

    retryable = True
    grpc_status = "FAILED_PRECONDITION"


class StoreFailed(SharedLogError):
    """The disk failed while writing; what is on it is unknown until the process has restarted."""

    grpc_status = "INTERNAL"


class VersionMismatch(SharedLogError):
    """A compare-and-swap found another version; `actual` is None if there is no such key."""

    grpc_status = "ABORTED"

    def __init__(self, *, key: str, expected: int | None, actual: int | None) -> None:
        want = "no value" if expected is None else f"version {expected}"
        have = "no value" if actual is None else f"version {actual}"
        super().__init__(f"{key}: expected {want}, found {have}")
        self.key = key
        self.expected = expected
        self.actual = actual


class MetadataUnavailable(SharedLogError):
    """The metadata store did not answer. A change that was asked for may have been made."""

    retryable = True
    grpc_status = "UNAVAILABLE"


class ProtocolError(SharedLogError):
    """The peer sent what it must not, or failed in a way that it does not name."""

    grpc_status = "INTERNAL"
