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
    ├── DeadlineExceeded           no answer in time
    │   └── NotAppended            an append ran out of time before any session took it
    ├── Purged                     the records are below the log's start; carries the start
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
    ├── ObjectNotFound             the archive has no object of this key
    ├── SwapConflict               a compare-and-swap in the archive found another value
    ├── ArchiveUnavailable         the archive does not answer; a change may have been made
    ├── ArchiveUnsuitable          the archive refuses, or lacks what is needed: a person must act
    └── ProtocolError              the peer broke the protocol, or met an error of its own

**Definite and indefinite.** An append that raises `AppendIndefinite` may be in the log. An append
that raises anything else is not in the log and never will be. `outcome` says the same of any change
for which a call raised the error, such as a new log, and of what a peer answers to an append under
way: what a class does not know to be definite proves nothing, and the append goes on until its
outcome is known or its time is up. So a refusal by one log server, of which an append has several,
is indefinite here.

A class exists where a caller would act differently, and says how: `outcome`, `retryable`, `fault`,
`advice`. docs/errors.md has the table of all of them, made by `tools/errors_page.py`. Errors travel
between processes with their class, message and fields (`sharedlog/rpc/errors.py`); fields are plain
attributes with JSON values.
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

Outcome = Literal["definite", "indefinite"]
"""What is known of a change that ended with an error: `definite`, it was not made and never will
be; `indefinite`, it may have been, or may yet be."""

Fault = Literal["call", "data", "state", "cluster"]
"""What is to be mended: the `call` as it was made; the `data` that it carried; nothing, but the
`state` is not what the caller took it for; the `cluster`, or the way there."""


class SharedLogError(Exception):
    """The root. `str(error)` is one line for a person."""

    outcome: ClassVar[Outcome] = "indefinite"
    """Of a change for which this was raised. A class that does not know better proves nothing."""
    retryable: ClassVar[bool] = False
    """The same call may succeed later, unchanged. Whether that is safe is told by `outcome`."""
    fault: ClassVar[Fault] = "cluster"
    """What is to be mended."""
    advice: ClassVar[str] = "read the message; it is an error of a kind that this version lacks"
    """What to do, for a person: a clause without a full stop."""
    grpc_status: ClassVar[StatusName] = "INTERNAL"

    def __init__(self, message: str) -> None:
        super().__init__(message)


class InvalidArgument(SharedLogError):
    """The call itself is wrong; it will never succeed as it is."""

    outcome = "definite"
    fault: ClassVar[Fault] = "call"
    advice = "mend the call; as it is it will never succeed"
    grpc_status: ClassVar[StatusName] = "INVALID_ARGUMENT"


class InvalidLogName(InvalidArgument):
    """Not a log's name."""

    advice = "take another name"

    def __init__(self, *, name: str) -> None:
        super().__init__(
            f"{name!r} is no log name: 1 to 255 of a-z A-Z 0-9 . _ / -, "
            "starting with a letter or digit"
        )
        self.name = name


class EmptyBatch(InvalidArgument):
    """A batch needs at least one record."""

    fault = "data"
    advice = "append at least one record"

    def __init__(self) -> None:
        super().__init__("the batch is empty; an append needs at least one record")


class RecordTooLarge(InvalidArgument):
    """One record exceeds the limit."""

    fault = "data"
    advice = "split the record, or keep it elsewhere and append where it is"

    def __init__(self, *, size_bytes: int, max_bytes: int) -> None:
        super().__init__(f"the record has {size_bytes:,} bytes; at most {max_bytes:,} are taken")
        self.size_bytes = size_bytes
        self.max_bytes = max_bytes


class BatchTooLarge(InvalidArgument):
    """One batch exceeds a limit; `unit` is "bytes" or "records"."""

    fault = "data"
    advice = "append in several batches"

    def __init__(self, *, size: int, max_size: int, unit: str) -> None:
        super().__init__(f"the batch has {size:,} {unit}; at most {max_size:,} are taken")
        self.size = size
        self.max_size = max_size
        self.unit = unit


class OffsetOutOfRange(InvalidArgument):
    """A read starts below 0 or beyond the tail."""

    fault = "state"
    advice = "start at an offset that exists; `tail` is the first that does not"
    grpc_status = "OUT_OF_RANGE"

    def __init__(self, *, offset: int, tail: int | None) -> None:
        known = "offsets start at 0" if tail is None else f"the tail is {tail}"
        super().__init__(f"offset {offset} is out of range: {known}")
        self.offset = offset
        self.tail = tail


class LogNotFound(SharedLogError):
    """No log has this name."""

    outcome = "definite"
    fault = "state"
    advice = "create the log, or mend the name"
    grpc_status = "NOT_FOUND"

    def __init__(self, *, name: str) -> None:
        super().__init__(f"there is no log {name!r}")
        self.name = name


class LogExists(SharedLogError):
    """A log of this name exists already."""

    outcome = "definite"
    fault = "state"
    advice = "use the log that is there, or take another name"
    grpc_status = "ALREADY_EXISTS"

    def __init__(self, *, name: str) -> None:
        super().__init__(f"a log {name!r} exists already")
        self.name = name


class CursorNotFound(SharedLogError):
    """The log has no cursor of this name."""

    outcome = "definite"
    fault = "state"
    advice = "open the cursor, which makes it, or mend the name"
    grpc_status = "NOT_FOUND"

    def __init__(self, *, name: str) -> None:
        super().__init__(f"there is no cursor {name!r}")
        self.name = name


class CursorLost(SharedLogError):
    """Another owner has taken the cursor over, or it was deleted: nothing was changed.

    `position` is where it is now, None if it is no more; `epoch` and `owner` are the new owner's.
    """

    outcome = "definite"
    fault = "state"
    advice = "stop: another owner reads on from the position that was committed last"
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

    outcome = "indefinite"
    advice = "read the log to see whether the record is there, before it is appended again"
    grpc_status = "UNKNOWN"


class LogUnavailable(SharedLogError):
    """The log takes no appends or tells no tail until something changes; the message says what."""

    outcome = "definite"
    advice = "try again later; `sharedlog status` says what it waits for"
    retryable = True
    grpc_status: ClassVar[StatusName] = "UNAVAILABLE"


class Unrepairable(LogUnavailable):
    """Too few of a segment's log servers can ever answer again for the log to go on by itself.

    Nothing is wrong with what was read before. `segment_index` says which segment.
    """

    advice = "bring a lost log server back, or decide on `sharedlog log accept-loss`"
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

    outcome = "definite"
    fault = "state"
    advice = "stop: another process appends in this one's place"
    grpc_status = "ABORTED"

    def __init__(self, message: str, *, life: int | None = None) -> None:
        super().__init__(message)
        self.life = life


class SequenceGap(SharedLogError):
    """A batch does not follow its producer's last one: one before it was refused or never came."""

    outcome = "definite"
    advice = "nothing: the client sends the batch again in its order"
    retryable = True
    grpc_status = "ABORTED"


class ConditionFailed(SharedLogError):
    """The append was to depend on something that does not hold: nothing was appended."""

    outcome = "definite"
    fault = "state"
    advice = "look at what is there now, and decide anew"
    grpc_status = "FAILED_PRECONDITION"


class OffsetMismatch(ConditionFailed):
    """The batch would not get the offset that it must get. `tail` is what it would have got."""

    advice = "read what was appended up to `tail`, and decide anew"

    def __init__(self, *, match_offset: int, tail: int) -> None:
        super().__init__(f"the append was to get offset {match_offset}, and the tail is {tail}")
        self.match_offset = match_offset
        self.tail = tail


class FencingTokenMismatch(ConditionFailed):
    """The log's fencing token is another one: `current`, "" for none."""

    advice = "stop, if another one has the log now; `current` is its token"

    def __init__(self, *, given: str, current: str) -> None:
        has = f"the log's is {current!r}" if current else "the log has none"
        super().__init__(f"the append came with fencing token {given!r}, and {has}")
        self.given = given
        self.current = current


class NotSequencer(SharedLogError):
    """The asked process does not order this log."""

    outcome = "definite"
    advice = "nothing: the client goes to the process that orders the log"
    retryable = True
    grpc_status = "FAILED_PRECONDITION"

    def __init__(self, message: str, *, sequencer_node_id: str | None = None) -> None:
        super().__init__(message)
        self.sequencer_node_id = sequencer_node_id


class Overloaded(SharedLogError):
    """A limit was reached; nothing was done."""

    outcome = "definite"
    advice = "try again after `retry_after_s`, or send less at a time"
    retryable = True
    grpc_status = "RESOURCE_EXHAUSTED"

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class StoreReadOnly(SharedLogError):
    """A log server takes no stores because its disk, or its store's limit, is reached."""

    outcome = "definite"
    advice = "make room on the log server's disk, or drain the node"
    retryable = True
    grpc_status = "RESOURCE_EXHAUSTED"


class Unreachable(SharedLogError):
    """There is no connection to the peer, or it broke."""

    outcome = "indefinite"
    advice = "see whether the node runs and the address is right"
    retryable = True
    grpc_status = "UNAVAILABLE"


class DeadlineExceeded(SharedLogError):
    """No answer in time. The peer may have done, or may yet do, what it was asked."""

    outcome: ClassVar[Outcome] = "indefinite"
    advice = "try again, or allow more time; look first if the call changes something"
    retryable = True
    grpc_status = "DEADLINE_EXCEEDED"


class NotAppended(DeadlineExceeded):
    """An append ran out of time before any session took it: it is not in the log."""

    outcome = "definite"
    advice = "append again, or allow more time; the message says what kept it"


class Purged(SharedLogError):
    """The log has nothing at `offset` any more: it was purged, as all below `start` was."""

    outcome = "definite"
    fault = "state"
    advice = "start at `start`, the first offset that is not purged"
    grpc_status = "OUT_OF_RANGE"

    def __init__(self, *, offset: int, start: int) -> None:
        super().__init__(f"offset {offset} is below the log's start: it begins at {start}")
        self.offset = offset
        self.start = start


class DataLoss(SharedLogError):
    """Records [first, end) can't be read from any replica that should hold them."""

    outcome = "definite"
    advice = "bring a lost log server back; reading can go on at `end`"
    grpc_status = "DATA_LOSS"

    def __init__(self, message: str, *, first: int, end: int) -> None:
        super().__init__(message)
        self.first = first
        self.end = end


class CorruptBatch(SharedLogError):
    """The bytes are no batch, or not those that were checksummed."""

    outcome = "definite"
    fault = "data"
    advice = "encode the batch as docs/batch-format.md says; if it was, look for what damages it"
    grpc_status = "DATA_LOSS"


class CodecUnavailable(SharedLogError):
    """What a batch is compressed with is not installed, or unknown to this version.

    Nothing is wrong with the batch: with what the message names, the same call succeeds. `codec` is
    its number in the batch's header.
    """

    outcome = "definite"
    fault = "call"
    advice = "install the library that the message names"
    grpc_status = "FAILED_PRECONDITION"

    def __init__(self, message: str, *, codec: int) -> None:
        super().__init__(message)
        self.codec = codec


class WrongStorage(SharedLogError):
    """The request names another store than the one that this node has."""

    outcome = "indefinite"
    advice = "nothing, if the disk was replaced: others take its place"
    grpc_status = "FAILED_PRECONDITION"


class WrongCluster(SharedLogError):
    """The node, or its store, belongs to another cluster."""

    outcome = "definite"
    advice = "mend the address, or the node's folder"
    grpc_status = "FAILED_PRECONDITION"


class Superseded(SharedLogError):
    """A newer process of the same node has registered; the older one stops."""

    outcome = "definite"
    advice = "nothing: the newer process serves"
    grpc_status = "FAILED_PRECONDITION"


class Sealed(SharedLogError):
    """The loglet is sealed: it takes nothing more from its sequencer."""

    outcome = "indefinite"
    advice = "nothing: the sequencer goes on in the next segment"
    grpc_status = "FAILED_PRECONDITION"


class WrongSequencer(SharedLogError):
    """The loglet belongs to another sequencer."""

    outcome = "indefinite"
    advice = "nothing: another sequencer has taken over"
    grpc_status = "FAILED_PRECONDITION"


class LogletNotOpen(SharedLogError):
    """The loglet was never opened on this log server."""

    outcome = "indefinite"
    advice = "nothing: the sequencer opens it, and readers go elsewhere"
    grpc_status = "FAILED_PRECONDITION"


class MissingPrefix(SharedLogError):
    """A store at N where N-1 is neither held nor known to be committed."""

    outcome = "indefinite"
    advice = "nothing: the sequencer sends what is missing"
    retryable = True
    grpc_status = "FAILED_PRECONDITION"


class StoreFailed(SharedLogError):
    """The disk failed while writing; what is on it is unknown until the process has restarted."""

    outcome = "indefinite"
    advice = "look at the log server's disk; the process must be started again"
    grpc_status = "INTERNAL"


class VersionMismatch(SharedLogError):
    """A compare-and-swap found another version; `actual` is None if there is no such key."""

    outcome = "definite"
    fault = "state"
    advice = "read the value again and decide anew"
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

    outcome = "indefinite"
    advice = "try again; see to the metadata store"
    retryable = True
    grpc_status = "UNAVAILABLE"


class ObjectNotFound(SharedLogError):
    """The archive has no object of this key."""

    outcome = "definite"
    fault = "state"
    advice = "read the manifest again: the object may have been purged; else it is lost"
    grpc_status = "NOT_FOUND"

    def __init__(self, message: str, *, key: str) -> None:
        super().__init__(message)
        self.key = key


class SwapConflict(SharedLogError):
    """A compare-and-swap in the archive found another value than the expected one.

    The caller's value is not there now. It may have been for a moment, seen by whoever replaced it:
    requests are repeated below us, and what is told is the last one's answer. `actual` is the
    version that is there, None for no object.
    """

    outcome = "indefinite"
    advice = "read the value again and decide anew"
    grpc_status = "ABORTED"

    def __init__(self, message: str, *, key: str, actual: str | None) -> None:
        super().__init__(message)
        self.key = key
        self.actual = actual


class ArchiveUnavailable(SharedLogError):
    """The archive did not answer, or can't now. A change that was asked for may have been made."""

    outcome = "indefinite"
    advice = "try again; see to the archive, which the message names"
    retryable = True
    grpc_status = "UNAVAILABLE"


class ArchiveUnsuitable(SharedLogError):
    """The archive denies what is asked, is not there, or lacks a property that is relied on.

    Trying again does not help until somebody has changed the archive, the permissions or the
    configuration; the message says what is missing.
    """

    outcome = "indefinite"
    advice = "mend what the message names: permissions, bucket or folder, or [archive]"
    grpc_status = "FAILED_PRECONDITION"


class ProtocolError(SharedLogError):
    """The peer sent what it must not, or failed in a way that it does not name."""

    outcome = "indefinite"
    advice = "report it, with the versions of client and node and the node's log"
    grpc_status = "INTERNAL"
