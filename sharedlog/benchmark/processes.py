"""Memory and CPU of processes, from /proc.

`RssAnon` is what a process has for itself; `VmRSS` would count the pages of the LMDB file that the
kernel keeps mapped and takes back when it likes. Both are looked at only where /proc exists: on
other systems there is nothing to report, and that is what is reported.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sharedlog.clock import Clock

_PROC = Path("/proc")
SAMPLE_S = 0.25


@dataclass(slots=True)
class Usage:
    """What one process used during a run."""

    name: str
    pid: int
    rss_anon_mb_first: float = 0.0
    rss_anon_mb_max: float = 0.0
    rss_anon_mb_last: float = 0.0
    cpu_s_first: float = 0.0
    cpu_s_last: float = 0.0
    samples: int = 0

    @property
    def cpu_s(self) -> float:
        """Processor time, user and system, during the run."""
        return self.cpu_s_last - self.cpu_s_first

    def add(self, rss_anon_mb: float, cpu_s: float) -> None:
        """Take in one sample."""
        if self.samples == 0:
            self.rss_anon_mb_first, self.cpu_s_first = rss_anon_mb, cpu_s
        self.samples += 1
        self.rss_anon_mb_max = max(self.rss_anon_mb_max, rss_anon_mb)
        self.rss_anon_mb_last, self.cpu_s_last = rss_anon_mb, cpu_s


class UsageSampler:
    """Watches processes while something else runs.

    Args:
        pids: name -> process id. A process that ends is left as it was last seen.
    """

    def __init__(self, pids: Mapping[str, int], clock: Clock, *, proc: Path = _PROC) -> None:
        self.usages = [Usage(name, pid) for name, pid in pids.items()]
        self._clock = clock
        self._proc = proc

    def sample(self) -> None:
        """Look once at every process."""
        for usage in self.usages:
            rss_anon_mb, cpu_s = (
                read_rss_anon_mb(usage.pid, self._proc),
                read_cpu_s(usage.pid, self._proc),
            )
            if rss_anon_mb is not None and cpu_s is not None:
                usage.add(rss_anon_mb, cpu_s)

    async def run(self) -> None:
        """Sample until cancelled. **Cancellation:** the way to end it."""
        while True:
            self.sample()
            await self._clock.sleep(SAMPLE_S)

    def restart(self) -> None:
        """Forget what was seen: the run begins now."""
        self.usages = [Usage(usage.name, usage.pid) for usage in self.usages]
        self.sample()


def read_rss_anon_mb(pid: int, proc: Path = _PROC) -> float | None:
    """Anonymous memory in MB (10^6 bytes); None if the process, or /proc, is not there."""
    try:
        status = (proc / str(pid) / "status").read_text()
    except OSError:
        return None
    for line in status.splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024 / 1e6
    return None


def read_cpu_s(pid: int, proc: Path = _PROC) -> float | None:
    """User and system time of all its threads since it started; None if it is not there."""
    try:
        stat = (proc / str(pid) / "stat").read_text()
    except OSError:
        return None
    # The second field is the program's name in parentheses and may hold blanks.
    fields = stat.rpartition(")")[2].split()
    user_ticks, system_ticks = int(fields[11]), int(fields[12])
    return (user_ticks + system_ticks) / float(os.sysconf("SC_CLK_TCK"))
