"""Namespaces: what logs inherit by the beginning of their names, and what may be set.

A namespace is a prefix that ends with "/", or the empty one, of every log. It sets some settings
and leaves the others to be inherited: **a log takes each setting from the longest of its prefixes
that sets it**, unless who creates it asks for something else; what nobody sets is the cluster's
default, and a write quorum that nobody sets is the majority of the replicas.

    ""            replicas 3
    "team/"       spread zone:2
    "team/tmp/"   replicas 1, spread none          team/tmp/x: replicas 1, write quorum 1, no spread
                                                   team/jobs:  replicas 3, write quorum 2, zone:2

Where its writers are (`near`, see `core.py`) nobody need say; a namespace that says "" takes back
what a shorter one says. How long records are kept (`sharedlog/retention.py`) are three settings
more, which nobody need set: without limit by default. A namespace that says 0 ends a limit that a
shorter one sets.

**Each setting by itself.** A write quorum of 2 that "team/" sets holds for "team/big/", which sets
5 replicas, and 2 of 5 is no majority. What can't be together is refused when it is set, with where
each part comes from: a change is checked against everything at and below its prefix
(`check_change`). Changes of two prefixes at once are not checked against each other, for each is a
value of its own in the metadata store; should they contradict, creating a log says so.

**At creation only.** The log keeps what was in force then, and from where (`created_with`). Later
changes of a namespace do not change existing logs: `log reconfigure` and `log set` do. A log does
not keep of a limit that nobody set that it was not set: most logs have none.

Pure functions of records. `namespace_registry.py` has the procedures over a store.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Generic, TypeVar

from metadata.core import check_near, check_quorum, majority
from metadata.quorum import format_spread, make_spread
from metadata.records import CreatedWith, NamespaceRecord, Spread
from sharedlog.errors import InvalidArgument
from sharedlog.limits import LOG_NAME_CHARS_MAX, NAMESPACES_MAX
from sharedlog.retention import (
    NO_LIMIT,
    NO_RETENTION,
    RETENTION_SETTINGS,
    Retention,
    amount_text,
    check_retention,
)

PLACEMENT_SETTINGS: Final = ("replicas", "write_quorum", "spread", "near")
SETTINGS: Final = (*PLACEMENT_SETTINGS, *RETENTION_SETTINGS)
"""Names of the settings, in the order in which they are told."""

ASKED: Final = "create"
DEFAULT: Final = "default"

_PREFIX: Final = re.compile(rf"([A-Za-z0-9][A-Za-z0-9._/-]{{0,{LOG_NAME_CHARS_MAX - 3}}}/)?")

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the creator of a log asks for; None: nothing in particular."""

    replicas: int | None = None
    write_quorum: int | None = None
    spread: Spread | None = None
    near: str | None = None
    retention: Retention = NO_RETENTION


@dataclass(frozen=True, slots=True)
class Sourced(Generic[_T]):
    """A setting's value and where it comes from: `ASKED`, `DEFAULT` or "namespace:PREFIX"."""

    value: _T
    source: str


@dataclass(frozen=True, slots=True)
class Settings:
    """What is in force for a log."""

    replicas: Sourced[int]
    write_quorum: Sourced[int]
    spread: Sourced[Spread]
    near: Sourced[str]
    limits: Mapping[str, Sourced[int]]  # by the names in `RETENTION_SETTINGS`, in that order

    @property
    def retention(self) -> Retention:
        """As a log has it."""
        fields = {RETENTION_SETTINGS[name]: it.value for name, it in self.limits.items()}
        return Retention(**fields).limits()

    def told(self) -> CreatedWith:
        """Each setting, its value as it is typed, and its source."""
        return (*self._told_placement(), self._told_near(), *self._told_retention())

    def kept(self) -> CreatedWith:
        """As a log keeps it: without the wishes and the limits that nobody has set."""
        wishes = (self._told_near(), *self._told_retention())
        set_by_somebody = [it for it in wishes if it[2] != DEFAULT]
        return (*self._told_placement(), *set_by_somebody)

    def _told_placement(self) -> CreatedWith:
        return (
            ("replicas", str(self.replicas.value), self.replicas.source),
            ("write_quorum", str(self.write_quorum.value), self.write_quorum.source),
            ("spread", format_spread(self.spread.value), self.spread.source),
        )

    def _told_near(self) -> tuple[str, str, str]:
        return "near", self.near.value, self.near.source

    def _told_retention(self) -> CreatedWith:
        return tuple(
            (name, amount_text(name, it.value), it.source) for name, it in self.limits.items()
        )

    def check(self) -> None:
        """Raises `InvalidArgument`, with the reason and the sources, for what can't be."""
        told = self._told_placement()
        try:
            check_quorum(
                replicas=self.replicas.value,
                write_quorum=self.write_quorum.value,
                spread=self.spread.value,
            )
            told = (self._told_near(),)
            check_near(self.near.value)
            told = self._told_retention()
            check_retention(self.retention)
        except InvalidArgument as error:
            named = [f"{name} {value or 'none'} ({source})" for name, value, source in told]
            raise InvalidArgument(f"{error}; in force are {', '.join(named)}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class NamespaceChange:
    """Settings to set, None to leave as they are, and names of those to inherit from now on."""

    replicas: int | None = None
    write_quorum: int | None = None
    spread: Spread | None = None
    near: str | None = None
    retention: Retention = NO_RETENTION
    inherit: Sequence[str] = ()


def check_prefix(prefix: str) -> None:
    """Raises `InvalidArgument`."""
    if not _PREFIX.fullmatch(prefix):
        raise InvalidArgument(
            f"{prefix!r} is no namespace: it ends with a slash and is otherwise the beginning of a "
            f"log's name, at most {LOG_NAME_CHARS_MAX - 1} characters; or it is empty: every log"
        )


def prefixes_of(name: str) -> Iterator[str]:
    """Every namespace that a log of this name is in, the longest first, the empty one last.

    Of a namespace: itself, and those that it is in.
    """
    end = len(name)
    while (end := name.rfind("/", 0, end)) >= 0:
        yield name[: end + 1]
    yield ""


def settings_of(
    name: str,
    namespaces: Mapping[str, NamespaceRecord],
    *,
    asked: Asked = Asked(),
    default_replicas: int,
) -> Settings:
    """What a log of this name gets if it is created now; for a namespace's name, right under it.

    Raises:
        InvalidArgument: that can't be.
    """
    inherited = [found for it in prefixes_of(name) if (found := namespaces.get(it)) is not None]
    replicas = _first(asked.replicas, [(it.prefix, it.replicas) for it in inherited])
    quorum = _first(asked.write_quorum, [(it.prefix, it.write_quorum) for it in inherited])
    spread = _first(asked.spread, [(it.prefix, it.spread) for it in inherited])
    limits = {
        name: _first(
            asked.retention.amount(name),
            [(it.prefix, it.retention.amount(name)) for it in inherited],
        )
        or Sourced(NO_LIMIT, DEFAULT)
        for name in RETENTION_SETTINGS
    }
    replicas = replicas or Sourced(default_replicas, DEFAULT)
    settings = Settings(
        replicas,
        quorum or Sourced(majority(replicas.value), DEFAULT),
        spread or Sourced((), DEFAULT),
        _first(asked.near, [(it.prefix, it.near) for it in inherited]) or Sourced("", DEFAULT),
        limits,
    )
    settings.check()
    return settings


def _first(asked: _T | None, inherited: Sequence[tuple[str, _T | None]]) -> Sourced[_T] | None:
    if asked is not None:
        return Sourced(asked, ASKED)
    for prefix, value in inherited:
        if value is not None:
            return Sourced(value, f"namespace:{prefix}")
    return None


def changed(
    present: NamespaceRecord | None,
    prefix: str,
    change: NamespaceChange,
    *,
    changed_ms: int,
    nonce: str,
) -> NamespaceRecord:
    """The namespace's record after the change.

    Raises:
        InvalidArgument: prefix, spread, an amount, or a setting that is unknown or both set and
        inherited.
    """
    check_prefix(prefix)
    unknown = [name for name in change.inherit if name not in SETTINGS]
    if unknown:
        known = ", ".join(SETTINGS)
        raise InvalidArgument(f"there is no setting {unknown[0]!r}; there are {known}")
    check_retention(change.retention)
    record = present or NamespaceRecord(prefix=prefix, changed_ms=0, change_nonce="")
    both = [
        name for name in SETTINGS if name in change.inherit and _value(change, name) is not None
    ]
    if both:
        raise InvalidArgument(f"{both[0]} can't be both set and inherited")
    for name in PLACEMENT_SETTINGS:
        value = _value(change, name)
        if name == "spread" and change.spread is not None:
            value = make_spread(change.spread)
        if value is not None or name in change.inherit:
            record = replace(record, **{name: value})
    unset = {field: None for name, field in RETENTION_SETTINGS.items() if name in change.inherit}
    return replace(
        record,
        retention=change.retention.over(replace(record.retention, **unset)),
        changed_ms=changed_ms,
        change_nonce=nonce,
    )


def _value(change: NamespaceChange, name: str) -> Any:
    return change.retention.amount(name) if name in RETENTION_SETTINGS else getattr(change, name)


def check_change(
    namespaces: Mapping[str, NamespaceRecord], prefix: str, *, default_replicas: int
) -> None:
    """Whether all at and below `prefix` can be, if `namespaces` are what there is.

    Raises:
        InvalidArgument: they can't, or there are too many; says which and why.
    """
    if len(namespaces) > NAMESPACES_MAX:
        raise InvalidArgument(f"there are {NAMESPACES_MAX:,} namespaces, as many as there can be")
    below = sorted(name for name in namespaces if name.startswith(prefix) and name != prefix)
    for name in (prefix, *below):
        try:
            settings_of(name, namespaces, default_replicas=default_replicas)
        except InvalidArgument as error:
            where = "" if name == prefix else f"namespace {name!r} could not be any more: "
            raise InvalidArgument(f"{where}{error}") from error
