"""What an operator can set of the controller, and of the scrub that every node does."""

from __future__ import annotations

from dataclasses import dataclass

from sharedlog.limits import MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class ControllerConfig:
    """Section `[controller]`. Times are seconds, rates bytes a second."""

    lease_ttl_s: float = 3.0
    """A controller whose lease has not changed for so long, by the clock of the node that looks at
    it, is replaced. At least three times `lease_renew_s`."""

    lease_renew_s: float = 1.0
    """How often the holder renews the lease, and the others look at it."""

    heartbeat_s: float = 0.5
    """How often the controller asks each node whether it is there; also the longest wait for the
    answer."""

    missed_max: int = 3
    """Heartbeats in a row without an answer after which a node counts as silent, and what it
    orders is moved. At least 1."""

    replace_after_s: float = 60.0
    """A log server that stays away for so long is replaced in the open segments that name it, if
    another can take its place."""

    rereplicate_after_s: float = 3600.0
    """A log server that stays away for so long is replaced in closed segments too: all of its data
    is copied. At least `replace_after_s`. 0: only when its store is known to be lost."""

    failovers_max: int = 16
    """Logs that the controller moves at the same time. At least 1."""

    balance_after_s: float = 60.0
    """Sequencers are not moved for balance before the controller has been at work for so long:
    after a restart of the cluster the nodes come back one by one."""

    balance_pause_s: float = 10.0
    """Least time between two moves of one log for balance."""

    backfill_every_s: float = 60.0
    """How often open segments are looked at for holes. Closed ones are looked at when they close
    and when a node comes back."""

    backfill_bytes_per_s: int = 64 * MIB
    """Bound on what the controller copies, in backfill and re-replication together."""

    sweep_every_s: float = 86400.0
    """How often every closed segment is looked at again, whatever was found before."""

    scrub_every_s: float = 604800.0
    """How often each node reads all that its own store holds and compares checksums; default a
    week. What is damaged is repaired from other replicas."""

    scrub_bytes_per_s: int = 8 * MIB
    """Bound on what the scrub reads. 0: no scrub."""

    def validate(self) -> None:
        """Raises `ValueError` for what can't be right."""
        for name in ("lease_renew_s", "heartbeat_s", "backfill_every_s", "sweep_every_s"):
            _need(getattr(self, name) > 0, f"{name} must be above 0")
        _need(
            self.lease_ttl_s >= 3 * self.lease_renew_s,
            "lease_ttl_s must be at least three times lease_renew_s: one late renewal is no end",
        )
        _need(self.missed_max >= 1, "missed_max must be at least 1")
        _need(self.failovers_max >= 1, "failovers_max must be at least 1")
        _need(self.backfill_bytes_per_s > 0, "backfill_bytes_per_s must be above 0")
        _need(self.scrub_every_s > 0, "scrub_every_s must be above 0")
        _need(self.scrub_bytes_per_s >= 0, "scrub_bytes_per_s can't be negative")
        for name in ("replace_after_s", "balance_after_s", "balance_pause_s"):
            _need(getattr(self, name) >= 0, f"{name} can't be negative")
        _need(
            self.rereplicate_after_s == 0 or self.rereplicate_after_s >= self.replace_after_s,
            "rereplicate_after_s must be 0, or at least replace_after_s",
        )


def _need(condition: bool, problem: str) -> None:
    if not condition:
        raise ValueError(problem)
