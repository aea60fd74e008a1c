"""A request on its way through the log server's queue, and how its answer is let out."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from loglet.answers import Answers
from loglet.group import Answer, CallAnswer, Request
from loglet.messages import StoreRequest, StoreResponse
from sharedlog.errors import SharedLogError


@dataclass(slots=True)
class Queued:
    """A request that waits for the writer, and where its answer goes."""

    request: Request
    size: int
    to: Answers | asyncio.Future[CallAnswer]


def release(queued: Queued, answer: Answer) -> None:
    """Let an answer out. Nobody may be waiting any more."""
    to = queued.to
    if isinstance(to, Answers):
        assert isinstance(answer, StoreResponse | SharedLogError)
        if isinstance(answer, SharedLogError) or _says_something(queued.request, answer):
            to.put(answer)
        else:
            to.skip()
    elif not to.done():
        if isinstance(answer, SharedLogError):
            to.set_exception(answer)
        else:
            assert not isinstance(answer, StoreResponse)
            to.set_result(answer)


def _says_something(request: Request, response: StoreResponse) -> bool:
    """A request that only told a committed tail needs no answer; an empty one is a greeting."""
    if response.stored or response.refused or response.confirmed:
        return True
    return isinstance(request, StoreRequest) and not request.committed
