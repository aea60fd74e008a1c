"""How long a log keeps its records, and how amounts are typed: 7d, 12h, 500MB, 10GiB.

A record leaves the log servers once the log has more than `local_bytes` there, or the record is
older than `local_age_s`; it is in the archive by then. It leaves the log, and the archive, once it
is older than `total_age_s`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from sharedlog.errors import InvalidArgument

RETENTION_SETTINGS: Final[Mapping[str, str]] = MappingProxyType(
    {"local_bytes": "local_bytes", "local_age": "local_age_s", "total_age": "total_age_s"}
)
"""Names of the settings, in the order in which they are told, and the fields that hold them."""

NO_LIMIT: Final = 0
"""What is given to say that there is to be no limit, where None says nothing in particular."""

RETENTION_MAX: Final = 2**63 - 1
"""The largest amount, of bytes or seconds."""

SINCE_CREATION: Final = "log"
"""Source of a setting that is no longer what the log was created with."""

_SECONDS: Final[Mapping[str, int]] = MappingProxyType({"d": 86_400, "h": 3_600, "m": 60, "s": 1})
_BYTES: Final[Mapping[str, int]] = MappingProxyType(
    {f"{prefix}iB": 1 << 10 * power for power, prefix in reversed([*enumerate("KMGT", 1)])}
    | {f"{prefix}B": 1_000**power for power, prefix in reversed([*enumerate("KMGT", 1)])}
    | {"B": 1}
)
_AMOUNT: Final = re.compile(r"([0-9]{1,19})([A-Za-z]*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """How long a log keeps its records.

    Of a log, None is no limit. Where something is asked for or set, None says nothing in
    particular: what is inherited, or what there is, stays; 0 says that there is to be no limit.
    """

    local_bytes: int | None = None
    """Kept on the log servers, in bytes of each copy; older records are in the archive alone."""
    local_age_s: int | None = None
    """Kept on the log servers, in seconds since the append."""
    total_age_s: int | None = None
    """Kept at all, in seconds since the append; not less than `local_age_s`."""

    def over(self, other: Retention) -> Retention:
        """What this says, and where it says nothing, what `other` says."""
        return Retention(
            local_bytes=other.local_bytes if self.local_bytes is None else self.local_bytes,
            local_age_s=other.local_age_s if self.local_age_s is None else self.local_age_s,
            total_age_s=other.total_age_s if self.total_age_s is None else self.total_age_s,
        )

    def limits(self) -> Retention:
        """As a log has it: None for what is not limited."""
        return Retention(
            local_bytes=self.local_bytes or None,
            local_age_s=self.local_age_s or None,
            total_age_s=self.total_age_s or None,
        )

    def amount(self, setting: str) -> int | None:
        """Of one of `RETENTION_SETTINGS`."""
        found: int | None = getattr(self, RETENTION_SETTINGS[setting])
        return found

    def text(self, setting: str) -> str:
        """One of `RETENTION_SETTINGS` as a person would type it; empty: no limit, or nothing."""
        return amount_text(setting, self.amount(setting) or NO_LIMIT)


NO_RETENTION: Final = Retention()
"""Of a log: no limit. Where something is asked for or set: nothing in particular."""


def check_retention(retention: Retention) -> None:
    """Raises `InvalidArgument`, with the reason, for what can't be."""
    for setting, field in RETENTION_SETTINGS.items():
        amount = retention.amount(setting)
        if amount is not None and not NO_LIMIT <= amount <= RETENTION_MAX:
            raise InvalidArgument(f"{field} is {amount}; it must be from 0, no limit, to 2**63 - 1")
    local, total = retention.local_age_s, retention.total_age_s
    if local and total and total < local:
        raise InvalidArgument(
            f"a total age of {duration_text(total)} is less than the local age of "
            f"{duration_text(local)}: what is purged can't stay on the log servers"
        )


def retention_sources(
    retention: Retention, created_with: Sequence[tuple[str, str, str]]
) -> list[tuple[str, str, str]]:
    """(setting, value, source) of each setting of a log that was created with `created_with`.

    One that was changed since has the source `SINCE_CREATION`.
    """
    at_creation = {name: (value, source) for name, value, source in created_with}
    found = []
    for setting in RETENTION_SETTINGS:
        value, source = at_creation.get(setting, ("", "default"))
        now = retention.text(setting)
        found.append((setting, now, source if now == value else SINCE_CREATION))
    return found


def amount_text(setting: str, amount: int) -> str:
    """An amount of one of `RETENTION_SETTINGS` as a person would type it; empty: no limit."""
    if amount == NO_LIMIT:
        return ""
    return bytes_text(amount) if setting == "local_bytes" else duration_text(amount)


def duration_text(seconds: int) -> str:
    """7d, 12h, 30m or 90s: in the largest unit in which it is whole."""
    return _text(seconds, _SECONDS)


def bytes_text(count: int) -> str:
    """10GiB, 500MB or 123B: in the largest unit in which it is whole."""
    return _text(count, _BYTES)


def parse_duration(text: str) -> int:
    """Seconds of 7d, 12h, 30m or 90s; `NO_LIMIT` of "none".

    Raises:
        InvalidArgument: it reads otherwise, or is nothing or too much.
    """
    return _parse(text, _SECONDS, "no duration: a number with d, h, m or s is needed, e.g. 7d")


def parse_bytes(text: str) -> int:
    """Bytes of 10GiB, 500MB or 123B, up to TiB; `NO_LIMIT` of "none".

    Raises:
        InvalidArgument: it reads otherwise, or is nothing or too much.
    """
    return _parse(text, _BYTES, "no size: a number with its unit is needed, e.g. 10GiB or 500MB")


def _text(amount: int, units: Mapping[str, int]) -> str:
    found = ((amount // size, unit) for unit, size in units.items() if amount % size == 0)
    count, unit = min(found, key=lambda it: it[0])
    return f"{count}{unit}"


def _parse(text: str, units: Mapping[str, int], wanted: str) -> int:
    if text == "none":
        return NO_LIMIT
    read = _AMOUNT.fullmatch(text)
    if read is None or read[2] not in units:
        raise InvalidArgument(f"{text!r} is {wanted}; or none")
    amount = int(read[1]) * units[read[2]]
    if amount == 0:
        raise InvalidArgument(f"{text!r} would keep nothing; no limit is said by none")
    if amount > RETENTION_MAX:
        raise InvalidArgument(f"{text!r} is too much")
    return amount
