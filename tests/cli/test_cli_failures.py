"""Exit codes and one-line messages."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sharedlog import errors
from sharedlog.cli.failures import CliFailure, exit_code_of, leaf_of, message_of
from sharedlog.cli.output import Cell, Column, format_plain, human_bytes, human_seconds, plural

CODES: dict[type[errors.SharedLogError], int] = {
    errors.LogNotFound: 3,
    errors.LogExists: 3,
    errors.OffsetOutOfRange: 3,
    errors.VersionMismatch: 3,
    errors.InvalidArgument: 2,
    errors.InvalidLogName: 2,
    errors.RecordTooLarge: 1,
    errors.BatchTooLarge: 1,
    errors.EmptyBatch: 1,
    errors.AppendIndefinite: 1,
    errors.DataLoss: 1,
    errors.ProducerFenced: 3,
    errors.CorruptBatch: 1,
}


def _subclasses(cls: type[errors.SharedLogError]) -> Iterator[type[errors.SharedLogError]]:
    for found in cls.__subclasses__():
        if found.__module__ == "sharedlog.errors":
            yield found
            yield from _subclasses(found)


@pytest.mark.parametrize("cls", list(_subclasses(errors.SharedLogError)))
def test_every_error_has_the_exit_code_that_its_class_says(
    cls: type[errors.SharedLogError],
) -> None:
    """Whose fault it is decides; a cluster's is 4 if it may pass, and an indefinite append's never
    is, for it must not be repeated blindly. The well-known ones are pinned above."""
    by_fault = {"call": 2, "data": 1, "state": 3, "cluster": 4 if cls.retryable else 1}
    code = exit_code_of(cls.__new__(cls))
    assert code == by_fault[cls.fault]
    assert code == CODES.get(cls, code)


def test_messages_are_one_line_whatever_they_hold() -> None:
    """A peer's text with newlines does not break the rule."""
    assert message_of(errors.ProtocolError("first\nsecond")) == "first second"
    assert message_of(CliFailure("a\n b")) == "a b"
    assert "unexpected ValueError: x y" in message_of(ValueError("x\ny"))
    assert message_of(FileNotFoundError(2, "No such file", "f")) == "f: No such file"


def test_unreachable_hints_at_what_to_do() -> None:
    """On this machine a cluster may not run; elsewhere the address may be wrong."""
    error = errors.Unreachable("connection refused")
    assert "sharedlog dev" in message_of(error, address="127.0.0.1:4100")
    assert "--address" in message_of(error, address="db7:4100")
    assert message_of(error) == "connection refused"


def test_an_unreachable_address_is_told_once_and_plainly() -> None:
    """The client's errors name the address too, and gRPC has many words for a closed port."""
    grpc_words = (
        "can't reach db7:4100: failed to connect to all addresses; last error: UNKNOWN: "
        "ipv4:10.0.0.7:4100: Failed to connect to remote host: connect: Connection refused (111)"
    )
    said = message_of(errors.Unreachable(grpc_words), address="db7:4100,db8:4100")
    assert said.startswith("can't reach db7:4100: connection refused (is the address right?")
    other = errors.Unreachable("can't reach db7:4100: the process closes its connections")
    said = message_of(other, address="db7:4100")
    assert said.startswith("can't reach db7:4100: the process closes its connections (is")


def test_the_error_in_a_task_group_is_found() -> None:
    """Groups are not shown to users."""
    inner = errors.LogNotFound(name="x")
    group = BaseExceptionGroup("g", [BaseExceptionGroup("h", [ValueError(), inner])])
    assert leaf_of(group) is inner


def test_plain_tables_are_aligned() -> None:
    """Text to the left, figures to the right, no blanks at the ends of lines."""
    table = format_plain(
        [Column("NAME"), Column("N", right=True), Column("X")],
        [["a", "10", ""], ["long", "7", Cell("red", "red")]],
    )
    assert table == "NAME   N  X\na     10\nlong   7  red"


def test_figures_for_people() -> None:
    """Units change where they should."""
    assert [human_bytes(n) for n in (0, 1023, 1024, 5 << 30)] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "5.0 GiB",
    ]
    assert human_bytes(3 << 40) == "3.0 TiB"
    assert [human_seconds(s) for s in (5.9, 65, 3_700, 90_000)] == [
        "5 s",
        "1 min 5 s",
        "1 h 1 min",
        "1 d 1 h",
    ]
    assert [plural(n, "log") for n in (0, 1, 1_234)] == ["0 logs", "1 log", "1,234 logs"]
