"""A loglet that this process orders, as its shells see it; and who waits for a batch.

It becomes active with its first append, session or find-tail in this process and then costs this
object, no task. It is left behind for good when the chain has moved on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from metadata.records import Segment
from sequencer.core import InFlight, LogletSequencer
from sequencer.find_tail import FindTailRounds
from sequencer.link import ReplicaLink
from sequencer.producers import ProducerTable, Remembered
from sequencer.session import AppendSession, SessionSlot
from sequencer.state import LogState
from sharedlog.errors import SharedLogError
from sharedlog.ids import LogletId, NodeId, Offset

SEARCHES_PER_LOG_MAX: Final = 2


class Refusal(Protocol):
    """A condition that failed; see `admission.py`."""

    @property
    def ticket(self) -> Ticket:
        """Who is to be told."""
        ...

    @property
    def tail(self) -> asyncio.Future[Offset]:
        """The round that it waits for; cancelled if nobody is to be told any more."""
        ...


class Ticket(Protocol):
    """Who waits for a batch. One of these is called, once."""

    def committed(self, batch: InFlight | Remembered) -> None:
        """The batch is on a write quorum."""
        ...

    def failed(self, error: SharedLogError) -> None:
        """The batch ended with this error."""
        ...

    def dropped(self) -> None:
        """The batch is not in the log and never will be, for the log has moved without it."""
        ...


class MovedOn(SharedLogError):
    """The loglet is over: ask again who orders the log. Never leaves this package."""

    outcome = "definite"
    advice = "nothing: it never leaves the sequencer"


class FutureTicket:
    """A caller that waits for one batch."""

    __slots__ = ("_future",)

    def __init__(self, future: asyncio.Future[InFlight | Remembered]) -> None:
        self._future = future

    def committed(self, batch: InFlight | Remembered) -> None:
        """See `Ticket`."""
        if not self._future.done():
            self._future.set_result(batch)

    def failed(self, error: SharedLogError) -> None:
        """See `Ticket`."""
        if not self._future.done():
            self._future.set_exception(error)

    def dropped(self) -> None:
        """See `Ticket`."""
        self.failed(MovedOn("the log was moved before the append was admitted"))


@dataclass(slots=True)
class Timed:
    """A ticket and when its batch was admitted, monotonic seconds."""

    ticket: Ticket
    admitted_s: float


@dataclass(slots=True, eq=False)
class ActiveLoglet:
    """A loglet that this process orders."""

    name: str
    segment: Segment
    core: LogletSequencer
    rounds: FindTailRounds
    producers: ProducerTable
    links: Sequence[ReplicaLink] = ()  # one for each of the nodeset
    sessions: dict[AppendSession, None] = field(default_factory=dict)  # in the order of opening
    state: LogState | None = None  # not known yet, and nothing is admitted
    # Replicas that refused a store: not tried again before a pause is over.
    paused: set[int] = field(default_factory=set)
    # By the first offset of a batch in flight: those who sent it again.
    repeated: dict[Offset, list[Ticket]] = field(default_factory=dict)
    # Conditions that failed, and are not told yet.
    refusals: dict[Refusal, None] = field(default_factory=dict)
    # Set while nothing may be admitted: the log's state is not known yet; or it is `held`, since a
    # move was announced, or the loglet has ended and the chain is not known to have moved. Opened
    # by either news.
    gate: asyncio.Future[None] | None = None
    held: bool = False
    stateless: str = ""  # why the log's state could not be had so far
    gate_timer: asyncio.TimerHandle | None = None
    progress: asyncio.Future[None] | None = None  # somebody waits until less is in flight
    committed_records: int = 0  # by this process
    committed_bytes: int = 0
    left: bool = False  # the chain has moved on
    search_places: asyncio.Semaphore = field(
        default_factory=lambda: asyncio.Semaphore(SEARCHES_PER_LOG_MAX)
    )
    # What `watch.py` keeps.
    watched: bool = False
    traffic_s: float = 0.0  # of the last batch that was admitted, monotonic
    advanced_s: float = 0.0  # when the committed tail last moved
    out_since_s: dict[int, float] = field(default_factory=dict)  # replicas out of step

    @property
    def loglet(self) -> LogletId:
        """Its id."""
        return self.core.loglet

    @property
    def oldest_admitted_s(self) -> float:
        """When the oldest batch in flight was admitted, monotonic; 0 if there is none."""
        oldest = self.core.oldest
        if oldest is None:
            return 0.0
        assert isinstance(oldest.ticket, Timed)
        return oldest.ticket.admitted_s

    def remove(self, session: AppendSession) -> None:
        """The session is over. Nobody waits any more for what it had sent again."""
        self.sessions.pop(session, None)
        for first, tickets in list(self.repeated.items()):
            left = [it for it in tickets if not is_of(it, session)]
            if left:
                self.repeated[first] = left
            else:
                del self.repeated[first]

    def forget_repeated(self, first: Offset, ticket: Ticket) -> None:
        """One that waits for the batch at `first` is to be told nothing any more."""
        left = [it for it in self.repeated.get(first, ()) if it is not ticket]
        if left:
            self.repeated[first] = left
        else:
            self.repeated.pop(first, None)

    @property
    def record_bytes(self) -> float | None:
        """Mean size of the records that this process has committed; None if there are none."""
        return self.committed_bytes / self.committed_records if self.committed_records else None

    def lagging_on(self) -> list[NodeId]:
        """Nodes of the replicas that lag; see `SequencerCore.lagging`."""
        return [self.links[replica].replica.node_id for replica in self.core.lagging()]

    @property
    def known_state(self) -> LogState:
        """The log's state, behind the gate."""
        assert self.state is not None, "nothing is admitted before the state is known"
        return self.state

    def await_state(self) -> None:
        """Admit nothing before `on_state`."""
        assert self.state is None
        self.gate = asyncio.get_running_loop().create_future()

    def on_state(self, state: LogState) -> None:
        """The log's state is known: admit, unless it is held for another reason."""
        self.state = state
        self.core.last_timestamp_ms = max(self.core.last_timestamp_ms, state.last_ms)
        if not self.held:
            self._let_in()

    def close_gate(self) -> None:
        """Admit nothing from now on."""
        self.held = True
        if self.gate is None:
            self.gate = asyncio.get_running_loop().create_future()

    def open_gate(self) -> None:
        """Let those who wait look again; not before the state is known, if it will ever be."""
        self.held = False
        self.stop_gate_timer()
        if self.state is not None or self.left:
            self._let_in()

    def _let_in(self) -> None:
        gate, self.gate = self.gate, None
        if gate is not None and not gate.done():
            gate.set_result(None)

    def stop_gate_timer(self) -> None:
        """Nothing happens by itself any more."""
        if self.gate_timer is not None:
            self.gate_timer.cancel()
            self.gate_timer = None

    async def wait_progress(self) -> None:
        """Until less is in flight than now. **Cancellation:** safe."""
        if self.progress is None:
            self.progress = asyncio.get_running_loop().create_future()
        await asyncio.shield(self.progress)

    def tell_progress(self) -> None:
        """Less is in flight."""
        progress, self.progress = self.progress, None
        if progress is not None and not progress.done():
            progress.set_result(None)


def is_of(ticket: Ticket, session: AppendSession) -> bool:
    """The session waits for it."""
    return isinstance(ticket, SessionSlot) and ticket.session is session
