"""Defects to be found: each takes one guard away from the real code, and nothing else.

The list is that of the model's mutants (`docs/model/`), as far as it applies to code, and some
more of which the field notes tell. Every hook is here; nothing in the product knows of it. Each
names the mix of faults (`profiles.py`) in which it shows soonest, and within how many seeds.
"""

from helpers.sim.mutants import (  # noqa: F401  they make themselves known
    archive,
    copies,
    log,
    log_server,
    readers,
    state,
)
from helpers.sim.mutants.registry import MUTANTS, Mutant

__all__ = ["MUTANTS", "Mutant"]
