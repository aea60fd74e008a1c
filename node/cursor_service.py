"""Cursors at the front door (CursorService): any node answers, straight from the metadata store."""

from __future__ import annotations

from metadata.core import check_log_name
from metadata.cursor_registry import (
    commit_cursor,
    delete_cursor,
    fetch_cursor,
    list_cursors,
    take_cursor,
)
from metadata.cursors import Move, Opening, check_cursor_name
from metadata.records import CursorRecord
from metadata.store import MetadataStore
from metadata.view import ClusterView
from node.freshness import fresh_log
from sharedlog.clock import Clock
from sharedlog.ids import LogId, Offset
from sharedlog.rpc import methods
from sharedlog.rpc.transport import Server
from sharedlog.v1 import cursor_pb2 as pb


class CursorService:
    """Serves CursorService."""

    def __init__(self, *, store: MetadataStore, view: ClusterView, clock: Clock) -> None:
        self._store = store
        self._view = view
        self._clock = clock

    def register(self, server: Server) -> None:
        """Serve every method of CursorService on `server`."""
        server.add_call(methods.OPEN_CURSOR, self.open_cursor)
        server.add_call(methods.COMMIT_CURSOR, self.commit_cursor)
        server.add_call(methods.GET_CURSOR, self.get_cursor)
        server.add_call(methods.LIST_CURSORS, self.list_cursors)
        server.add_call(methods.DELETE_CURSOR, self.delete_cursor)

    async def open_cursor(self, request: pb.OpenCursorRequest) -> pb.OpenCursorResponse:
        """Take a cursor over, or make it.

        Raises:
            LogNotFound, CursorLost, InvalidArgument.
            MetadataUnavailable: it may or may not be done.
        """
        opening = Opening(
            log_id=await self._log_id(request.log),
            name=request.name,
            owner=request.owner,
            owner_name=request.owner_name,
            expected_epoch=request.expected_epoch,
            start=Offset(request.start),
            position=Offset(request.position) if request.HasField("position") else None,
        )
        found = await take_cursor(self._store, opening, now_ms=self._clock.now_ms())
        return pb.OpenCursorResponse(cursor=_to_proto(found))

    async def commit_cursor(self, request: pb.CommitCursorRequest) -> pb.CommitCursorResponse:
        """Move a cursor, for its owner.

        Raises:
            CursorLost, InvalidArgument. MetadataUnavailable: it may or may not be done.
        """
        move = Move(
            name=request.name,
            owner=request.owner,
            epoch=request.epoch,
            change=request.change,
            position=Offset(request.position),
            may_run_back=request.may_run_back,
        )
        log_id, now_ms = LogId(request.log_id), self._clock.now_ms()
        found = await commit_cursor(self._store, log_id, move, now_ms=now_ms)
        return pb.CommitCursorResponse(cursor=_to_proto(found))

    async def get_cursor(self, request: pb.GetCursorRequest) -> pb.GetCursorResponse:
        """One cursor as it is now.

        Raises:
            LogNotFound, CursorNotFound, MetadataUnavailable.
        """
        check_cursor_name(request.name)
        log_id = await self._log_id(request.log)
        found = await fetch_cursor(self._store, log_id, request.name)
        return pb.GetCursorResponse(cursor=_to_proto(found))

    async def list_cursors(self, request: pb.ListCursorsRequest) -> pb.ListCursorsResponse:
        """The cursors of one log.

        Raises:
            LogNotFound, MetadataUnavailable.
        """
        found = await list_cursors(self._store, await self._log_id(request.log))
        return pb.ListCursorsResponse(cursors=map(_to_proto, found))

    async def delete_cursor(self, request: pb.DeleteCursorRequest) -> pb.DeleteCursorResponse:
        """Delete a cursor, whoever owns it.

        Raises:
            LogNotFound. MetadataUnavailable: it may or may not be done.
        """
        check_cursor_name(request.name)
        log_id = await self._log_id(request.log)
        return pb.DeleteCursorResponse(
            deleted=await delete_cursor(self._store, log_id, request.name)
        )

    async def _log_id(self, name: str) -> LogId:
        check_log_name(name)
        record, _ = await fresh_log(self._view, name)
        return record.log_id


def _to_proto(cursor: CursorRecord) -> pb.CursorState:
    return pb.CursorState(
        name=cursor.name,
        position=cursor.position,
        epoch=cursor.epoch,
        owner_name=cursor.owner_name,
        changed_ms=cursor.changed_ms,
        log_id=cursor.log_id,
    )
