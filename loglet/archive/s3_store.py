"""An object store in S3, and in what speaks its protocol.

**Repetitions.** The library's own are switched off; what is safe to repeat is repeated here, with
pauses from the given `Clock` and `Random`. Below us aiohttp sends a request again whose connection
broke, PUT included. So no answer to a conditional PUT is believed but success: after any other the
value is read and compared (`swap`).

**Differences between servers.** The probe finds out (`adapt`) whether `If-Match` wants the ETag in
quotes, and whether checksums are taken. Some answer 404 and others 412 where a condition is on an
object that is not there. A 404 without a body, the answer to HEAD, may be of the object or of the
bucket, so it is asked again in a way that tells them apart: nothing is said to be absent because a
bucket is gone.

**Integrity.** Uploads carry the CRC32C of each body, which S3 checks; what is read is checked by
who reads, as blocks and manifests have checksums of their own.

**Memory.** An upload holds up to `multipart_bytes` before it is known whether it is one request or
several; then a part that is being sent, and the next, which is gathered meanwhile.

The library is loaded when the store is first used (`s3_client`).
"""

from __future__ import annotations

import asyncio
import base64
import io
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from random import Random
from typing import TYPE_CHECKING, Final, NamedTuple, cast

from loglet.archive.config import ArchiveConfig
from loglet.archive.object_store import ObjectInfo, Versioned, check_key
from loglet.archive.s3_ranges import WHOLE, Range, total_of
from loglet.archive.s3_requests import S3Requests
from loglet.archive.url import BucketUrl, check_prefix
from sharedlog.backoff import Backoff
from sharedlog.checksum import crc32c
from sharedlog.clock import Clock
from sharedlog.errors import (
    ArchiveUnavailable,
    ArchiveUnsuitable,
    InvalidArgument,
    ObjectNotFound,
    SharedLogError,
    SwapConflict,
)
from sharedlog.limits import KIB, MIB
from sharedlog.tasks import first_error

if TYPE_CHECKING:
    from datetime import datetime

    from types_aiobotocore_s3.client import S3Client
    from types_aiobotocore_s3.literals import StorageClassType
    from types_aiobotocore_s3.type_defs import (
        CompletedPartTypeDef,
        CreateMultipartUploadRequestTypeDef,
        GetObjectRequestTypeDef,
        ListObjectsV2OutputTypeDef,
        ListObjectsV2RequestTypeDef,
        PutObjectRequestTypeDef,
        UploadPartRequestTypeDef,
    )

PARTS_MAX: Final = 10_000
DELETES_AT_ONCE: Final = 16
_BYTES_PER_S_MIN: Final = 128 * KIB
"""A slower upload is given up: bytes that nobody takes raise no error by themselves."""
_ABORT_S: Final = 5.0
"""So long may it take to abort an upload in parts, when it has failed or was cancelled."""
_LOOKS_IF_REFUSED: Final = 4
_LOOK_AGAIN_S: Final = 0.05
_PLAIN_BODY_MAX: Final = 1 * MIB
"""Larger ones are handed over as a file, so that they do not hold up the loop."""
_SEND_BYTES: Final = 512 * KIB
"""So much of a file is sent in a turn of the event loop."""


class _Body(io.BytesIO):
    """What is sent.

    aiohttp reads 64 KiB in each turn of the event loop, which appends keep busy: an object would
    take hundreds of turns. So it gets more than it asks for.
    """

    def read(self, size: int | None = -1, /) -> bytes:
        """As of any file, but for small sizes."""
        return super().read(size if size is None or size < 0 else max(size, _SEND_BYTES))


class _Fetched(NamedTuple):
    data: bytes
    total: int  # size of the object
    version: str
    modified_ms: int


class S3Store:
    """An `ObjectStore`. `adapt` it, as the probe does, before it is written to by `swap`."""

    def __init__(
        self, url: BucketUrl, settings: ArchiveConfig, *, clock: Clock, rng: Random
    ) -> None:
        self._url = url
        self._bucket = url.bucket
        self._root = f"{url.prefix}/" if url.prefix else ""
        self._settings = settings
        self._requests = S3Requests(self.url, settings, clock=clock, rng=rng)
        self._clock = clock
        self._rng = rng
        self._quotes = True  # round the ETag of If-Match
        self._checksums = True

    @property
    def url(self) -> str:
        """See `ObjectStore.url`."""
        return str(self._url)

    async def adapt(self, key: str, salt: bytes) -> None:
        """Find out about checksums and quotes. See `probe.Adaptable`."""
        try:
            version = await self.swap(key, salt + b"1", None)
        except ArchiveUnsuitable as error:
            # The request is new to a server that knows no checksums, or wrong in another way.
            if _status_of(error) not in (400, 501):
                raise
            self._checksums = False
            version = await self.swap(key, salt + b"1", None)
        for quotes in (True, False):
            self._quotes = quotes
            try:
                await self.swap(key, salt + b"2", version)
            except ArchiveUnavailable as error:
                if _status_of(error.__cause__) != 412:
                    raise
            else:
                return
        raise ArchiveUnsuitable(
            f"{self.url} can't be an archive: it replaces no object under the version (ETag) that "
            "it has told itself, so that a log's history could not be continued (If-Match)"
        )

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

    async def read_versioned(self, key: str) -> Versioned | None:
        """See `ObjectStore.read_versioned`."""
        try:
            found = await self._fetch(key, WHOLE)
        except ObjectNotFound:
            return None
        return Versioned(found.data, found.version)

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
        return ObjectInfo(key, answer["ContentLength"], _ms(answer["LastModified"]))

    async def upload(self, key: str, parts: AsyncIterator[bytes]) -> int:
        """See `ObjectStore.upload`."""
        full = self._full(key)
        held = bytearray()
        async for piece in parts:
            held += piece
            if len(held) > self._settings.multipart_bytes:
                return await self._upload_in_parts(key, held, parts)
        data = bytes(held)
        del held
        request = self._put_request(full, data)
        if self._settings.storage_class:
            request["StorageClass"] = cast("StorageClassType", self._settings.storage_class)
        await self._requests.repeated(
            f"write {key}", key, lambda client: self._put(client, request, data)
        )
        return len(data)

    async def swap(self, key: str, data: bytes, expected: str | None) -> str:
        """See `ObjectStore.swap`."""
        request = self._put_request(self._full(key), data)
        if expected is None:
            request["IfNoneMatch"] = "*"
        else:
            request["IfMatch"] = f'"{expected}"' if self._quotes else expected
        try:
            return await self._requests.once(
                f"replace {key}", key, lambda client: self._put(client, request, data)
            )
        except (ArchiveUnavailable, ObjectNotFound) as error:
            return await self._settled(key, data, expected, error)

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """See `ObjectStore.list`. A page is in memory."""
        check_prefix(prefix)
        token, last = "", ""
        while True:
            page = await self._list_page(prefix, token)
            for found in page.get("Contents", ()):
                key = found["Key"].removeprefix(self._root)
                if not key or key.endswith("/"):
                    continue  # what consoles make for a folder
                if key <= last:
                    raise ArchiveUnsuitable(f"{self.url}: its listing is not in the order of keys")
                last = key
                yield ObjectInfo(key, found["Size"], _ms(found["LastModified"]))
            token = page.get("NextContinuationToken", "")
            if not token:
                return

    async def delete(self, keys: Sequence[str]) -> None:
        """See `ObjectStore.delete`. One request each: for many at once servers differ too much."""
        full = {key: self._full(key) for key in keys}
        left = list(full)
        while left:
            now, left = left[:DELETES_AT_ONCE], left[DELETES_AT_ONCE:]
            try:
                async with asyncio.TaskGroup() as group:
                    for key in now:
                        group.create_task(self._delete(key, full[key]), name=f"delete {key}")
            except BaseExceptionGroup as errors:
                raise first_error(errors) from errors

    async def close(self) -> None:
        """See `ObjectStore.close`. Requests under way fail."""
        await self._requests.close()

    # Requests.

    async def _fetch(self, key: str, wanted: Range) -> _Fetched:
        from loglet.archive.s3_errors import BeyondEnd  # late: it loads the library

        request: GetObjectRequestTypeDef = {"Bucket": self._bucket, "Key": self._full(key)}
        if wanted.header is not None:
            request["Range"] = wanted.header
        doing = f"read {key}"
        try:
            return await self._requests.repeated(
                doing, key, lambda client: self._fetch_once(client, request, wanted)
            )
        except BeyondEnd:
            return _Fetched(b"", 0, "", 0)  # of the last bytes: the object is empty

    async def _fetch_once(
        self, client: S3Client, request: GetObjectRequestTypeDef, wanted: Range
    ) -> _Fetched:
        answer = await client.get_object(**request)
        async with answer["Body"] as body:
            length = answer["ContentLength"]
            total = total_of(wanted, answer.get("ContentRange"), length)
            if total is None:
                raise ArchiveUnsuitable(
                    f"{self.url} can't be an archive: asked for {wanted.header} it answers with "
                    f"{answer.get('ContentRange', 'the whole object')}"
                )
            data: bytes = await body.read()
        if len(data) != length:
            raise ArchiveUnavailable(
                f"{self.url}: {len(data):,} of {length:,} bytes of {request['Key']} came"
            )
        return _Fetched(data, total, answer["ETag"].strip('"'), _ms(answer["LastModified"]))

    def _put_request(self, full: str, data: bytes) -> PutObjectRequestTypeDef:
        """Without the body, which each attempt needs anew."""
        request: PutObjectRequestTypeDef = {"Bucket": self._bucket, "Key": full}
        if self._checksums:
            request["ChecksumCRC32C"] = _checksum(data)
        if self._settings.sse:
            request["ServerSideEncryption"] = self._settings.sse
        if self._settings.sse_kms_key_id:
            request["SSEKMSKeyId"] = self._settings.sse_kms_key_id
        return request

    async def _put(self, client: S3Client, request: PutObjectRequestTypeDef, data: bytes) -> str:
        """Returns the version."""
        async with asyncio.timeout(self._send_s(len(data))):
            request["Body"] = _body(data)
            answer = await client.put_object(**request)
        version = answer.get("ETag", "").strip('"')
        if not version:
            raise ArchiveUnsuitable(f"{self.url} can't be an archive: it tells no version (ETag)")
        return version

    async def _settled(
        self, key: str, data: bytes, expected: str | None, error: SharedLogError
    ) -> str:
        """The outcome of a swap whose answer says nothing sure, from what is there now.

        Equal bytes are this call's, for callers put random ones into each value. A version that is
        not the expected one any more never comes back, so then this call can't be carried out
        later either. Otherwise it may yet arrive; or somebody else's does, in whose favour it was
        refused: Ceph says so before it shows what has won, and then some more looks are worth it.
        """
        pauses = Backoff(self._rng, min_s=_LOOK_AGAIN_S, max_s=self._settings.backoff_max_s)
        looks = _LOOKS_IF_REFUSED if _status_of(error) in (409, 412) else 1
        for look in range(looks):
            if look:
                await self._clock.sleep(pauses.next_s())
            found = await self.read_versioned(key)
            if found is not None and found.data == data:
                return found.version
            actual = None if found is None else found.version
            if actual != expected:
                raise SwapConflict(
                    f"{self.url}: {key} has version {actual}, expected was {expected}",
                    key=key,
                    actual=actual,
                ) from error
        raise ArchiveUnavailable(
            f"{error}; whether it was or will be replaced is unknown"
        ) from error

    async def _list_page(self, prefix: str, token: str) -> ListObjectsV2OutputTypeDef:
        request: ListObjectsV2RequestTypeDef = {
            "Bucket": self._bucket,
            "Prefix": f"{self._root}{prefix}",
        }
        if token:
            request["ContinuationToken"] = token
        return await self._requests.repeated(
            f"list {prefix or 'all'}", prefix, lambda client: client.list_objects_v2(**request)
        )

    async def _delete(self, key: str, full: str) -> None:
        with suppress(ObjectNotFound):
            await self._requests.repeated(
                f"delete {key}",
                key,
                lambda client: client.delete_object(Bucket=self._bucket, Key=full),
            )

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
        size, part_bytes = 0, self._settings.part_bytes
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
        settings = self._settings
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
        from loglet.archive.s3_errors import UploadLost  # late: it loads the library

        if number > PARTS_MAX:
            raise InvalidArgument(
                f"{key} has more than {PARTS_MAX:,} parts of {self._settings.part_bytes:,} bytes"
            )
        request: UploadPartRequestTypeDef = {
            "Bucket": self._bucket,
            "Key": self._full(key),
            "UploadId": upload_id,
            "PartNumber": number,
        }
        done: CompletedPartTypeDef = {"PartNumber": number}
        if self._checksums:
            request["ChecksumCRC32C"] = done["ChecksumCRC32C"] = _checksum(data)

        async def send(client: S3Client) -> str:
            async with asyncio.timeout(self._send_s(len(data))):
                request["Body"] = _body(data)
                return (await client.upload_part(**request))["ETag"]

        try:
            done["ETag"] = await self._requests.repeated(f"write part {number} of {key}", key, send)
        except UploadLost as error:
            raise ArchiveUnavailable(f"{error}: somebody has aborted it") from error
        return done

    async def _complete(
        self, key: str, upload_id: str, done: Sequence[CompletedPartTypeDef], size: int
    ) -> None:
        from loglet.archive.s3_errors import UploadLost  # late: it loads the library

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
        from loglet.archive.s3_errors import UploadLost  # late: it loads the library

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
        return f"{self._root}{key}"

    def _send_s(self, size: int) -> float:
        settings = self._settings
        return settings.connect_timeout_s + settings.read_timeout_s + size / _BYTES_PER_S_MIN


def _status_of(error: BaseException | None) -> int:
    from loglet.archive.s3_errors import status_of  # late: it loads the library

    return status_of(error)


def _body(data: bytes) -> bytes | io.BytesIO:
    return data if len(data) <= _PLAIN_BODY_MAX else _Body(data)


def _checksum(data: bytes) -> str:
    """As S3 wants it."""
    return base64.b64encode(struct.pack(">I", crc32c(data))).decode()


def _ms(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)
