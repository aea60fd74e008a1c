"""Blocking objects in front of asyncio ones, whose methods are made from theirs, a line for each.

    class Log(Facade[aio.Log]):
        tail = blocking(aio.Log.tail)                        # a coroutine: wait for it
        appender = direct(aio.Log.appender, into=_appender)  # no coroutine: call it on the loop
        read_batches = iterating(aio.Log.read_batches)       # an async generator: read ahead of it
        read = iterating_flat(aio.Log.read, aio.Log.read_batches)

Names, parameters, types and what is raised are those of the asyncio client. `into` makes a facade
of what comes back.

What is given crosses to the loop as it is, but for what would run the caller's own code there: an
iterable is read first, in the caller's thread, and a reader's callback is called by the reader.
"""

from __future__ import annotations

import functools
from collections.abc import (
    AsyncGenerator,
    Callable,
    Coroutine,
    Generator,
    Iterable,
    Mapping,
    Sequence,
)
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, overload

from sharedlog.sync.bridge import Bridge
from sharedlog.sync.read_ahead import ReadAhead

P = ParamSpec("P")
Inner = TypeVar("Inner")
Answer = TypeVar("Answer")
Item = TypeVar("Item")
Made = TypeVar("Made")
Front = TypeVar("Front", bound="Facade[Any]")


class Facade(Generic[Inner]):
    """A blocking object: the asyncio one that does the work, and the way to it."""

    def __init__(self, bridge: Bridge, inner: Inner) -> None:
        self._bridge = bridge
        self._inner = inner

    def __repr__(self) -> str:
        return f"<sync {repr(self._inner).strip('<>')}>"


@overload
def blocking(
    method: Callable[Concatenate[Inner, P], Coroutine[Any, Any, Answer]],
) -> Callable[Concatenate[Facade[Inner], P], Answer]: ...


@overload
def blocking(
    method: Callable[Concatenate[Inner, P], Coroutine[Any, Any, Answer]],
    into: Callable[[Front, Answer], Made],
) -> Callable[Concatenate[Front, P], Made]: ...


def blocking(method: Any, into: Any = None) -> Any:
    """A method that waits for a coroutine."""

    @_like(method)
    def call(self: Facade[Any], /, *args: Any, **kwargs: Any) -> Any:
        given, named = _read_here(args, kwargs)
        answer = self._bridge.run(method, self._inner, *given, **named)
        return answer if into is None else into(self, answer)

    return call


@overload
def direct(
    method: Callable[Concatenate[Inner, P], Answer],
) -> Callable[Concatenate[Facade[Inner], P], Answer]: ...


@overload
def direct(
    method: Callable[Concatenate[Inner, P], Answer],
    into: Callable[[Front, Answer], Made],
) -> Callable[Concatenate[Front, P], Made]: ...


def direct(method: Any, into: Any = None) -> Any:
    """A method of something that does not wait, but belongs to the loop."""

    async def on_loop(*args: Any, **kwargs: Any) -> Any:
        return method(*args, **kwargs)

    @_like(method)
    def call(self: Facade[Any], /, *args: Any, **kwargs: Any) -> Any:
        given, named = _read_here(args, kwargs)
        answer = self._bridge.run(on_loop, self._inner, *given, **named)
        return answer if into is None else into(self, answer)

    return call


def iterating(
    method: Callable[Concatenate[Inner, P], AsyncGenerator[Item, None]],
) -> Callable[Concatenate[Facade[Inner], P], Generator[Item, None, None]]:
    """A generator of what an async generator yields."""

    @_like(method)
    def iterate(
        self: Facade[Inner], /, *args: P.args, **kwargs: P.kwargs
    ) -> Generator[Item, None, None]:
        given, named = _read_here(args, kwargs)

        def make(ahead: ReadAhead[Item]) -> AsyncGenerator[Item, None]:
            told = {
                name: ahead.relayed(value) if callable(value) else value
                for name, value in named.items()
            }
            return method(self._inner, *given, **told)  # type: ignore[arg-type]  # as they came

        yield from self._bridge.iterate(make)

    return iterate


def iterating_flat(
    method: Callable[Concatenate[Inner, P], AsyncGenerator[Item, None]],
    lists: Callable[Concatenate[Inner, P], AsyncGenerator[list[Item], None]],
) -> Callable[Concatenate[Facade[Inner], P], Generator[Item, None, None]]:
    """`iterating(method)`, where `lists` yields the same in lists: one crosses as a whole."""
    iterate_lists = iterating(lists)

    @_like(method)
    def iterate(
        self: Facade[Inner], /, *args: P.args, **kwargs: P.kwargs
    ) -> Generator[Item, None, None]:
        for items in iterate_lists(self, *args, **kwargs):
            yield from items

    return iterate


def _like(method: Callable[..., object]) -> Callable[[Callable[P, Answer]], Callable[P, Answer]]:
    """The name, the signature and the words of the asyncio method."""

    def adopt(call: Callable[P, Answer]) -> Callable[P, Answer]:
        functools.update_wrapper(call, method)
        call.__doc__ = (method.__doc__ or "").replace("**Cancellation:**", "**An interrupt:**")
        return call

    return adopt


def _read_here(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """What is given, with iterables that would run the caller's code read to their ends."""
    given = [_read(value) for value in args]
    return given, {name: _read(value) for name, value in kwargs.items()}


def _read(value: Any) -> Any:
    if isinstance(value, Iterable) and not isinstance(value, Sequence | Mapping):
        return list(value)
    return value
