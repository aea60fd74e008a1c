"""Whether the node serves, and if not, why not."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Readiness:
    """`reason` is one line for a person."""

    ready: bool
    reason: str


STARTING = Readiness(ready=False, reason="starting")
SERVING = Readiness(ready=True, reason="serving")
STOPPING = Readiness(ready=False, reason="shutting down")
