"""The command starts fast because it imports little."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("grpc", "google.protobuf", "rich", "asyncio", "tomllib", "subprocess", "logging")


def _imported_after(code: str, environment: dict[str, str]) -> list[str]:
    probe = f"{code}\nimport sys\nprint(*[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-P", "-c", probe],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    return done.stdout.splitlines()[-1].split()


def test_the_commands_module_imports_nothing_heavy(environment: dict[str, str]) -> None:
    """`import sharedlog.cli` pulls in neither gRPC nor rich nor asyncio."""
    assert _imported_after("import sharedlog.cli", environment) == []


@pytest.mark.parametrize("arguments", [["--help"], ["statu"], ["append", "--help"]])
def test_answers_that_need_no_cluster_import_nothing_heavy(
    environment: dict[str, str], arguments: list[str]
) -> None:
    """Help, and a word that is mistyped, are answered without loading the client.

    A command's own help loads its module, which may take what is cheap.
    """
    code = (
        f"import sys, sharedlog.cli\nsys.argv = ['sharedlog', *{arguments!r}]\n"
        "try:\n    sharedlog.cli.main()\nexcept SystemExit:\n    pass"
    )
    imported = _imported_after(code, environment)
    if arguments[0] == "append":
        assert not {"grpc", "google.protobuf", "rich"} & set(imported)
    else:
        assert imported == []
