"""The members of an etcd cluster: whom to ask, what their errors mean, and who we are to them.

One connection for each member, made when it is first needed. All calls and watches of a process go
to one member until it fails one, then to the next: any member answers everything, and one that is
slow to fail (paused, or cut off without a word) costs a time-out once and not each time. Processes
begin with different members.

Every request says that it wants a member that has a leader: one that is cut off from the others
says so at once then, and ends its watches, instead of waiting for what can't come.

A user's token is fetched when it is first needed, and again when etcd no longer takes it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Final
from zlib import crc32

import grpc

from metadata.config import EtcdConfig
from metadata.etcd_wire import AUTHENTICATE
from metadata.retrying import TRY_AGAIN
from sharedlog.errors import InvalidArgument, MetadataUnavailable, ProtocolError, SharedLogError
from sharedlog.limits import METADATA_KEY_BYTES_MAX, METADATA_VALUE_BYTES_MAX, MIB
from sharedlog.rpc.grpc_client import GrpcTransport, error_of_status
from sharedlog.rpc.transport import ClientStream, Method, Req, Resp, Transport
from sharedlog.v1 import etcd_pb2 as pb

SAFE_PAGE: Final = 32
"""So many entries fit into one answer, whatever their size."""

_ANSWER_BYTES_MAX: Final = 32 * MIB

assert SAFE_PAGE * (METADATA_VALUE_BYTES_MAX + METADATA_KEY_BYTES_MAX + 2048) < _ANSWER_BYTES_MAX

_OPTIONS: Final = {
    "grpc.max_receive_message_length": _ANSWER_BYTES_MAX,
    # etcd closes connections that send pings more often than every five seconds.
    "grpc.keepalive_time_ms": 6_000,
    "grpc.keepalive_timeout_ms": 3_000,
}
_NEEDS_LEADER: Final = ("hasleader", "true")
_ETCD_SAYS: Final = "etcdserver: "
_MAY_PASS: Final = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.UNAUTHENTICATED,
    # How etcd says that its own wait for the others took too long: "context deadline exceeded".
    grpc.StatusCode.UNKNOWN,
)
"""Of etcd's own errors, e.g. that there is no leader, or that a token has expired."""
COMPACTED: Final = "has been compacted"
"""In etcd's words: a revision was asked for that it has forgotten."""
_OF_TOKENS: Final = ("invalid auth token", "revision of auth store is old")


class EtcdMembers:
    """See the module's docstring. Has an end: `close`."""

    def __init__(self, addresses: Sequence[str], config: EtcdConfig, *, name: str) -> None:
        """`name` is this process's, and chooses the member that it begins with.

        Raises:
            InvalidArgument: a file that `config` names can't be read.
        """
        assert addresses
        self._addresses = tuple(addresses)
        self._at = crc32(name.encode()) % len(addresses)
        self._user = config.user
        self._password = _read(config.password_file).decode().rstrip("\r\n")
        self._token = ""
        self._logging_in = asyncio.Lock()
        self._transport: Transport = GrpcTransport(
            credentials=_credentials(config),
            options=_OPTIONS,
            metadata=self._metadata,
            error_of=self._error_of,
        )

    def __str__(self) -> str:
        return ",".join(self._addresses)

    async def call(self, method: Method[Req, Resp], request: Req, *, timeout_s: float) -> Resp:
        """One try, at the present member; after a failure the next one is the present one.

        Raises:
            MetadataUnavailable, Unreachable, DeadlineExceeded: it may pass; a change may have been
                made. ProtocolError: etcd refuses.
        """
        address = self._addresses[self._at]
        try:
            await self._log_in(address, timeout_s)
            return await self._transport.call(address, method, request, timeout_s=timeout_s)
        except TRY_AGAIN:
            self.leave(address)
            raise

    async def stream(
        self, method: Method[Req, Resp], *, timeout_s: float
    ) -> tuple[str, ClientStream[Req, Resp]]:
        """A stream to the present member, and which one that is. Raises what `call` raises."""
        address = self._addresses[self._at]
        try:
            await self._log_in(address, timeout_s)
        except TRY_AGAIN:
            self.leave(address)
            raise
        return address, self._transport.stream(address, method)

    def leave(self, address: str) -> None:
        """This member has failed: the next one is the present one, if it has not been left yet."""
        if self._addresses[self._at] == address:
            self._at = (self._at + 1) % len(self._addresses)

    def distrust_token(self) -> None:
        """Fetch another token before the next call."""
        self._token = ""

    async def close(self) -> None:
        """Close the connections. Idempotent."""
        await self._transport.close()

    async def _log_in(self, address: str, timeout_s: float) -> None:
        if not self._user or self._token:
            return
        async with self._logging_in:
            if self._token:
                return
            who = pb.EtcdAuthenticateRequest(name=self._user, password=self._password)
            answer = await self._transport.call(address, AUTHENTICATE, who, timeout_s=timeout_s)
            self._token = answer.token

    def _metadata(self) -> Sequence[tuple[str, str]]:
        return (_NEEDS_LEADER, ("token", self._token)) if self._token else (_NEEDS_LEADER,)

    def _error_of(self, address: str, status: grpc.StatusCode, details: str) -> SharedLogError:
        if not details.startswith(_ETCD_SAYS) and status is not grpc.StatusCode.UNKNOWN:
            if status is grpc.StatusCode.UNAVAILABLE:
                details = details.rpartition(": ")[2]  # of a whole chain of causes, the last
            return error_of_status(address, status, details)
        reason = details.removeprefix(_ETCD_SAYS)
        if any(words in reason for words in _OF_TOKENS):
            self.distrust_token()
        elif status not in _MAY_PASS and "too many requests" not in reason:
            return ProtocolError(f"{address} refuses: {reason}")
        return MetadataUnavailable(f"{address}: {reason}")


def _credentials(config: EtcdConfig) -> grpc.ChannelCredentials | None:
    if not config.uses_tls:
        return None
    return grpc.ssl_channel_credentials(
        root_certificates=_read(config.ca_file) or None,
        private_key=_read(config.key_file) or None,
        certificate_chain=_read(config.cert_file) or None,
    )


def _read(name: str) -> bytes:
    """A file of a few lines; nothing if it has no name."""
    try:
        return Path(name).read_bytes() if name else b""
    except OSError as error:
        raise InvalidArgument(f"can't read {name}: {error.strerror or error}") from error
