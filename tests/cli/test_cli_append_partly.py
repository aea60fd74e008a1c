"""`sharedlog append` that fails half-way: no exit code invites to append the same again."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from helpers.memory_thread import memory_thread

from sharedlog.cli.root import cli as root
from sharedlog.errors import LogUnavailable, ProtocolError, SharedLogError

LINE = b"x" * 600_000 + b"\n"  # more than a batch


@pytest.mark.parametrize(
    ("answers", "code", "records", "indefinite", "refused"),
    [
        ([LogUnavailable("no quorum")] * 1_000, 4, 0, 0, 2),
        ([None, *[LogUnavailable("no quorum")] * 1_000], 1, 1, 0, 1),
        ([None, *[ProtocolError("of a newer version")] * 1_000], 1, 1, 1, 0),
    ],
    ids=["nothing", "a part", "perhaps"],
)
def test_trying_again_is_advised_only_while_nothing_is_in_the_log(
    answers: list[SharedLogError | None], code: int, records: int, indefinite: int, refused: int
) -> None:
    """Exit code 4 says that the command may be repeated as it is. Once a record is in the log, or
    may be, a repetition would append it twice: then it is 1, however retryable the error."""
    with memory_thread("orders") as memory:
        memory.memory.nodes["n1"].faults.batch_errors.extend(answers)
        command = ["append", "orders", "--json", "--timeout", "0.5", "-a", memory.address]
        result = CliRunner().invoke(root, command, input=LINE + LINE)
    assert result.exit_code == code, result.output
    summary = json.loads(result.stdout)
    found = [summary[f"{kind}records"] for kind in ("", "indefinite_", "refused_")]
    assert found == [records, indefinite, refused]
