"""The calls about cursors: each one, whatever the cursor's owner is doing.

`cursor.py` has the cursor that an owner reads by.
"""

from __future__ import annotations

from typing import Final

from sharedlog.connection import Connection
from sharedlog.errors import CursorLost, CursorNotFound
from sharedlog.rpc.methods import DELETE_CURSOR, GET_CURSOR, LIST_CURSORS, OPEN_CURSOR
from sharedlog.v1 import cursor_pb2

_RACES_MAX: Final = 20


class Cursors:
    """The cursors of one log. Made by `Log.cursors`."""

    def __init__(self, connection: Connection, log_name: str) -> None:
        self._connection = connection
        self._log_name = log_name

    async def list(self) -> list[cursor_pb2.CursorState]:
        """All of them, in order of their names.

        Raises:
            LogNotFound, MetadataUnavailable, Unreachable.
        """
        request = cursor_pb2.ListCursorsRequest(log=self._log_name)
        return [*(await self._connection.call(LIST_CURSORS, request)).cursors]

    async def get(self, name: str) -> cursor_pb2.CursorState:
        """One of them as it is now.

        Raises:
            CursorNotFound, LogNotFound, MetadataUnavailable, Unreachable.
        """
        request = cursor_pb2.GetCursorRequest(log=self._log_name, name=name)
        return (await self._connection.call(GET_CURSOR, request)).cursor

    async def take(
        self,
        name: str,
        *,
        owner: str,
        owner_name: str = "",
        start: int = 0,
        position: int | None = None,
        must_exist: bool = False,
    ) -> cursor_pb2.CursorState:
        """Take a cursor over, or make it at `start`; `position` sets where it is, whatever it was.

        `owner` is a random id. Whoever had the cursor has it no more.

        Raises:
            CursorLost: it changed its owner all the while. CursorNotFound: only with `must_exist`.
            InvalidArgument, LogNotFound. MetadataUnavailable, Unreachable: it may or may not be
            done.

        **Cancellation:** it may or may not be done.
        """
        for races_left in reversed(range(_RACES_MAX)):
            try:
                epoch = (await self.get(name)).epoch
            except CursorNotFound:
                if must_exist:
                    raise
                epoch = 0
            request = cursor_pb2.OpenCursorRequest(
                log=self._log_name,
                name=name,
                owner=owner,
                owner_name=owner_name,
                expected_epoch=epoch,
                start=start,
                position=position,
            )
            try:
                return (await self._connection.call(OPEN_CURSOR, request)).cursor
            except CursorLost:
                if not races_left:
                    raise
        raise AssertionError("the last race returns or raises")

    async def seek(self, name: str, position: int) -> cursor_pb2.CursorState:
        """Set where a cursor is, backwards too; whoever has it finds out at its next commit.

        Raises what `take` raises, and `CursorNotFound`.
        """
        return await self.take(
            name,
            owner=new_owner_id(self._connection),
            owner_name="seek",
            position=position,
            must_exist=True,
        )

    async def delete(self, name: str) -> bool:
        """Delete a cursor; whoever has it loses it. Returns whether there was one.

        Raises:
            LogNotFound. MetadataUnavailable, Unreachable: it may or may not be done.
        """
        request = cursor_pb2.DeleteCursorRequest(log=self._log_name, name=name)
        return (await self._connection.call(DELETE_CURSOR, request)).deleted


def new_owner_id(connection: Connection) -> str:
    """Random: no two openings have the same."""
    return f"{connection.rng.getrandbits(128):032x}"
