"""Which settings of a node differ from their defaults, and where each came from (field note 53).

A setting that was given the value that it has anyway is not told. Nor are values that may open a
door: of those it is only said that they are set.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from node.config import ENV_PREFIX, NodeConfig, dump_config

FLAG: Final = "flag"
ENVIRONMENT: Final = "environment"
FILE: Final = "file"

_SECRET: Final = re.compile(r"password|passwd|secret|token|credential", re.IGNORECASE)
_USER_INFO: Final = re.compile(r"(?<=://)[^/@]*@")


class ToldSetting(NamedTuple):
    """One setting that is not as it would be by itself."""

    name: str  # as in docs/configuration.md, with its section: "log_server.reserve_bytes"
    value: str
    source: str


class ToldSettings(NamedTuple):
    """What a node was told."""

    told: tuple[ToldSetting, ...] = ()
    known: int = 0  # settings that there are


NOTHING_TOLD: Final = ToldSettings()


def told_settings(
    config: NodeConfig, *, environ: Mapping[str, str], flags: Mapping[str, object]
) -> ToldSettings:
    """Of a configuration that was loaded from these, and otherwise from a file."""
    now = dict(_leaves(dump_config(config)))
    defaults = dict(_leaves(dump_config(NodeConfig(node_id=""))))
    found = [
        ToldSetting(name, _text(name, value), _source(name, environ, flags))
        for name, value in now.items()
        if value != defaults.get(name)
    ]
    return ToldSettings(tuple(found), len(now))


def _leaves(plain: Mapping[str, Any], section: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in plain.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{section}{name}.")
        else:
            yield f"{section}{name}", value


def _source(name: str, environ: Mapping[str, str], flags: Mapping[str, object]) -> str:
    if name in flags:
        return FLAG
    variable = ENV_PREFIX + name.replace(".", "__").upper()
    return ENVIRONMENT if variable in environ else FILE


def _text(name: str, value: object) -> str:
    if _SECRET.search(name):
        return "(set)"
    text = value if isinstance(value, str) else json.dumps(value)
    return _USER_INFO.sub("…@", text)
