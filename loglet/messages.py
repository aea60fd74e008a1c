"""What travels on the replication stream, as plain objects.

The sequencer builds one `StoreRequest` per log server and moment, of whatever waits; the log server
answers with `StoreResponse`s. Between processes `loglet/wire.py` turns them into the protobuf
messages of `proto/sharedlog/v1/log_server.proto`; within a process they are passed as they are.
Nothing here is changed after it was sent.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from loglet.store import LogletState
from sharedlog.errors import SharedLogError
from sharedlog.ids import LogletId, Offset, SequencerId, StorageId


@dataclass(slots=True)
class OpenLoglet:
    """Open a loglet for the sequencer of the message; `base` is the segment's first offset."""

    loglet: LogletId
    base: Offset


@dataclass(slots=True)
class CommittedTail:
    """Every offset of the loglet below `tail` is committed."""

    loglet: LogletId
    tail: Offset


@dataclass(slots=True)
class ConfirmUnsealed:
    """Is the loglet still not sealed? `round_id` is returned in the answer."""

    loglet: LogletId
    round_id: int


@dataclass(slots=True)
class StoreRequest:
    """Applied as opens, committed, batches, confirms. Batches of a loglet are in order."""

    storage_id: StorageId
    sequencer: SequencerId
    opens: list[OpenLoglet] = field(default_factory=list)
    batches: list[bytes] = field(default_factory=list)  # placed batches
    committed: list[CommittedTail] = field(default_factory=list)
    confirms: list[ConfirmUnsealed] = field(default_factory=list)


@dataclass(slots=True)
class Stored:
    """[first, end) of the loglet is held and fsynced.

    Also the answer to an open: first == end == base.
    """

    loglet: LogletId
    first: Offset
    end: Offset
    watched: bool = False  # somebody reads it here: the committed tail is wanted at once


@dataclass(slots=True)
class StoreRefused:
    """The store at `first` (for an open: the base) was refused, and so is what follows it."""

    loglet: LogletId
    first: Offset
    error: SharedLogError


@dataclass(slots=True)
class Confirmed:
    """Answer to `ConfirmUnsealed`."""

    loglet: LogletId
    round_id: int
    sealed: bool


@dataclass(slots=True)
class StoreResponse:
    """Facts that became durable, refusals and confirmations, coalesced."""

    stored: list[Stored] = field(default_factory=list)
    refused: list[StoreRefused] = field(default_factory=list)
    confirmed: list[Confirmed] = field(default_factory=list)


@dataclass(slots=True)
class SealRequest:
    """Seal the loglet; with `base`, the segment's first offset, an unknown one can be made.

    `skip_damage`: the answer's `damaged` stays empty. For whoever counts nothing of the answer as a
    copy, or verifies it by itself.
    """

    storage_id: StorageId
    loglet: LogletId
    base: Offset
    skip_damage: bool = False


@dataclass(slots=True)
class SealResponse:
    """What the server held and knew once the seal was durable; tails are exclusive."""

    local_tail: Offset
    committed_tail: Offset
    # Of the highest batch held whose placement is whole; 0 if there is none.
    last_timestamp_ms: int = 0
    # Held ranges [first, end) in [committed_tail, local_tail) that are damaged: they count in
    # `local_tail`, and are no copies. Not looked for if the request says so.
    damaged: list[tuple[Offset, Offset]] = field(default_factory=list)
    # All below was trimmed here, and so is committed; 0: nothing was.
    local_start: Offset = Offset(0)  # noqa: RUF009 - a number


@dataclass(slots=True)
class RepairRequest:
    """Store placed batches for whoever repairs or backfills; passes a seal.

    `committed_tail`: every offset below it is committed. Evidence for the prefix rule, nothing
    else: it raises no committed tail here, for another sealer may win with a lower end.
    """

    storage_id: StorageId
    loglet: LogletId
    committed_tail: Offset
    batches: list[bytes] = field(default_factory=list)  # placed, in order


@dataclass(slots=True)
class RepairResponse:
    """All of them are held, fsynced."""


@dataclass(slots=True)
class TellEndsRequest:
    """Where segments end, as the chain says; unknown loglets are passed over."""

    storage_id: StorageId
    ends: list[tuple[LogletId, Offset]] = field(default_factory=list)


@dataclass(slots=True)
class TellEndsResponse:
    """Kept, fsynced."""


@dataclass(slots=True)
class TrimLoglets:
    """Keep nothing below these local starts; unknown loglets are passed over."""

    storage_id: StorageId
    starts: list[tuple[LogletId, Offset]] = field(default_factory=list)


@dataclass(slots=True)
class TrimmedLoglets:
    """How those that are known stand now, durably, in the order of the request."""

    loglets: list[LogletState] = field(default_factory=list)
