"""Appends under way, as threads see them.

There can be hundreds of thousands of them at a time, so a `PendingAppend` is small, and little is
done for each: it holds its record until that has been handed over to the asyncio appender, and from
then on the batch that the record is in.
"""

from __future__ import annotations

from typing import Protocol

from sharedlog import pending as aio
from sharedlog.batch import Headers
from sharedlog.errors import SharedLogError
from sharedlog.ids import Offset
from sharedlog.pending import copy_error
from sharedlog.sync.facade import Facade, blocking

Extras = tuple[bytes, bytes | None, Headers | None, float | None]
"""A record that is more than its value: key, headers, and a time limit of its own."""


class Waits(Protocol):
    """The appender of a pending append."""

    def wait_for(self, pending: PendingAppend, timeout_s: float | None) -> None:
        """Until its outcome is known.

        Raises:
            TimeoutError. AppendIndefinite: it never will be.
        """
        ...


class PendingAppend:
    """The offset that one record will have: wait for its `result`, or ask later.

    An outcome that nobody asks for is not lost: `Appender.flush` and `close` raise the first
    failure that was not seen.
    """

    # `index` and `state` are set by the loop, in this order: who sees the batch sees both.
    __slots__ = ("index", "owner", "state")

    def __init__(self, owner: Waits, record: bytes | Extras) -> None:
        self.owner = owner
        self.state: bytes | Extras | aio.AppendBatch | SharedLogError = record
        self.index: int  # in the batch

    def done(self) -> bool:
        """The outcome is known."""
        state = self.state
        if isinstance(state, aio.AppendBatch):
            return state.done
        return isinstance(state, SharedLogError)

    def result(self, timeout_s: float | None = None) -> Offset:
        """The record's offset, once it is known; waits for that, at most `timeout_s`.

        Raises:
            AppendIndefinite: the record may or may not be in the log.
            SharedLogError: any other: the record is not in the log and never will be.
            TimeoutError: the wait is over, and the append still under way.

        **An interrupt:** stops the wait, not the write.
        """
        outcome = self._outcome(timeout_s)
        if isinstance(outcome, SharedLogError):
            raise copy_error(outcome)
        return Offset(outcome.first_offset() + self.index)

    def exception(self, timeout_s: float | None = None) -> SharedLogError | None:
        """The failure, or None; waits as `result` does."""
        outcome = self._outcome(timeout_s)
        if isinstance(outcome, SharedLogError):
            return copy_error(outcome)
        outcome.retrieved = True
        return None if outcome.error is None else copy_error(outcome.error)

    def _outcome(self, timeout_s: float | None) -> aio.AppendBatch | SharedLogError:
        if not self.done():
            self.owner.wait_for(self, timeout_s)
        assert isinstance(self.state, aio.AppendBatch | SharedLogError)
        return self.state

    def __repr__(self) -> str:
        state = self.state
        if isinstance(state, aio.AppendBatch):
            return f"<sync {repr(aio.PendingAppend(state, self.index)).strip('<>')}>"
        told = type(state).__name__ if isinstance(state, SharedLogError) else "under way"
        return f"<sync PendingAppend: {told}>"


class AppendBatch(Facade[aio.AppendBatch]):
    """A batch on its way: what `Appender.append_batch` hands back."""

    wait = blocking(aio.AppendBatch.wait)

    @property
    def done(self) -> bool:
        """The outcome is known."""
        return self._inner.done

    def first_offset(self) -> Offset:
        """Offset of the first record, once `done`; raises the batch's error."""
        return self._inner.first_offset()
