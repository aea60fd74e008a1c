"""docs/configuration.md is complete and true."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from loglet.archive.config import ArchiveConfig
from loglet.config import LogServerConfig
from metadata.config import EmbeddedConfig, EtcdConfig
from metadata.s3.config import MetadataS3Config
from node.archive.config import OffloadConfig
from node.config import NodeConfig
from node.controller.config import ControllerConfig
from sequencer.config import SequencerConfig
from sharedlog.config import AppenderConfig, ClientConfig, ReaderConfig

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"
ROW = re.compile(r"^\| `(?P<name>\w+)` \| (?P<default>.*?) \| (?P<effect>.*) \|$", re.MULTILINE)

SECTIONS = {
    "## Node": NodeConfig,
    "## `[log_server]`": LogServerConfig,
    "## `[sequencer]`": SequencerConfig,
    "## `[metadata_store]`": EmbeddedConfig,
    "## `[metadata_etcd]`": EtcdConfig,
    "## `[metadata_s3]`": MetadataS3Config,
    "## `[controller]`": ControllerConfig,
    "## `[archive]`": ArchiveConfig,
    "## `[offload]`": OffloadConfig,
    "### `ClientConfig`": ClientConfig,
    "### `AppenderConfig`": AppenderConfig,
    "### `ReaderConfig`": ReaderConfig,
}


def documented(heading: str) -> dict[str, str]:
    """Field -> its default as the page tells it."""
    _, _, rest = PAGE.read_text().partition(f"\n{heading}\n")
    section = re.split(r"^##", rest, maxsplit=1, flags=re.MULTILINE)[0]
    assert all(row["effect"].strip() for row in ROW.finditer(section))
    return {row["name"]: row["default"] for row in ROW.finditer(section)}


@pytest.mark.parametrize(("heading", "config"), SECTIONS.items(), ids=list(SECTIONS))
def test_every_field_is_documented_with_its_default(heading: str, config: type[Any]) -> None:
    """A field that the page lacks, has too much, or tells another default of fails here."""
    told = documented(heading)
    fields = {
        field.name: field
        for field in dataclasses.fields(config)
        if field.default_factory is dataclasses.MISSING  # sections have headings of their own
    }
    assert sorted(told) == sorted(fields)
    for name, field in fields.items():
        if field.default is dataclasses.MISSING:
            assert told[name] == "required"
            continue
        literal = re.match(r"`([^`]*)`", told[name])
        assert literal is not None, f"{name}: no default"
        default = tomllib.loads(f"value = {literal[1]}")["value"]
        wanted = list(field.default) if isinstance(field.default, tuple) else field.default
        assert default == wanted, name


def test_every_section_is_documented() -> None:
    """A section that is added to NodeConfig needs a heading, and a line above."""
    sections = {
        field.name
        for field in dataclasses.fields(NodeConfig)
        if field.default_factory is not dataclasses.MISSING
    }
    assert {f"## `[{name}]`" for name in sections} <= set(SECTIONS)
