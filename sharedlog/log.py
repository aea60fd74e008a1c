"""One log, as an application uses it: append, read, find the tail."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING

from sharedlog.admin import Admin
from sharedlog.appender import Appender
from sharedlog.batch import BatchBuilder, Headers, Record
from sharedlog.codec import Compression
from sharedlog.config import AppenderConfig, ReaderConfig
from sharedlog.connection import Connection
from sharedlog.control import check_fencing_token
from sharedlog.errors import AppendIndefinite, SharedLogError
from sharedlog.ids import Offset
from sharedlog.log_reads import LogReads, ReadOptions
from sharedlog.read_window import ReadProgress
from sharedlog.record_checks import check_record
from sharedlog.route import Route
from sharedlog.starts import EARLIEST, Start, Timestamp
from sharedlog.v1 import types_pb2

if TYPE_CHECKING:
    from sharedlog.cursor import Cursor
    from sharedlog.cursors import Cursors

log = logging.getLogger(__name__)

NewRecord = bytes | tuple[bytes, bytes | None, Headers | None]
"""A record to append: its value alone, or value, key and headers."""


class Log:
    """A log of the cluster. Making one costs no I/O; that it exists shows at the first use."""

    def __init__(
        self,
        connection: Connection,
        name: str,
        *,
        append_config: AppenderConfig,
        read_config: ReaderConfig,
        create: bool = False,
    ) -> None:
        self.name = name
        self._create = create  # by the first append, if it does not exist
        self._connection = connection
        self._route = Route(connection, name)
        self._append_config = append_config
        self._reads = LogReads(connection, name, self._route, read_config)
        self._shared: Appender | None = None  # for `append`; opened by the first one

    def __repr__(self) -> str:
        return f"<Log {self.name!r}>"

    # Appending.

    async def append(
        self,
        value: bytes,
        key: bytes | None = None,
        headers: Headers | None = None,
        *,
        match_offset: int | None = None,
        fencing_token: str | None = None,
        timeout_s: float | None = None,
    ) -> Offset:
        """Append one record; returns its offset once it is fsynced on a write quorum.

        Concurrent calls share batches and one session. For many records from one place, `appender`
        costs less.

        With `match_offset` it is appended only if it gets this offset: nobody has appended since
        the tail was that. With `fencing_token` only if that is the log's (see `fence`; "" is none).
        Both cost no further round trip. Mind that control records take offsets as well.

        Raises:
            AppendIndefinite: the record may or may not be in the log.
            OffsetMismatch: carries the tail. FencingTokenMismatch: carries the log's token.
            RecordTooLarge, LogNotFound, LogUnavailable, NotAppended, ...: it is not in the log.

        **Cancellation:** stops the wait, not the write: the record may still get into the log.
        """
        if match_offset is not None or fencing_token is not None:
            offsets = await self.append_batch(
                [(value, key, headers)],
                match_offset=match_offset,
                fencing_token=fencing_token,
                timeout_s=timeout_s,
            )
            return Offset(offsets.start)
        limit_s = self._append_config.timeout_s if timeout_s is None else timeout_s
        pending = await self._appender().append_within(value, key, headers, timeout_s=limit_s)
        return await pending

    async def append_batch(
        self,
        records: Iterable[NewRecord],
        *,
        match_offset: int | None = None,
        fencing_token: str | None = None,
        timeout_s: float | None = None,
    ) -> range:
        """Append records as one batch: all of them, side by side, or none. Returns their offsets.

        `match_offset`, of the first record, and `fencing_token` as in `append`.

        Raises:
            EmptyBatch, BatchTooLarge: as a batch they can't be appended. As for `append` otherwise.

        **Cancellation:** stops the wait, not the write.
        """
        builder = BatchBuilder()
        for record in records:
            value, key, headers = (record, None, None) if isinstance(record, bytes) else record
            check_record(value, key, headers)
            builder.append(value, key, headers)
        batch = await self._appender().append_batch(
            builder,
            match_offset=match_offset,
            fencing_token=fencing_token,
            timeout_s=timeout_s,
        )
        await batch.wait()
        first = batch.first_offset()
        return range(first, first + len(builder))

    async def fence(
        self, token: str, expected: str | None = None, *, timeout_s: float | None = None
    ) -> Offset:
        """Set the log's fencing token: appends that come with another one fail from then on.

        Appends without a token are not looked at. "" takes the token away. With `expected` the
        token is set only if the present one is that ("" for none). What is written is a control
        record, whose offset is returned; readers pass over it.

        Raises:
            FencingTokenMismatch: it is not the expected one; carries the present one.
            AppendIndefinite: it may have been set. InvalidArgument: no token. As for `append`
            otherwise.

        **Cancellation:** stops the wait, not the write.
        """
        check_fencing_token(token)
        builder = BatchBuilder()
        builder.append(b"")
        batch = await self._appender().append_batch(
            builder, fencing_token=expected, set_fencing_token=token, timeout_s=timeout_s
        )
        await batch.wait()
        return batch.first_offset()

    def appender(
        self,
        *,
        linger_s: float | None = None,
        batch_bytes: int | None = None,
        batch_records: int | None = None,
        in_flight_bytes: int | None = None,
        buffer_bytes: int | None = None,
        timeout_s: float | None = None,
        compression: Compression | None = None,
        exactly_once: bool | None = None,
        producer: str | None = None,
        fencing_token: str | None = None,
    ) -> Appender:
        """A pipelined appender with a session of its own; see `AppenderConfig` for the settings.

        Use it as `async with log.appender() as appender`. No I/O happens before its first append.

        `producer` names it: entering it waits for its session, shuts out whoever has the name now,
        and `next_sequence` tells how many records all its lives have in the log. One that has
        written nothing for a week is forgotten, as is the longest idle of more than 1,000 of a log.
        Its records have no gap: once one fails so do all behind it, and a new appender goes on.
        `fencing_token` goes with each of its batches.

        Raises:
            InvalidArgument: a setting is out of range.
            CodecUnavailable: the library for `compression` is not installed.
        """
        given = {
            "linger_s": linger_s,
            "batch_bytes": batch_bytes,
            "batch_records": batch_records,
            "in_flight_bytes": in_flight_bytes,
            "buffer_bytes": buffer_bytes,
            "timeout_s": timeout_s,
            "compression": compression,
            "exactly_once": exactly_once,
        }
        changes = {name: value for name, value in given.items() if value is not None}
        config = replace(self._append_config, **changes)  # type: ignore[arg-type]  # typed above
        if fencing_token is not None:
            check_fencing_token(fencing_token)
        return Appender(
            self._connection,
            self._route,
            config,
            producer=producer,
            fencing_token=fencing_token,
            create=self._create,
        )

    def _appender(self) -> Appender:
        if self._shared is None:
            self._shared = Appender(
                self._connection,
                self._route,
                self._append_config,
                create=self._create,
                owner=self,
            )
        return self._shared

    # Reading.

    def read(
        self,
        start: Start = EARLIEST,
        end: int | None = None,
        *,
        follow: bool = False,
        limit: int | None = None,
        key: bytes | None = None,
        limit_bytes: int | None = None,
        until: Timestamp | None = None,
        include_control: bool = False,
        on_stale: Callable[[str], None] | None = None,
        on_progress: Callable[[ReadProgress], None] | None = None,
    ) -> AsyncGenerator[Record, None]:
        """Records from `start` (inclusive) to `end` (exclusive), in order, without gaps.

        `start` is an offset, `from_time(timestamp)`, `from_tail(n)`, or `EARLIEST`: where the log
        starts. The read ends at the tail as
        it is when it starts, unless `follow`: then it goes on for ever, or up to `end`, with each
        record as soon as it is committed. Besides, it ends

        - after `limit` records;
        - before the record with which values, keys and headers would sum up to more than
          `limit_bytes`, and as soon as they have reached it; one record is always read;
        - before the first record that is not earlier than `until`. A follower learns that such a
          one is there when it comes, and waits for it.

        Control records, which the log keeps for its own ends, take offsets and are passed over, so
        that offsets may have gaps there; with `include_control` they are read as well.

        `on_progress` is told where the read and the log stand: after each message of a server has
        been handed out, and once a second or so while nothing comes. A follower whose
        `position` has reached the `tail` has caught up.

        With a `key` only its records come, and `limit` counts those. The log servers leave out
        batches that can't have it; it costs least where keys are few in a batch.

        If the log's sequencer is gone nobody can tell the tail; the read then ends at the highest
        tail that a log server knows, which may leave out the last records. `on_stale` is told so,
        with a line for a person; without it a warning is logged.

        Raises:
            OffsetOutOfRange: `start` is below 0 or beyond the tail. At the tail is well: there is
            nothing. Purged: `start` is an offset below the log's start. DataLoss, Unreachable:
            records that are in the log can't be had.
            CodecUnavailable: they were compressed, and the library for that is not installed.
            LogNotFound: there is no such log. InvalidArgument: a limit is below what it can be.

        **Cancellation:** ends the read. After leaving the loop early, `aclose` ends it at once.
        """
        return self._reads.records(
            start,
            ReadOptions(
                end=end,
                follow=follow,
                limit=limit,
                key=key,
                limit_bytes=limit_bytes,
                until=until,
                include_control=include_control,
                on_stale=on_stale,
                on_progress=on_progress,
            ),
        )

    def read_batches(
        self,
        start: Start = EARLIEST,
        end: int | None = None,
        *,
        follow: bool = False,
        limit: int | None = None,
        key: bytes | None = None,
        limit_bytes: int | None = None,
        until: Timestamp | None = None,
        include_control: bool = False,
        on_stale: Callable[[str], None] | None = None,
        on_progress: Callable[[ReadProgress], None] | None = None,
    ) -> AsyncGenerator[list[Record], None]:
        """`read`, with the records of each batch as one list: faster, since it works per batch.

        A list has one record at least. A limit in bytes alone is work for each record.
        """
        return self._reads.batches(
            start,
            ReadOptions(
                end=end,
                follow=follow,
                limit=limit,
                key=key,
                limit_bytes=limit_bytes,
                until=until,
                include_control=include_control,
                on_stale=on_stale,
                on_progress=on_progress,
            ),
        )

    async def read_last(self, count: int) -> list[Record]:
        """The last `count` records before the tail, in order; fewer if the log has fewer.

        All of them are held in memory. The tail is linearizable, as `tail` gives it.

        Raises:
            InvalidArgument: `count` is below 0 or above `READ_LAST_MAX` (65,536).
            What `tail` and `read` raise.

        **Cancellation:** ends the read.
        """
        return await self._reads.last(count)

    async def find_offset(self, timestamp: Timestamp) -> Offset:
        """The offset of the first record at or after a moment; the tail if there is none.

        The moment is a `datetime` with a time zone or Unix time in milliseconds, and what counts is
        the sequencer's timestamp of each record. Whatever was acknowledged before the call is taken
        into account. Takes time in proportion to the logarithm of the log's length.

        Raises:
            InvalidArgument: no such moment. DataLoss, Unreachable: the records that would tell
            can't be had. LogNotFound. What `tail` raises, if the answer is not known without it.

        **Cancellation:** safe at any moment.
        """
        return await self._reads.find_offset(timestamp)

    # Cursors.

    def cursor(
        self,
        name: str,
        *,
        start: int = 0,
        commit_every_s: float = 1.0,
        owner_name: str | None = None,
    ) -> Cursor:
        """A place in this log that is kept in the cluster, to be read from and moved; `Cursor`.

        Use it as `async with log.cursor("billing") as cursor`: that takes it over from whoever has
        it. `start` is where it begins if there is none of this name. What was committed is written
        at most once in `commit_every_s`. `owner_name` is shown to people; by default this process.

        Raises:
            InvalidArgument: `start` or `commit_every_s` can't be.
        """
        from sharedlog.cursor import Cursor  # late: most who use a log have no cursor

        if owner_name is None:
            import os
            import socket

            owner_name = f"{socket.gethostname()}:{os.getpid()}"
        return Cursor(
            self._connection,
            self,
            name,
            start=start,
            commit_every_s=commit_every_s,
            owner_name=owner_name,
        )

    @property
    def cursors(self) -> Cursors:
        """The log's cursors: list, get, seek, delete."""
        from sharedlog.cursors import Cursors  # late, likewise

        return Cursors(self._connection, self.name)

    # The tail.

    async def tail(self, *, timeout_s: float | None = None) -> Offset:
        """The first unwritten offset, linearizable: what was acknowledged before lies below it.

        While the log gets another sequencer the call waits, up to `timeout_s` or what
        `ClientConfig` says.

        Raises:
            LogUnavailable: the log has no sequencer, and gets none.
            DeadlineExceeded: it does not answer, or no write quorum answers it.
            LogNotFound. Unreachable: no node could be asked in time.
        """
        return await self._reads.tail(timeout_s=timeout_s)

    async def known_tail(self) -> Offset:
        """A tail that some log server knows: cheap, needs no sequencer, and may be behind.

        Raises:
            LogNotFound. LogUnavailable: no log server answers. Unreachable: no node does.
        """
        return await self._reads.known_tail()

    # The beginning.

    async def trim(self, before: int) -> Offset:
        """Have log servers keep nothing below `before`: it is read from the archive from then on.

        What is not archived yet is archived first. Returns how far the trim went, which is less
        than `before` if that lies beyond the tail, and for what the next sequencer needs.
        `Admin.trim` tells more, and progress. A log's retention does this by itself.

        Raises:
            LogNotFound. InvalidArgument: the cluster has no archive. ArchiveUnavailable.

        **Cancellation:** it may be done in part; it may be repeated.
        """
        trimmed = Offset(0)
        async with aclosing(Admin(self._connection).trim(self.name, before=before)) as answers:
            async for answer in answers:
                if answer.done:
                    trimmed = Offset(answer.trimmed)
        return trimmed

    async def purge(self, before: int) -> Offset:
        """Delete what lies below `before` for ever, in the archive, too; returns the log's start.

        Reads below it raise `Purged` from then on. `Admin.purge` tells more.

        Raises:
            LogNotFound. InvalidArgument: beyond the tail.

        **Cancellation:** it may or may not be done; it may be repeated.
        """
        return Offset((await Admin(self._connection).purge(self.name, before=before)).start)

    async def describe(self) -> types_pb2.LogDescription:
        """The log's configuration, its chain and its nodes, fetched anew."""
        return await self._route.describe()

    def learn(self, description: types_pb2.LogDescription) -> None:
        """Take a description that came with another answer, e.g. of the log's creation."""
        self._route.learn(description)

    async def close(self) -> None:
        """End the session of `append` once what it holds is written; `append` opens another."""
        appender, self._shared = self._shared, None
        if appender is not None:
            try:
                await appender.close()
            except AppendIndefinite as error:
                log.warning("append.indefinite", extra={"log": self.name, "error": str(error)})
            except SharedLogError as error:
                log.warning("append.failed", extra={"log": self.name, "error": str(error)})
