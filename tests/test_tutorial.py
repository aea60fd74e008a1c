"""The tutorial is true: its code runs as it stands, in order, and prints what it says."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import inspect
import io
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType
from typing import Final

import pytest
from helpers.processes import PATIENT

from sharedlog.dev_cluster import DevCluster, module_environment

TUTORIAL: Final = Path(__file__).parents[1] / "docs" / "tutorial.md"
ADDRESS: Final = "127.0.0.1:4100"
"""Where the reader's cluster is."""
NOT_RUN: Final = "sharedlog dev\n"
"""The test has a cluster of its own."""


@dataclass(frozen=True, slots=True)
class Block:
    """Code of the tutorial, and what it is said to print."""

    line: int
    language: str
    code: str
    printed: str | None


def _blocks() -> list[Block]:
    """What is to be run, in order."""
    text = TUTORIAL.read_text()
    found: list[Block] = []
    for fence in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        line = text.count("\n", 0, fence.start()) + 1
        language, code = fence[1], fence[2]
        if language == "text":
            last = found.pop()
            assert last.printed is None, f"line {line}: there are two outputs of the same code"
            found.append(Block(last.line, last.language, last.code, code))
        else:
            found.append(Block(line, language, code, None))
    return found


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[DevCluster]:
    """Three nodes without a log."""
    async with DevCluster(tmp_path, settings=PATIENT) as running:
        yield running


def test_blocks_are_of_languages_that_are_run() -> None:
    """There are many, and none that nobody runs."""
    blocks = _blocks()
    assert len(blocks) > 10
    assert {block.language for block in blocks} == {"python", "sh"}
    assert [block.code for block in blocks].count(NOT_RUN) == 1


@pytest.mark.cluster
@pytest.mark.slow
async def test_the_tutorial_prints_what_it_says(cluster: DevCluster) -> None:
    """Each block is run as a reader would; what it prints is what the text shows, if it does."""
    names: dict[str, object] = {"__name__": "__main__"}
    for block in _blocks():
        if block.code == NOT_RUN:
            continue
        code = block.code.replace(ADDRESS, cluster.address)
        if block.language == "sh":
            printed = await _run_in_shell(code, cluster.address)
        else:
            printed = await _run_python(code, names, block.line)
        where = f"{TUTORIAL.name}, line {block.line}"
        if block.printed is not None:
            assert printed == block.printed, where
        else:
            assert not printed or block.language == "sh", where


async def _run_python(code: str, names: dict[str, object], line: int) -> str:
    """Run what may await at its top level, as `python -m asyncio` does; what it prints."""
    # Blank lines before it: a traceback names the line of the tutorial.
    compiled = compile(
        "\n" * line + code, str(TUTORIAL), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True
    )
    assert isinstance(compiled, CodeType)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        outcome = FunctionType(compiled, names)()
        if inspect.iscoroutine(outcome):
            await outcome
    return printed.getvalue()


async def _run_in_shell(code: str, address: str) -> str:
    """Run commands, none of which may fail."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = await asyncio.to_thread(
        subprocess.run,
        ["sh", "-e", "-c", code],
        capture_output=True,
        check=False,
        env=module_environment() | {"PATH": path, "SHAREDLOG_ADDRESS": address},
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
