"""Named mixes of faults, each made to meet one kind of defect soon; see `mutants`.

A profile is a choice of faults and of the cluster's shape, and nothing else: clients do the same
and the checks are the same under every one. Without a profile each seed draws its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from helpers.sim.nemesis import Profile
from helpers.sim.scenario import TEMPOS, Shape


@dataclass(frozen=True, slots=True)
class Mix:
    """A profile, and the shape of the cluster if that matters."""

    profile: Profile
    shape: Shape | None = None
    archive: bool = False


_SLOW: Final = Shape(tempo=TEMPOS[2])
"""Much is under way at any moment."""

PROFILES: Final[dict[str, Mix]] = {
    "calm": Mix(Profile(weights={"jump_clock": 1.0}, repeat_probability=0.0), Shape()),
    "moves": Mix(
        Profile(weights={"reconfigure": 2.0, "reconfigure_at_once": 1.0}, mean_pause_s=1.0)
    ),
    # The network carries out many calls twice, the second time when the caller has gone on.
    "late repeats": Mix(
        Profile(weights={"pause_client": 1.0}, repeat_probability=0.8, mean_pause_s=3.0), Shape()
    ),
    # Sequencers that are replaced while they are still at work.
    "stale sequencers": Mix(
        Profile(
            weights={"pause": 2.0, "isolate": 3.0, "cut": 2.0, "break_connections": 1.0},
            mean_pause_s=1.0,
            wait_max_s=6.0,
        ),
        _SLOW,
    ),
    # Segments end while stores are under way to slow disks.
    "seals under load": Mix(
        Profile(
            weights={"pause": 1.0, "isolate": 2.0, "slow_disk": 2.0, "reconfigure_at_once": 2.0},
            mean_pause_s=0.7,
            wait_max_s=4.0,
        ),
        _SLOW,
    ),
    "power cuts": Mix(
        Profile(
            weights={"crash": 3.0, "crash_all": 2.0, "slow_disk": 1.0, "isolate": 1.0},
            mean_pause_s=1.0,
            wait_max_s=4.0,
        ),
        _SLOW,
    ),
    # Log servers that are slow to sync die while a segment is being ended.
    "crashes at seals": Mix(
        Profile(
            weights={"crash": 3.0, "slow_disk": 3.0, "isolate": 2.0, "reconfigure_at_once": 2.0},
            mean_pause_s=0.5,
            wait_max_s=3.0,
        ),
        _SLOW,
    ),
    "wipes": Mix(
        Profile(
            weights={"wipe": 4.0, "isolate": 1.0, "pause": 1.0, "slow_disk": 1.0, "crash": 0.5},
            mean_pause_s=1.0,
            wait_max_s=4.0,
        ),
        _SLOW,
    ),
    # Several repair one segment's tail at once, with different answers.
    "rival repairs": Mix(
        Profile(
            weights={"rivals": 5.0, "break_connections": 0.5},
            mean_pause_s=1.0,
            at_once_max=1,
            repeat_probability=0.3,
        ),
        Shape(nodes=5, tempo=TEMPOS[1]),
    ),
    # Sequencers that went on without knowing that they are replaced come back.
    "zombies": Mix(
        Profile(
            weights={"zombie": 5.0, "break_connections": 1.0, "slow_link": 0.5},
            mean_pause_s=1.0,
            at_once_max=2,
            wait_max_s=3.0,
        ),
        Shape(tempo=TEMPOS[1]),
    ),
    # Who still asks such a sequencer is the last to know.
    "lone clients": Mix(
        Profile(weights={"lone_client": 1.0}, mean_pause_s=0.5, at_once_max=1),
        Shape(tempo=TEMPOS[1]),
    ),
    "full disks": Mix(
        Profile(
            weights={"hiccup": 5.0},
            mean_pause_s=0.7,
            at_once_max=1,
        ),
        Shape(tempo=TEMPOS[1]),
    ),
    # The last copies but one are lost, and that one goes away.
    "lost copies": Mix(
        Profile(weights={"lost_copy": 1.0}, mean_pause_s=0.5, at_once_max=1, cool_down_s=4.0),
        Shape(nodes=5, tempo=TEMPOS[1]),
    ),
    "damaged copies": Mix(
        Profile(weights={"damaged_copy": 1.0}, mean_pause_s=0.5, at_once_max=1, cool_down_s=4.0),
        Shape(nodes=5, tempo=TEMPOS[1]),
    ),
    "tails": Mix(
        Profile(
            weights={"slow_link": 2.0, "isolate": 1.0, "break_connections": 1.0},
            mean_pause_s=0.7,
            wait_max_s=6.0,
        ),
        _SLOW,
    ),
    "three of three": Mix(
        Profile(weights={"zombie": 3.0}, mean_pause_s=1.0, at_once_max=1),
        Shape(nodes=4, replicas=3, write_quorum=3, tempo=TEMPOS[1]),
    ),
    "quorum lost": Mix(
        Profile(
            weights={"crash": 3.0, "break_connections": 3.0, "isolate": 2.0},
            mean_pause_s=0.7,
            wait_max_s=3.0,
        ),
        _SLOW,
    ),
    # History moves to an archive that is well, and is purged.
    "archive calm": Mix(
        Profile(weights={"jump_clock": 1.0}, repeat_probability=0.0), Shape(), archive=True
    ),
    # What it is told to do it does now, later, twice or not at all, and says nothing of it.
    "archive troubles": Mix(
        Profile(
            weights={"archive_trouble": 4.0, "archive_cut": 2.0, "crash": 1.0, "isolate": 0.5},
            mean_pause_s=1.0,
            wait_max_s=20.0,
        ),
        Shape(),
        archive=True,
    ),
    "archive damage": Mix(
        Profile(
            weights={"archive_damage": 4.0, "archive_cut": 0.5},
            mean_pause_s=0.7,
            wait_max_s=6.0,
        ),
        Shape(),
        archive=True,
    ),
    # Much is purged, and the log is taken over again and again.
    "archive takeovers": Mix(
        Profile(weights={"crash": 3.0, "reconfigure": 2.0}, mean_pause_s=1.0, wait_max_s=3.0),
        Shape(),
        archive=True,
    ),
    # Somebody restores an old copy of the bucket, and notices.
    "archive put back": Mix(
        Profile(weights={"archive_put_back": 1.0}, mean_pause_s=2.0, wait_max_s=4.0),
        Shape(),
        archive=True,
    ),
    "clocks": Mix(
        Profile(
            weights={"jump_clock": 2.0, "reconfigure": 1.0, "crash": 1.0},
            mean_pause_s=1.5,
            wait_max_s=3.0,
        ),
        Shape(),
    ),
}
