"""`sharedlog append`: records from standard input or files into a log.

Input is cut into batches as it arrives, each appended as a whole and pipelined. What is said at the
end, success or not, is a count of certainties: records that are in the log, records that may be
(an *indefinite* failure), records that are not.

With `--producer` the input is numbered, record by record, and what is in the log already is passed
over: the same command, run again after whatever ended it, goes on where it stopped.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, BinaryIO, Final

import click

from sharedlog import errors
from sharedlog.cli.app import ExamplesCommand, Settings, cluster_options, pass_settings
from sharedlog.cli.failures import (
    EXIT_FAILED,
    EXIT_RETRY,
    CliFailure,
    SilentExit,
    exit_code_of,
    message_of,
)
from sharedlog.cli.output import human_bytes, note, plural, print_json
from sharedlog.cli.records import RecordIn, RecordParser
from sharedlog.cli.session import with_cluster
from sharedlog.cli.sources import chunks, size_of
from sharedlog.codec import COMPRESSIONS, Compression

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from sharedlog import Appender, Cluster
    from sharedlog.batch import BatchBuilder
    from sharedlog.pending import AppendBatch

_BATCH_BYTES: Final = 256 * 1024
_BATCH_RECORDS: Final = 16_384
_PROGRESS_EVERY_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class _Request:
    """What the command line said."""

    log_name: str
    files: Sequence[BinaryIO]
    parser: RecordParser
    print_offsets: bool
    progress: bool
    match_offset: int | None
    fencing_token: str | None
    producer: str | None
    compression: Compression | None
    create: bool


@click.command(
    cls=ExamplesCommand,
    examples="""
sharedlog append orders < lines.txt             a record for each line
echo hello | sharedlog append orders --key greeting
sharedlog append photos --format raw *.jpg      a record for each file
sharedlog read orders --format json | sharedlog append copy --format ndjson
tail -F /var/log/syslog | sharedlog append syslog --create --compression zstd
sharedlog append orders --producer import-7 file.txt    run it again: it goes on where it stopped
sharedlog append account --match-offset 42 < event      only if nobody has appended since
""",
)
@click.argument("log")
@click.argument("files", nargs=-1, type=click.File("rb"))
@click.option(
    "--format",
    "kind",
    type=click.Choice(["lines", "raw", "ndjson"]),
    default="lines",
    show_default=True,
    help="What is a record: each line, without its newline; each input as a whole; each line's "
    'object, e.g. {"value": "v", "key": "k", "headers": {"h": "x"}}, with value_base64 for bytes.',
)
@click.option("--key", metavar="TEXT", help="Key of the records that bring none.")
@click.option(
    "--key-field",
    metavar="NAME",
    help="With ndjson, the field that holds the key.  [default: key]",
)
@click.option("--header", "headers", multiple=True, metavar="NAME=VALUE", help="Of each record.")
@click.option(
    "--compression",
    type=click.Choice(COMPRESSIONS),
    help="Compress batches: zstd is smallest, lz4 quickest.  [default: none]",
)
@click.option("--create", is_flag=True, help="Create LOG with the first record if there is none.")
@click.option("--offsets", is_flag=True, help="Print each record's offset, a line for each.")
@click.option(
    "--match-offset",
    type=click.IntRange(0),
    metavar="OFFSET",
    help="The first record must get this offset, and the others those that follow it.",
)
@click.option("--fencing-token", metavar="TEXT", help="Must be the log's; see `log fence`.")
@click.option(
    "--producer",
    metavar="NAME",
    help="Passes over the records that this producer has in the log already: the first so many of "
    "the input. Shuts out whoever appends under the same name.",
)
@cluster_options
@pass_settings
def append(
    settings: Settings,
    *,
    log: str,
    files: tuple[BinaryIO, ...],
    kind: str,
    key: str | None,
    key_field: str | None,
    headers: tuple[str, ...],
    compression: Compression | None,
    create: bool,
    offsets: bool,
    match_offset: int | None,
    fencing_token: str | None,
    producer: str | None,
) -> None:
    """Append records to LOG, from FILES or else from standard input.

    Prints where the records are once all of them are durable. If it fails, it says how many records
    are in the log, how many may be, and how many are not.
    """
    if key_field is not None and kind != "ndjson":
        raise click.UsageError("--key-field is for --format ndjson; --key gives one key to all")
    if offsets and settings.json:
        raise click.UsageError("--offsets and --json exclude each other")
    request = _Request(
        log_name=log,
        files=files or (sys.stdin.buffer,),
        parser=RecordParser(
            kind,
            key=None if key is None else key.encode("utf-8", "surrogateescape"),
            headers=_parse_headers(headers),
            key_field=key_field or "key",
        ),
        print_offsets=offsets,
        progress=sys.stderr.isatty() and not any(file.isatty() for file in files),
        match_offset=match_offset,
        fencing_token=fencing_token,
        producer=producer,
        compression=compression,
        create=create,
    )
    run = _Run(request, settings)
    if not files and sys.stdin.isatty():
        note("reading records from the terminal, one each line; Ctrl-D ends")
    try:
        with_cluster(settings, run.append_all)
    except KeyboardInterrupt:
        run.report(interrupted=True)
        raise
    run.report()


def _parse_headers(given: Iterable[str]) -> dict[str, bytes]:
    headers: dict[str, bytes] = {}
    for entry in given:
        name, equals, value = entry.partition("=")
        if not name or not equals:
            raise click.UsageError(f"--header {entry!r}: NAME=VALUE is expected")
        headers[name] = value.encode("utf-8", "surrogateescape")
    return headers


class _Run:
    """One run of the command: hands batches over, takes account of what became of them."""

    def __init__(self, request: _Request, settings: Settings) -> None:
        self._request = request
        self._settings = settings
        # Batches in the order of the input, with their records and bytes.
        self._pending: deque[tuple[AppendBatch, int, int]] = deque()
        self._first: int | None = None
        self._end = 0
        self._gaps = False
        # Invariant: every record handed over is in exactly one of these, or in `_pending`.
        self._records = self._indefinite = self._refused = 0
        self._bytes = 0
        self._passed = self._to_pass = 0  # records that the producer has in the log already
        self._next_offset = request.match_offset  # that the next batch must get
        self._started_s = monotonic()
        self._progress: _ProgressBar | None = None
        self._print_offsets = request.print_offsets
        self.failure: BaseException | None = None

    async def append_all(self, cluster: Cluster) -> None:
        """Append everything; the first failure ends the input and is kept in `failure`."""
        log = cluster.log(self._request.log_name, create=self._request.create)
        # A log that is unknown, or that nobody orders now, is found before the input is touched.
        try:
            await log.tail()
        except errors.LogNotFound:
            if not self._request.create:
                raise
        except errors.DeadlineExceeded as error:
            raise errors.DeadlineExceeded(f"{error}; appended 0 records") from error
        self._progress = _ProgressBar(self._request.files) if self._request.progress else None
        request = self._request
        appender = log.appender(
            producer=request.producer,
            fencing_token=request.fencing_token,
            compression=request.compression,
        )
        try:
            if request.producer is not None:
                await appender.open()
                self._to_pass = appender.next_sequence
            await self._append_inputs(appender)
        except (errors.SharedLogError, CliFailure, OSError) as error:
            self.failure = self.failure or error
        except BaseException:
            await appender.abort()
            self._take_outcomes()
            raise
        finally:
            if self._progress is not None:
                self._progress.close()
        for batch, _, _ in list(self._pending):
            await batch.wait()
        self._take_outcomes()
        await appender.close()

    async def _append_inputs(self, appender: Appender) -> None:
        parser = self._request.parser
        for file in self._request.files:
            async for chunk in chunks(file):
                try:
                    records = parser.feed(chunk)
                except CliFailure:
                    await self._hand_over(appender, parser.parsed_until_failure)
                    raise
                await self._hand_over(appender, records)
                if self.failure is not None:
                    return
            await self._hand_over(appender, parser.finish())

    async def _hand_over(self, appender: Appender, records: Sequence[RecordIn]) -> None:
        """Pack records into batches and give them to the appender, which bounds how many wait."""
        from sharedlog.batch import BatchBuilder

        builder, size = BatchBuilder(), 0
        if self._passed < self._to_pass:
            passed = min(self._to_pass - self._passed, len(records))
            self._passed += passed
            records = records[passed:]
        for value, key, headers in records:
            # A large record goes alone, so that no batch can exceed what is taken.
            full = (
                builder.encoded_bytes + len(value) > _BATCH_BYTES or len(builder) >= _BATCH_RECORDS
            )
            if len(builder) and full:
                await self._send(appender, builder, size)
                builder, size = BatchBuilder(), 0
            try:
                builder.append(value, key, headers)
            except errors.SharedLogError:
                if len(builder):
                    await self._send(appender, builder, size)
                raise
            size += len(value) + (len(key) if key else 0)
        if len(builder):
            await self._send(appender, builder, size)

    async def _send(self, appender: Appender, builder: BatchBuilder, size: int) -> None:
        count, first = len(builder), self._next_offset
        batch = await appender.append_batch(builder, match_offset=first)
        self._pending.append((batch, count, size))
        if first is not None:
            self._next_offset = first + count
        self._take_outcomes()

    def _take_outcomes(self) -> None:
        """Account for the batches at the front whose outcome is known."""
        while self._pending and self._pending[0][0].done:
            batch, count, size = self._pending.popleft()
            try:
                first = batch.first_offset()
            except errors.SharedLogError as error:
                if error.outcome == "indefinite":
                    self._indefinite += count
                else:
                    self._refused += count
                self.failure = self.failure or error
            else:
                self._take_success(first, count, size)
        if self._progress is not None:
            self._progress.update(self._records, self._bytes)

    def _take_success(self, first: int, count: int, size: int) -> None:
        if self._first is None:
            self._first = first
        elif first != self._end:
            self._gaps = True
        self._end = first + count
        self._records += count
        self._bytes += size
        if self._print_offsets:
            try:
                click.echo("\n".join(map(str, range(first, self._end))))
            except BrokenPipeError as error:  # said once, at the end, with what was appended
                self._print_offsets = False
                self.failure = self.failure or error

    def report(self, *, interrupted: bool = False) -> None:
        """Say what is in the log; after a failure, end the command with its exit code."""
        failure = self.failure
        # Without an answer, after an interruption: they may get into the log.
        self._indefinite += sum(count for _, count, _ in self._pending)
        self._pending.clear()
        reason = "interrupted" if interrupted else message_of(failure) if failure else None
        if self._settings.json:
            print_json(self._summary(reason))
        if reason is not None:
            note(f"error: {reason}; {self._sentence()}{self._doubts()}")
        elif not self._settings.json and not self._request.print_offsets:
            click.echo(self._sentence())
        if failure is not None and not interrupted:
            code = exit_code_of(failure)
            # Tried again as it is, it would append once more what is, or may be, in the log.
            repeats = code == EXIT_RETRY and (self._records or self._indefinite)
            raise SilentExit(EXIT_FAILED if repeats else code)

    def _summary(self, reason: str | None) -> Mapping[str, object]:
        return {
            "log": self._request.log_name,
            "first_offset": self._first,
            "last_offset": None if self._first is None else self._end - 1,
            "contiguous": not self._gaps,
            "records": self._records,
            "bytes": self._bytes,
            "seconds": round(monotonic() - self._started_s, 6),
            "indefinite_records": self._indefinite,
            "refused_records": self._refused,
            "passed_records": self._passed,
            "error": reason,
        }

    def _sentence(self) -> str:
        passed = f" ({plural(self._passed, 'record')} were there already)" if self._passed else ""
        if self._first is None:
            return f"appended 0 records{passed}"
        last = self._end - 1
        where = f"offset {last}" if self._first == last else f"offsets {self._first}..{last}"
        between = " (others wrote in between)" if self._gaps else ""
        return f"appended {plural(self._records, 'record')} at {where}{between}{passed}"

    def _doubts(self) -> str:
        may_be = (
            f", {plural(self._indefinite, 'record')} may be in the log" if self._indefinite else ""
        )
        is_not = "is not" if self._refused == 1 else "are not"
        are_not = f", {plural(self._refused, 'record')} {is_not}" if self._refused else ""
        return may_be + are_not


class _ProgressBar:
    """Bytes, records and speed on a terminal's stderr."""

    def __init__(self, files: Sequence[BinaryIO]) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TransferSpeedColumn

        sizes = [size_of(file) for file in files]
        total = None if None in sizes else sum(size or 0 for size in sizes)
        self._progress: Progress = Progress(
            TextColumn("appending"),
            BarColumn(),
            TextColumn("{task.fields[said]}"),
            TransferSpeedColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task: TaskID = self._progress.add_task("", total=total, said="")
        self._progress.start()
        self._next_s = 0.0

    def update(self, records: int, size: int) -> None:
        """Show how far it is; drawn a few times a second."""
        now_s = monotonic()
        if now_s >= self._next_s:
            self._next_s = now_s + _PROGRESS_EVERY_S
            said = f"{plural(records, 'record')}, {human_bytes(size)}"
            self._progress.update(self._task, completed=size, said=said)

    def close(self) -> None:
        """Take the bar away; what follows is the report."""
        self._progress.stop()
