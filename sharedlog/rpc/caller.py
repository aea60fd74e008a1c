"""Who made the call that is being served: for logs, never for decisions."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar

_CALLER: ContextVar[Callable[[], str] | None] = ContextVar("caller", default=None)


def caller() -> str:
    """The caller's address as the transport has it, e.g. "ipv4:10.0.0.7:53100".

    "" outside of a handler, and for calls that never left the process.
    """
    ask = _CALLER.get()
    return "" if ask is None else ask()


def set_caller(ask: Callable[[], str]) -> None:
    """For transports, in the task that runs a handler: how to find out, should anybody ask."""
    _CALLER.set(ask)
