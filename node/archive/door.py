"""One door for reads of replicas: this node's log server, and the archive as a replica of all.

Which of them is meant the request says by its storage_id.
"""

from __future__ import annotations

from loglet.reads import ReadService, ReadStream
from node.archive.reads import ArchiveReads
from sharedlog.errors import WrongStorage
from sharedlog.ids import ARCHIVE_PREFIX
from sharedlog.rpc.methods import FIND_TIME, READ_LOGLET
from sharedlog.rpc.transport import Server
from sharedlog.v1.log_server_pb2 import FindTimeRequest, FindTimeResponse


class ReplicaReads:
    """See the module's docstring. Either may be missing."""

    def __init__(self, held: ReadService | None, archived: ArchiveReads | None) -> None:
        self._held = held
        self._archived = archived

    def register(self, server: Server) -> None:
        """Serve ReadLoglet and FindTime on `server`."""
        server.add_stream(READ_LOGLET, self.serve)
        server.add_call(FIND_TIME, self.find_time)

    async def serve(self, stream: ReadStream) -> None:
        """Handler of ReadLoglet. **Cancellation:** ends the stream.

        Raises:
            WrongStorage: what is meant is not here. What `ReadService.serve`, `ArchiveReads.serve`
            raise.
        """
        request = await stream.receive()
        if request is not None:
            await self._meant(request.storage_id).serve(stream, request)

    async def find_time(self, request: FindTimeRequest) -> FindTimeResponse:
        """Handler of FindTime. Raises as `serve`. **Cancellation:** ends the wait."""
        return await self._meant(request.storage_id).find_time(request)

    def _meant(self, storage_id: str) -> ReadService | ArchiveReads:
        if storage_id.startswith(ARCHIVE_PREFIX):
            if self._archived is None:
                raise WrongStorage("this node has no archive: set [archive] url on all nodes")
            return self._archived
        if self._held is None:
            raise WrongStorage("this node is no log server")
        return self._held
