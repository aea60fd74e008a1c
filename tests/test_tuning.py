"""What our own processes tell the C library."""

from __future__ import annotations

import subprocess
import sys

import pytest

NOT_HERE = 77
SCRIPT = f"""
import ctypes, sys, threading
from pathlib import Path
from sharedlog.tuning import keep_freed_memory

if not keep_freed_memory():
    sys.exit({NOT_HERE})
made = []
def make():
    made.append(bytearray(b"x") * 1_000_000)
make()
thread = threading.Thread(target=make)
thread.start()
thread.join()
heaps = []
for line in Path("/proc/self/maps").read_text().splitlines():
    if line.endswith("[heap]"):
        heaps.append([int(it, 16) for it in line.split()[0].split("-")])
def on_heap(data):
    address = ctypes.addressof(ctypes.c_char.from_buffer(data))
    return any(start <= address < end for start, end in heaps)
if not on_heap(made[0]):
    sys.exit({NOT_HERE})
print(on_heap(made[1]))
"""


def test_threads_have_no_heaps_of_their_own() -> None:
    """What one thread has freed, another uses again."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], check=False, capture_output=True, text=True
    )
    if done.returncode == NOT_HERE:
        pytest.skip("the C library is not glibc, or has the heap elsewhere")
    assert (done.stdout.strip(), done.stderr) == ("True", "")
