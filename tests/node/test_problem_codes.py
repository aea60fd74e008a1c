"""Every problem that `status` may tell of has a code, and the handbook says what to do about it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from node.problem_codes import ProblemCode

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "operations.md"
SECTION = re.compile(r"^### `([\w-]+)`\n\n(.+?)(?=^#|\Z)", re.MULTILINE | re.DOTALL)


def test_every_code_has_a_section_of_the_handbook() -> None:
    """And no section is of a problem that there is not; each says something."""
    sections = dict(SECTION.findall(PAGE.read_text()))
    assert sorted(sections) == sorted(ProblemCode)
    short = [code for code, text in sections.items() if len(text.split()) < 20]
    assert not short, "says too little to act on"


def test_every_code_is_told_by_something() -> None:
    """A code that nothing tells any more has no place in the handbook."""
    used = {
        node.attr
        for path in (ROOT / "node").rglob("*.py")
        if path.name != "problem_codes.py"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id in ("Code", "ProblemCode")
    }
    assert used == set(ProblemCode.__members__)
