"""What a sealed loglet has damaged, for the answer to its seal.

Everything in [committed tail, local tail) is read from the disk and compared with its checksums.
That is little as a rule: what a sequencer had in flight. But a server that was filled by backfill
and then restarted may know of a committed tail far below what it holds, and who asks does not wait
for long. He asks again, so how far a look came is remembered: it goes on there, and each offset is
verified once. Nothing is left out: an answer is given when all of the range was looked at.

Between two looks the loglet is sealed, and only repairs change it. They are verified when they are
stored, so what one replaces is not damaged any more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from loglet.digest import DigestService, Range
from loglet.ranges import OffsetRanges
from sharedlog.batch import parse_placement
from sharedlog.ids import LogletId, Offset

REMEMBERED_MAX: Final = 256
"""Loglets of which a look is remembered; the one that was asked for longest ago is let go."""


class _Look:
    """What was found of one loglet so far."""

    def __init__(self, start: Offset) -> None:
        self.start = start
        self.upto = start  # all that is held of [start, upto) was verified
        self.damaged = OffsetRanges()
        self.repaired = OffsetRanges()  # since it began, maybe while it was being read

    def damaged_from(self, start: Offset) -> list[Range]:
        """What of [start, upto) is damaged."""
        found = OffsetRanges(self.damaged)
        found.remove(self.start, start)
        for first, end in self.repaired:
            found.remove(first, end)
        return list(found)


class SealLooks:
    """See the module's docstring."""

    def __init__(self, digests: DigestService) -> None:
        self._digests = digests
        self._looks: dict[LogletId, _Look] = {}

    async def damaged(self, loglet: LogletId, start: Offset, end: Offset) -> list[Range]:
        """Held ranges of [start, end) that are damaged; the loglet is sealed.

        **Cancellation:** ends the look, which goes on where it was when it is asked for again.

        Raises:
            StoreFailed: the disk can't be read.
        """
        look = self._looks.pop(loglet, None)
        anew = look is None or start < look.start
        if look is None or anew:
            look = _Look(start)
        self._looks[loglet] = look
        while len(self._looks) > REMEMBERED_MAX:
            del self._looks[next(iter(self._looks))]
        pages = 0
        look.upto = max(look.upto, start)
        while look.upto < end:
            batches = await self._digests.verify(loglet, look.upto, end)
            pages += 1
            for batch in batches:
                if batch.placement_bytes is None:
                    look.damaged.add(batch.first, batch.end)
            look.upto = max(look.upto, batches[-1].end if batches else end)
        if anew and pages <= 1 and self._looks.get(loglet) is look:
            del self._looks[loglet]  # that was no trouble
        return look.damaged_from(start)

    def on_repaired(self, loglet: LogletId, batches: Sequence[bytes]) -> None:
        """These placed batches were stored by a repair."""
        look = self._looks.get(loglet)
        if look is not None:
            for placement in map(parse_placement, batches):
                look.repaired.add(placement.first, placement.end)
