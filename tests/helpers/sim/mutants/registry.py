"""What a mutant is, and the list of all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import pytest

Patch = pytest.MonkeyPatch


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """A defect."""

    breaks: str
    apply: Callable[[Patch], None]
    mix: str
    seeds: int
    kinds: frozenset[str]  # of violations, one of which must be among those found
    first: int = 1  # seed: a rare one is not looked for where it is known not to show


MUTANTS: Final[dict[str, Mutant]] = {}

_Apply = Callable[[Patch], None]


def mutant(
    breaks: str, *, mix: str, seeds: int = 40, kinds: str, first: int = 1
) -> Callable[[_Apply], _Apply]:
    """Make a defect known by the name of the function that brings it in."""

    def register(apply: _Apply) -> _Apply:
        MUTANTS[apply.__name__] = Mutant(
            breaks=breaks,
            apply=apply,
            mix=mix,
            seeds=seeds,
            kinds=frozenset(kinds.split()),
            first=first,
        )
        return apply

    return register
