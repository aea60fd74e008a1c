"""Defects of those who see to it that every replica has everything (field note 31)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from helpers.sim.mutants.registry import Patch, mutant

from node.controller.open_looks import OpenLooks
from node.controller.tend import Tending
from sequencer.loglets import ActiveLoglet
from sequencer.replication import Replication


@mutant(
    "a log that rests is not opened at a server that was away",
    mix="power cuts",
    first=36,
    kinds="stuck",
)
def rests_unopened(patch: Patch) -> None:
    def _lacks_all(active: ActiveLoglet, replica: int) -> bool:
        return False

    patch.setattr(Replication, "_lacks_all", staticmethod(_lacks_all))


@mutant("what a replica lacks of an open segment stays so", mix="power cuts", kinds="stuck")
def open_segments_stay_short(patch: Patch) -> None:
    async def due(self: OpenLooks, picture: Any, is_due: Any) -> Sequence[str]:
        return ()

    patch.setattr(OpenLooks, "due", due)
    patch.setattr(Tending, "look_at_open", lambda self, name: None)
