"""An append under way: what `Appender.append` hands back.

There can be hundreds of thousands of them at a time, so a `PendingAppend` is two pointers: the
outcome is kept once, in the batch. Only a caller that really waits gets a future of its own; were
it shared, one caller's cancellation would cancel it for all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Any, Final, NamedTuple

from sharedlog.batch import BatchBuilder
from sharedlog.control import check_fencing_token
from sharedlog.errors import InvalidArgument, SharedLogError
from sharedlog.ids import Offset


class Bound(NamedTuple):
    """No batch that is sent from then on lies below `offset`, unless a loss is accepted later.

    Of two that hold, the greater one says more: told in a later segment, or higher.
    """

    segment_index: int  # of the segment that was open when it was told
    offset: Offset


NO_BOUND: Final = Bound(0, Offset(0))


class Conditions(NamedTuple):
    """What a batch depends on when it is admitted, and what it sets; see `AppendSessionRequest`."""

    match_offset: int | None = None
    fencing_token: str | None = None
    set_token: str | None = None  # a control batch is written instead of the batch


UNCONDITIONAL: Final = Conditions()
_OFFSET_MAX: Final = 2**63 - 1


def checked_conditions(
    match_offset: int | None, fencing_token: str | None, set_token: str | None
) -> Conditions:
    """What a caller gave: found later, it would take down all that is sent beside it.

    Raises:
        InvalidArgument: says which can't be.
    """
    if match_offset is None and fencing_token is None and set_token is None:
        return UNCONDITIONAL
    if match_offset is not None:
        if not isinstance(match_offset, int):
            raise InvalidArgument(f"match_offset is an int, not {type(match_offset).__name__}")
        if not 0 <= match_offset <= _OFFSET_MAX:
            raise InvalidArgument(f"match_offset is an offset, and {match_offset} is none")
    for token in (fencing_token, set_token):
        if token is not None:
            check_fencing_token(token)
    return Conditions(match_offset, fencing_token, set_token)


class AppendBatch:
    """A batch on its way. Its outcome is set once, for all its records."""

    __slots__ = (
        "builder",
        "conditions",
        "count",
        "data",
        "deadline_s",
        "done",
        "error",
        "first",
        "floor",
        "opened_s",
        "retrieved",
        "sequence",
        "size",
        "takes_slot",
        "timeout_s",
        "unresolved",
        "waiters",
    )

    def __init__(
        self,
        builder: BatchBuilder,
        *,
        opened_s: float,
        timeout_s: float,
        conditions: Conditions = UNCONDITIONAL,
    ) -> None:
        self.builder = builder
        self.conditions = conditions
        self.opened_s = opened_s
        self.timeout_s = timeout_s
        self.deadline_s = opened_s + timeout_s
        self.data: bytes = b""  # as it is sent; let go meanwhile if the builder can make it again
        self.count = 0  # records; known once it is encoded
        self.sequence = (
            -1
        )  # of its first record; given when it is sent for the first time, and kept
        # Some session had it and ended without saying what became of it: it may be in the log, but
        # not below `floor`.
        self.unresolved = False
        self.floor = NO_BOUND
        self.size = 0  # bytes, as they are counted while the batch waits or is in flight
        self.takes_slot = False  # it left before it was full
        self.done = False
        self.first = Offset(0)  # meaningful once done without error
        self.error: SharedLogError | None = None
        self.retrieved = False  # somebody has seen the error
        self.waiters: list[asyncio.Future[None]] = []

    def finish(self, first: Offset, error: SharedLogError | None) -> None:
        """Set the outcome and wake who waits for it. The records are let go."""
        assert not self.done
        self.done = True
        self.first = first
        self.error = error
        self.builder = _NOTHING
        self.data = b""
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_result(None)
        self.waiters.clear()

    async def wait(self) -> None:
        """Wait for the outcome, whichever. **Cancellation:** stops the wait, not the write."""
        if not self.done:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self.waiters.append(waiter)
            await waiter

    def first_offset(self) -> Offset:
        """Offset of the first record; raises the batch's error, a copy for each caller."""
        if self.error is not None:
            self.retrieved = True
            raise copy_error(self.error)
        return self.first


_NOTHING = BatchBuilder()


def copy_error(error: SharedLogError) -> SharedLogError:
    """The same error as an object of its own: each caller that raises it has its traceback."""
    copied = type(error).__new__(type(error))
    copied.args = error.args
    vars(copied).update(vars(error))
    copied.__cause__ = error.__cause__
    return copied


class PendingAppend:
    """The offset that one record will have. `await` it, or ask it later.

    An outcome that nobody asks for is not lost: `Appender.flush` and `close` raise the first
    failure that was not seen.
    """

    __slots__ = ("_batch", "_index")

    def __init__(self, batch: AppendBatch, index: int) -> None:
        self._batch = batch
        self._index = index

    @property
    def place(self) -> tuple[AppendBatch, int]:
        """Its batch, and its index there."""
        return self._batch, self._index

    def done(self) -> bool:
        """The outcome is known."""
        return self._batch.done

    def result(self) -> Offset:
        """The record's offset.

        Raises:
            AppendIndefinite: the record may or may not be in the log.
            SharedLogError: any other: the record is not in the log and never will be.
            asyncio.InvalidStateError: the outcome is not known yet.
        """
        if not self._batch.done:
            raise asyncio.InvalidStateError("the append is under way")
        return Offset(self._batch.first_offset() + self._index)

    def exception(self) -> SharedLogError | None:
        """The failure, or None. `asyncio.InvalidStateError` while the append is under way."""
        batch = self._batch
        if not batch.done:
            raise asyncio.InvalidStateError("the append is under way")
        batch.retrieved = True
        return None if batch.error is None else copy_error(batch.error)

    def __await__(self) -> Generator[Any, None, Offset]:
        """Wait for the offset. **Cancellation:** stops the wait, not the write."""
        if not self._batch.done:
            yield from self._batch.wait().__await__()
        return self.result()

    def __repr__(self) -> str:
        batch = self._batch
        if not batch.done:
            return f"<PendingAppend {self._index}: under way>"
        if batch.error is not None:
            return f"<PendingAppend {self._index}: {type(batch.error).__name__}>"
        return f"<PendingAppend {self._index}: offset {batch.first + self._index}>"
