"""How a batch fails: what is known of it, said as an error. Pure."""

from __future__ import annotations

from sharedlog.errors import (
    AppendIndefinite,
    ConditionFailed,
    InvalidArgument,
    LogUnavailable,
    NotAppended,
    NotSequencer,
    ProducerFenced,
    SharedLogError,
    Unrepairable,
)
from sharedlog.pending import AppendBatch


def unrepeated() -> AppendIndefinite:
    """Of a batch whose session was lost, and that is not sent again."""
    return AppendIndefinite("its session was lost, and without exactly_once it is not sent again")


def is_refusal(error: SharedLogError) -> bool:
    """The batch was not taken, and the same batch may be taken later."""
    may_be_taken = error.retryable or isinstance(error, LogUnavailable | ProducerFenced)
    return may_be_taken and error.outcome == "definite"


def honest(batch: AppendBatch, error: SharedLogError) -> SharedLogError:
    """How a batch fails that won't be sent again: an earlier session may have got it in."""
    if not batch.unresolved or isinstance(error, AppendIndefinite | ConditionFailed):
        return error
    unknown = AppendIndefinite(
        f"it was sent and not answered, and could not be cleared up: {error}"
    )
    unknown.__cause__ = error
    return unknown


def unanswered(batch: AppendBatch, why: SharedLogError | None) -> AppendIndefinite:
    """How a batch fails that was sent, and ran out of time; `why`: what its session met last."""
    reason = "" if why is None else f": {why}"
    error = AppendIndefinite(f"no answer within {batch.timeout_s:g} s{reason}")
    error.__cause__ = why
    return error


def never_sent(batch: AppendBatch, why: SharedLogError | None) -> SharedLogError:
    """How a batch fails that no session had when it ran out of time; `why` it had none."""
    message = f"it was not taken within {batch.timeout_s:g} s, so it is not in the log"
    if why is None:
        return NotAppended(f"{message}: the log is slower than the appender")
    error: SharedLogError
    if isinstance(why, Unrepairable):
        error = Unrepairable(f"{message}: {why}", segment_index=why.segment_index)
    elif isinstance(why, LogUnavailable | NotSequencer):
        error = LogUnavailable(f"{message}: {why}")
    else:
        error = NotAppended(f"{message}: {why}")
    error.__cause__ = why
    return error


def behind(failed: SharedLogError) -> InvalidArgument:
    """How what comes behind a failure of a named producer fails."""
    error = InvalidArgument(
        "the appender takes no more: a record before failed, and those of a named producer have no "
        f"gaps; a new appender goes on where they end: {failed}"
    )
    error.__cause__ = failed
    return error
