"""The demo as a user runs it, on small input."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def start_demo(scratch: Path, *arguments: str) -> subprocess.Popen[str]:
    scratch.mkdir()
    return subprocess.Popen(
        [sys.executable, "-m", "bench.demo", *arguments],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(scratch), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def processes_of(scratch: Path) -> list[str]:
    """Command lines of processes that name the directory."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if str(scratch) in line:
                found.append(line)
    return found


@pytest.mark.slow
@pytest.mark.cluster
def test_the_demo_passes_on_odd_input_and_leaves_nothing(tmp_path: Path) -> None:
    """A node is killed half-way and comes back, every record is read again, and the digest is that
    of a computation of our own."""
    folder = tmp_path / "input"
    folder.mkdir()
    files = {
        "a.txt": b"\n\nx\n" * 2_000,
        "b.bin": os.urandom(40_000),
        "c": b"no line feed at the end",
    }
    expected, records = hashlib.sha256(), 0
    for name, content in files.items():
        (folder / name).write_bytes(content)
        for line in content.removesuffix(b"\n").split(b"\n"):
            key = name.encode()
            expected.update(struct.pack("<II", len(key), len(line)) + key + line)
            records += 1
    scratch = tmp_path / "scratch"
    with start_demo(scratch, "--input", str(folder)) as demo:
        out, err = demo.communicate(timeout=90)
    assert demo.returncode == 0, out + err
    assert f"PASS: all {records:,} records" in out
    assert out.count(expected.hexdigest()) == 2  # written and read
    killed = re.search(r"(\d+)%  kill -9 (n\d) ", out)
    assert killed is not None
    assert 50 <= int(killed[1]) < 75
    assert f"sequencer on {killed[2]}" not in out
    assert f"{killed[2]} is back" in out
    assert list(scratch.iterdir()) == []
    assert processes_of(scratch) == []


@pytest.mark.slow
@pytest.mark.parametrize(("make", "said"), [("missing", "no such file"), ("empty", "is empty")])
def test_input_that_can_not_be_used_is_refused_in_one_line(
    tmp_path: Path, make: str, said: str
) -> None:
    path = tmp_path / "in"
    if make == "empty":
        path.mkdir()
    with start_demo(tmp_path / "scratch", "--input", str(path)) as demo:
        _, err = demo.communicate(timeout=30)
    assert demo.returncode == 2
    assert said in err
    assert str(path) in err
    assert err.count("\n") == 1


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_stops_its_nodes_and_removes_their_data(
    tmp_path: Path, number: signal.Signals
) -> None:
    scratch = tmp_path / "scratch"
    with start_demo(scratch) as demo:
        assert demo.stdout is not None
        for line in demo.stdout:
            if "three nodes run" in line:
                break
        assert processes_of(scratch)
        demo.send_signal(number)
        _, err = demo.communicate(timeout=30)
    assert demo.returncode == 130
    assert err == "interrupted\n"
    assert list(scratch.iterdir()) == []
    deadline = time.monotonic() + 5.0
    while processes_of(scratch):
        assert time.monotonic() < deadline
        time.sleep(0.05)
