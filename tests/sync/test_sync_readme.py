"""What README says of the blocking client runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from helpers.memory_thread import memory_thread

README = Path(__file__).parent.parent.parent / "README.md"


def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """Word for word, but for the address."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    (example,) = [block for block in blocks if "sharedlog.sync" in block]
    assert '"127.0.0.1:4100"' in example
    with memory_thread("greetings") as memory:
        exec(example.replace("127.0.0.1:4100", memory.address), {})
    lines = capsys.readouterr().out.splitlines()
    assert lines[:4] == ["at offset 0", "the last one is at 1000", "0 b'hello'", "1 b'0'"]
    assert len(lines) == 2 + 1_001
