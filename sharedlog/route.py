"""Where a log is: its description, kept and fetched again when it turned out to be old.

Everything here is a hint. A node that is not what the description says answers so, and the client
fetches a new one; nothing is ever decided by its age.
"""

from __future__ import annotations

import asyncio

from sharedlog.connection import Connection
from sharedlog.rpc.methods import DESCRIBE_LOG
from sharedlog.v1 import log_pb2, types_pb2


class Route:
    """The route to one log, shared by its appenders and readers."""

    def __init__(self, connection: Connection, name: str) -> None:
        self.name = name
        self._connection = connection
        self._description: types_pb2.LogDescription | None = None
        self._fetching = asyncio.Lock()

    async def describe(self, refresh: bool = False) -> types_pb2.LogDescription:
        """The log's description; `refresh` fetches a new one, shared by all who ask meanwhile.

        Raises:
            LogNotFound: there is no such log.
            SharedLogError: no node could tell.
        """
        seen = self._description
        if seen is not None and not refresh:
            return seen
        async with self._fetching:
            if self._description is not None and self._description is not seen:
                return self._description
            request = log_pb2.DescribeLogRequest(name=self.name)
            response = await self._connection.call(DESCRIBE_LOG, request)
            self.learn(response.log)
            return response.log

    def learn(self, description: types_pb2.LogDescription) -> None:
        """Take a description that came with another answer."""
        self._description = description
        self._connection.learn(node.address for node in description.nodes if node.address)

    async def sequencer_address(self, *, refresh: bool = False, named: str | None = None) -> str:
        """Address of the node that orders the log, or of `named` if a node said that it does.

        Empty if nobody knows the address.
        """
        description = await self.describe(refresh)
        node_id = named or description.chain[-1].sequencer.node_id
        found = (node.address for node in description.nodes if node.node_id == node_id)
        return next(found, "")
