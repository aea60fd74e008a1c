"""An object store in S3, and in what speaks its protocol.

Small values, conditions, repetitions and differences between servers are `metadata/s3/values.py`'s.
What is here: objects that are written once, whole or in parts, and read in ranges.

**Absence.** A 404 without a body, the answer to HEAD, may be of the object or of the bucket, so it
is asked again in a way that tells them apart: nothing is said to be absent because a bucket is
gone.

**Memory.** An upload holds up to `multipart_bytes` before it is known whether it is one request or
several; then a part that is being sent, and the next, which is gathered meanwhile.

The library is loaded when the store is first used (`metadata/s3/client.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from random import Random
from typing import TYPE_CHECKING, Final, cast

from loglet.archive.config import ArchiveConfig
from loglet.archive.object_store import ARCHIVE, ObjectInfo, check_key
from loglet.archive.url import BucketUrl, check_prefix
from metadata.s3.ranges import Range
from metadata.s3.values import S3Values, body_of, checksum_header, ms_of
from sharedlog.clock import Clock
from sharedlog.errors import (
    ArchiveUnavailable,
    ArchiveUnsuitable,
    InvalidArgument,
    ObjectNotFound,
    SharedLogError,
)
from sharedlog.tasks import first_error

if TYPE_CHECKING:
    from types_aiobotocore_s3.client import S3Client
    from types_aiobotocore_s3.literals import StorageClassType
    from types_aiobotocore_s3.type_defs import (
        CompletedPartTypeDef,
        CreateMultipartUploadRequestTypeDef,
        UploadPartRequestTypeDef,
    )

PARTS_MAX: Final = 10_000
_ABORT_S: Final = 5.0
"""So long may it take to abort an upload in parts, when it has failed or was cancelled."""


class S3Store(S3Values):
    """An `ObjectStore`. `adapt` it, as the probe does, before it is written to by `swap`."""

    def __init__(
        self, url: BucketUrl, settings: ArchiveConfig, *, clock: Clock, rng: Random
    ) -> None:
        super().__init__(url, settings, ARCHIVE, clock=clock, rng=rng)
        self._archive = settings

    async def read(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        """See `ObjectStore.read`."""
        assert start >= 0
        assert end is None or start <= end
        if start == end:  # HTTP has no empty range
            if await self.stat(key) is None:
                raise ObjectNotFound(f"{self.url}: there is no object {key}", key=key)
            return b""
        return (await self._fetch(key, Range(start, end))).data

    async def read_tail(self, key: str, size: int) -> tuple[bytes, int]:
        """See `ObjectStore.read_tail`."""
        assert size > 0
        found = await self._fetch(key, Range(-size, None))
        return found.data, found.total

    async def stat(self, key: str) -> ObjectInfo | None:
        """See `ObjectStore.stat`."""
        full = self._full(key)
        doing = f"look for {key}"
        try:
            answer = await self._requests.repeated(
                doing, key, lambda client: client.head_object(Bucket=self._bucket, Key=full)
            )
        except ObjectNotFound:
            try:
                found = await self._fetch(key, Range(0, 1))
            except ObjectNotFound:
                return None
            return ObjectInfo(key, found.total, found.modified_ms)
        return ObjectInfo(key, answer["ContentLength"], ms_of(answer["LastModified"]))

    async def upload(self, key: str, parts: AsyncIterator[bytes]) -> int:
        """See `ObjectStore.upload`."""
        full = self._full(key)
        held = bytearray()
        async for piece in parts:
            held += piece
            if len(held) > self._archive.multipart_bytes:
                return await self._upload_in_parts(key, held, parts)
        data = bytes(held)
        del held
        request = self._put_request(full, data)
        if self._archive.storage_class:
            request["StorageClass"] = cast("StorageClassType", self._archive.storage_class)
        await self._requests.repeated(
            f"write {key}", key, lambda client: self._put(client, request, data)
        )
        return len(data)

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """See `ObjectStore.list`. A page is in memory."""
        check_prefix(prefix)
        token, last = "", ""
        while True:
            page = await self.list_page(prefix, token=token)
            if page.listed and page.listed[0].key <= last:
                raise ArchiveUnsuitable(f"{self.url}: its listing is not in the order of keys")
            for found in page.listed:
                yield ObjectInfo(found.key, found.size, found.modified_ms)
                last = found.key
            token = page.token
            if not token:
                return

    # Uploads in parts.

    async def _upload_in_parts(self, key: str, held: bytearray, parts: AsyncIterator[bytes]) -> int:
        """`held` was taken from `parts` already."""
        upload_id = await self._begin(key)
        try:
            async with asyncio.TaskGroup() as tasks:
                done, size = await self._send_parts(key, upload_id, held, parts, tasks)
            await self._complete(key, upload_id, done, size)
        except BaseExceptionGroup as errors:
            await self._abort(key, upload_id)
            raise first_error(errors) from errors
        except BaseException:
            await self._abort(key, upload_id)
            raise
        return size

    async def _send_parts(
        self,
        key: str,
        upload_id: str,
        held: bytearray,
        parts: AsyncIterator[bytes],
        tasks: asyncio.TaskGroup,
    ) -> tuple[Sequence[CompletedPartTypeDef], int]:
        """Send all; while a part is on its way the next is gathered. The size of all."""
        done: list[CompletedPartTypeDef] = []
        size, part_bytes = 0, self._archive.part_bytes
        sending: asyncio.Task[CompletedPartTypeDef] | None = None
        while True:
            while len(held) > part_bytes:
                data = bytes(memoryview(held)[:part_bytes])
                del held[:part_bytes]
                if sending is not None:
                    done.append(await sending)
                part = self._send_part(key, upload_id, len(done) + 1, data)
                sending = tasks.create_task(part, name=f"part {len(done) + 1} of {key}")
                size += len(data)
                del data, part
            piece = await anext(parts, None)
            if piece is None:
                break
            held += piece
        if sending is not None:
            done.append(await sending)
        # Never empty: at the end of the loop it is too little for a part, or just one.
        last = bytes(held)
        done.append(await self._send_part(key, upload_id, len(done) + 1, last))
        return done, size + len(last)

    async def _begin(self, key: str) -> str:
        settings = self._archive
        request: CreateMultipartUploadRequestTypeDef = {
            "Bucket": self._bucket,
            "Key": self._full(key),
        }
        if self._checksums:
            request["ChecksumAlgorithm"] = "CRC32C"
        if settings.storage_class:
            request["StorageClass"] = cast("StorageClassType", settings.storage_class)
        if settings.sse:
            request["ServerSideEncryption"] = settings.sse
        if settings.sse_kms_key_id:
            request["SSEKMSKeyId"] = settings.sse_kms_key_id
        answer = await self._requests.repeated(
            f"write {key}", key, lambda client: client.create_multipart_upload(**request)
        )
        return answer["UploadId"]

    async def _send_part(
        self, key: str, upload_id: str, number: int, data: bytes
    ) -> CompletedPartTypeDef:
        from metadata.s3.errors import UploadLost  # late: it loads the library

        if number > PARTS_MAX:
            raise InvalidArgument(
                f"{key} has more than {PARTS_MAX:,} parts of {self._archive.part_bytes:,} bytes"
            )
        request: UploadPartRequestTypeDef = {
            "Bucket": self._bucket,
            "Key": self._full(key),
            "UploadId": upload_id,
            "PartNumber": number,
        }
        done: CompletedPartTypeDef = {"PartNumber": number}
        if self._checksums:
            request["ChecksumCRC32C"] = done["ChecksumCRC32C"] = checksum_header(data)

        async def send(client: S3Client) -> str:
            async with asyncio.timeout(self._send_s(len(data))):
                request["Body"] = body_of(data)
                return (await client.upload_part(**request))["ETag"]

        try:
            done["ETag"] = await self._requests.repeated(f"write part {number} of {key}", key, send)
        except UploadLost as error:
            raise ArchiveUnavailable(f"{error}: somebody has aborted it") from error
        return done

    async def _complete(
        self, key: str, upload_id: str, done: Sequence[CompletedPartTypeDef], size: int
    ) -> None:
        from metadata.s3.errors import UploadLost  # late: it loads the library

        full = self._full(key)
        try:
            await self._requests.repeated(
                f"complete {key}",
                key,
                lambda client: client.complete_multipart_upload(
                    Bucket=self._bucket,
                    Key=full,
                    UploadId=upload_id,
                    MultipartUpload={"Parts": done},
                ),
            )
        except (UploadLost, ArchiveUnavailable) as error:
            # An attempt before, whose answer was lost, may have done it.
            found = await self.stat(key)
            if found is None or found.size != size:
                raise ArchiveUnavailable(f"{error}; whether it was completed is unknown") from error

    async def _abort(self, key: str, upload_id: str) -> None:
        """As well as it goes: what is left is for the bucket's lifecycle rule."""
        from metadata.s3.errors import UploadLost  # late: it loads the library

        full = self._full(key)
        with suppress(SharedLogError, UploadLost, TimeoutError):
            async with asyncio.timeout(_ABORT_S):
                await self._requests.once(
                    f"abort {key}",
                    key,
                    lambda client: client.abort_multipart_upload(
                        Bucket=self._bucket, Key=full, UploadId=upload_id
                    ),
                )

    def _full(self, key: str) -> str:
        check_key(key)
        return super()._full(key)
