"""Values in S3 under keys, read whole and changed by compare-and-swap.

**Repetitions.** The library's own are switched off; what is safe to repeat is repeated here, with
pauses from the given `Clock` and `Random`. Below us aiohttp sends a request again whose connection
broke, PUT included. So no answer to a conditional PUT is believed but success: after any other the
value is read and compared (`swap`).

**Differences between servers.** The trial finds out (`adapt`) whether `If-Match` wants the ETag in
quotes, and whether checksums are taken. Some answer 404 and others 412 where a condition is on an
object that is not there.

**Integrity.** What is written carries the CRC32C of its body, which S3 checks; what is read is
checked by who reads, as all that is kept there has checksums of its own.
"""

from __future__ import annotations

import asyncio
import base64
import io
import struct
from collections.abc import Sequence
from contextlib import suppress
from random import Random
from typing import TYPE_CHECKING, Final, NamedTuple

from metadata.s3.bucket import BucketUrl
from metadata.s3.ranges import WHOLE, Range, total_of
from metadata.s3.requests import S3Requests
from metadata.s3.settings import Purpose, S3Settings
from sharedlog.backoff import Backoff
from sharedlog.checksum import crc32c
from sharedlog.clock import Clock
from sharedlog.errors import ObjectNotFound, SharedLogError, SwapConflict
from sharedlog.limits import KIB, MIB
from sharedlog.tasks import first_error

if TYPE_CHECKING:
    from datetime import datetime

    from types_aiobotocore_s3.client import S3Client
    from types_aiobotocore_s3.type_defs import (
        GetObjectRequestTypeDef,
        ListObjectsV2RequestTypeDef,
        PutObjectRequestTypeDef,
    )

DELETES_AT_ONCE: Final = 16
_BYTES_PER_S_MIN: Final = 128 * KIB
"""A slower upload is given up: bytes that nobody takes raise no error by themselves."""
_LOOKS_IF_REFUSED: Final = 4
_LOOK_AGAIN_S: Final = 0.05
_PLAIN_BODY_MAX: Final = 1 * MIB
"""Larger ones are handed over as a file, so that they do not hold up the loop."""
_SEND_BYTES: Final = 512 * KIB
"""So much of a file is sent in a turn of the event loop."""


class Versioned(NamedTuple):
    """A value, and the version to be given to `swap`."""

    data: bytes
    version: str  # opaque: an ETag, a hash. Different data have different versions


class Listed(NamedTuple):
    """What a listing tells of an object."""

    key: str
    size: int
    modified_ms: int  # Unix time, by the store's clock; of the last write
    version: str  # as `Versioned` has it


class Page(NamedTuple):
    """A part of a listing."""

    listed: Sequence[Listed]
    token: str  # of the next page; "": this is the last


class Fetched(NamedTuple):
    """Bytes of an object, and what was told with them."""

    data: bytes
    total: int  # size of the object
    version: str
    modified_ms: int


class _Body(io.BytesIO):
    """What is sent.

    aiohttp reads 64 KiB in each turn of the event loop, which appends keep busy: an object would
    take hundreds of turns. So it gets more than it asks for.
    """

    def read(self, size: int | None = -1, /) -> bytes:
        """As of any file, but for small sizes."""
        return super().read(size if size is None or size < 0 else max(size, _SEND_BYTES))


class S3Values:
    """See the module's docstring. `adapt` it, as a trial does, before it is written to by `swap`.

    Every method may raise `purpose.unavailable` (no answer, or one that may be another later) and
    `purpose.unsuitable` (trying again does not help).
    """

    def __init__(
        self,
        url: BucketUrl,
        settings: S3Settings,
        purpose: Purpose,
        *,
        clock: Clock,
        rng: Random,
    ) -> None:
        self._url = url
        self._bucket = url.bucket
        self._root = f"{url.prefix}/" if url.prefix else ""
        self._settings = settings
        self._purpose = purpose
        self._requests = S3Requests(str(url), settings, purpose, clock=clock, rng=rng)
        self._clock = clock
        self._rng = rng
        self._quotes = True  # round the ETag of If-Match
        self._checksums = True

    @property
    def url(self) -> str:
        """The root, for people; holds no secret."""
        return str(self._url)

    async def open(self) -> None:
        """Load the library, which the first request does otherwise."""
        await self._requests.open()

    async def adapt(self, key: str, salt: bytes) -> None:
        """Find out about checksums and quotes, by writing under a fresh key.

        What is left there is deleted by the caller.
        """
        try:
            version = await self.swap(key, salt + b"1", None)
        except self._purpose.unsuitable as error:
            # The request is new to a server that knows no checksums, or wrong in another way.
            if status_of(error) not in (400, 501):
                raise
            self._checksums = False
            version = await self.swap(key, salt + b"1", None)
        for quotes in (True, False):
            self._quotes = quotes
            try:
                await self.swap(key, salt + b"2", version)
            except self._purpose.unavailable as error:
                if status_of(error.__cause__) != 412:
                    raise
            else:
                return
        raise self._lacks(
            "it replaces no object under the version (ETag) that it has told itself (If-Match), so "
            "that nothing could be continued"
        )

    async def read_versioned(self, key: str) -> Versioned | None:
        """The whole value and its version; None if there is none.

        What it tells is durable, and no older than what any `swap` that ended before wrote.

        **Cancellation:** ends the wait.
        """
        try:
            found = await self._fetch(key, WHOLE)
        except ObjectNotFound:
            return None
        return Versioned(found.data, found.version)

    async def swap(self, key: str, data: bytes, expected: str | None) -> str:
        """Replace the value if it has the version `expected`, None: if there is none.

        Returns the new version. Of several that expect the same version one succeeds at most, as
        long as no two of them, and no two values of a key in time, have the same `data`: **callers
        put random bytes into it.** Nothing is repeated here. If the answer was lost, the value is
        read, and if it is `data` the swap has succeeded.

        Raises:
            SwapConflict: the value is another one, or there is one or none against expectation, and
                `data` will not appear any more. It may have been there and been replaced by
                somebody who saw it: read what is there before concluding that it never was.
            `purpose.unavailable`: unknown, `data` may be the value now or later.

        **Cancellation:** unknown likewise.
        """
        request = self._put_request(self._full(key), data)
        if expected is None:
            request["IfNoneMatch"] = "*"
        else:
            request["IfMatch"] = f'"{expected}"' if self._quotes else expected
        try:
            return await self._requests.once(
                f"replace {key}", key, lambda client: self._put(client, request, data)
            )
        except (self._purpose.unavailable, ObjectNotFound) as error:
            return await self._settled(key, data, expected, error)

    async def list_page(
        self, prefix: str, *, token: str = "", after: str = "", keys: int = 0
    ) -> Page:
        """Objects whose keys begin with `prefix`, in the order of the keys' bytes.

        Args:
            prefix: Need not end at a slash.
            token: Of the page before; "": the first one.
            after: Of the first page: only keys greater than this.
            keys: In a page; 0: as many as the server gives.

        **Cancellation:** ends the wait.
        """
        request: ListObjectsV2RequestTypeDef = {
            "Bucket": self._bucket,
            "Prefix": f"{self._root}{prefix}",
        }
        if token:
            request["ContinuationToken"] = token
        elif after:
            request["StartAfter"] = f"{self._root}{after}"
        if keys:
            request["MaxKeys"] = keys
        page = await self._requests.repeated(
            f"list {prefix or 'all'}", prefix, lambda client: client.list_objects_v2(**request)
        )
        listed: list[Listed] = []
        for found in page.get("Contents", ()):
            key = found["Key"].removeprefix(self._root)
            if not key or key.endswith("/"):
                continue  # what consoles make for a folder
            if listed and key <= listed[-1].key:
                raise self._purpose.unsuitable(
                    f"{self.url}: its listing is not in the order of keys"
                )
            modified_ms = ms_of(found["LastModified"])
            listed.append(Listed(key, found["Size"], modified_ms, found["ETag"].strip('"')))
        return Page(listed, page.get("NextContinuationToken", ""))

    async def delete(self, keys: Sequence[str]) -> None:
        """Delete objects, durably; those that are missing are fine. Safe to repeat.

        One request each: for many at once servers differ too much.

        **Cancellation:** some may be deleted.
        """
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
        """Let go of the connections; requests under way fail, and no new ones are sent."""
        await self._requests.close()

    # Requests.

    async def _fetch(self, key: str, wanted: Range) -> Fetched:
        from metadata.s3.errors import BeyondEnd  # late: it loads the library

        request: GetObjectRequestTypeDef = {"Bucket": self._bucket, "Key": self._full(key)}
        if wanted.header is not None:
            request["Range"] = wanted.header
        doing = f"read {key}"
        try:
            return await self._requests.repeated(
                doing, key, lambda client: self._fetch_once(client, request, wanted)
            )
        except BeyondEnd:
            return Fetched(b"", 0, "", 0)  # of the last bytes: the object is empty

    async def _fetch_once(
        self, client: S3Client, request: GetObjectRequestTypeDef, wanted: Range
    ) -> Fetched:
        answer = await client.get_object(**request)
        async with answer["Body"] as body:
            length = answer["ContentLength"]
            total = total_of(wanted, answer.get("ContentRange"), length)
            if total is None:
                raise self._lacks(
                    f"asked for {wanted.header} it answers with "
                    f"{answer.get('ContentRange', 'the whole object')}"
                )
            data: bytes = await body.read()
        if len(data) != length:
            raise self._purpose.unavailable(
                f"{self.url}: {len(data):,} of {length:,} bytes of {request['Key']} came"
            )
        return Fetched(data, total, answer["ETag"].strip('"'), ms_of(answer["LastModified"]))

    def _put_request(self, full: str, data: bytes) -> PutObjectRequestTypeDef:
        """Without the body, which each attempt needs anew."""
        request: PutObjectRequestTypeDef = {"Bucket": self._bucket, "Key": full}
        if self._checksums:
            request["ChecksumCRC32C"] = checksum_header(data)
        if self._settings.sse:
            request["ServerSideEncryption"] = self._settings.sse
        if self._settings.sse_kms_key_id:
            request["SSEKMSKeyId"] = self._settings.sse_kms_key_id
        return request

    async def _put(self, client: S3Client, request: PutObjectRequestTypeDef, data: bytes) -> str:
        """Returns the version."""
        async with asyncio.timeout(self._send_s(len(data))):
            request["Body"] = body_of(data)
            answer = await client.put_object(**request)
        version = answer.get("ETag", "").strip('"')
        if not version:
            raise self._lacks("it tells no version (ETag)")
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
        looks = _LOOKS_IF_REFUSED if status_of(error) in (409, 412) else 1
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
        raise self._purpose.unavailable(
            f"{error}; whether it was or will be replaced is unknown"
        ) from error

    async def _delete(self, key: str, full: str) -> None:
        with suppress(ObjectNotFound):
            await self._requests.repeated(
                f"delete {key}",
                key,
                lambda client: client.delete_object(Bucket=self._bucket, Key=full),
            )

    def _full(self, key: str) -> str:
        return f"{self._root}{key}"

    def _send_s(self, size: int) -> float:
        settings = self._settings
        return settings.connect_timeout_s + settings.read_timeout_s + size / _BYTES_PER_S_MIN

    def _lacks(self, what: str) -> SharedLogError:
        return self._purpose.unsuitable(f"{self.url} can't be {self._purpose.noun}: {what}")


def status_of(error: BaseException | None) -> int:
    """HTTP status of the answer that an error of ours was made of; 0 if it was of none."""
    from metadata.s3 import errors  # late: it loads the library

    return errors.status_of(error)


def body_of(data: bytes) -> bytes | io.BytesIO:
    """As the library wants it."""
    return data if len(data) <= _PLAIN_BODY_MAX else _Body(data)


def checksum_header(data: bytes) -> str:
    """As S3 wants it."""
    return base64.b64encode(struct.pack(">I", crc32c(data))).decode()


def ms_of(moment: datetime) -> int:
    """Unix time in milliseconds."""
    return round(moment.timestamp() * 1000)
