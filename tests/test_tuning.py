"""What our own processes tell the C library."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import sys, threading
from pathlib import Path
from sharedlog.tuning import keep_freed_memory

if not keep_freed_memory():
    sys.exit("another C library")
made = []
thread = threading.Thread(target=lambda: made.append(bytearray(b"x") * 1_000_000))
thread.start()
thread.join()
lines = Path("/proc/self/maps").read_text().splitlines()
[heap] = [line.split()[0].split("-") for line in lines if line.endswith("[heap]")]
import ctypes
address = ctypes.addressof(ctypes.c_char.from_buffer(made[0]))
print(int(heap[0], 16) <= address < int(heap[1], 16))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc alone is tuned")
def test_threads_have_no_heaps_of_their_own() -> None:
    """What one thread has freed, another uses again."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], check=False, capture_output=True, text=True
    )
    if done.returncode:
        assert done.stderr.strip() == "another C library"
        pytest.skip("not glibc")
    assert done.stdout.strip() == "True"
