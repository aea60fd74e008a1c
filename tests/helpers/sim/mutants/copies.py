"""Defects of those who see to it that every replica has everything (field note 31)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from helpers.sim.mutants.registry import Patch, mutant

from node.controller.open_looks import OpenLooks
from node.controller.tend import Tending
from sequencer.loglets import ActiveLoglet
from sequencer.replication import Replication


@mutant("a log that rests is not opened at a server that was away", mix="power cuts", kinds="stuck")
def rests_unopened(patch: Patch) -> None:
    bring_back = Replication._bring_back

    def _bring_back(self: Replication, active: ActiveLoglet) -> None:
        if active.core.in_flight:
            bring_back(self, active)

    patch.setattr(Replication, "_bring_back", _bring_back)


@mutant("what a replica lacks of an open segment stays so", mix="power cuts", kinds="stuck")
def open_segments_stay_short(patch: Patch) -> None:
    async def due(self: OpenLooks, picture: Any, is_due: Any) -> Sequence[str]:
        return ()

    patch.setattr(OpenLooks, "due", due)
    patch.setattr(Tending, "look_at_open", lambda self, name: None)
