"""Which settings a node tells of, and where it says that they come from (field note 53)."""

from __future__ import annotations

from pathlib import Path

from node.config import load_config
from node.told_settings import ToldSetting, told_settings


def test_what_differs_is_told_with_its_source(tmp_path: Path) -> None:
    """A flag beats a variable, a variable the file; what was set to its default is not told, and
    of what may open a door only that it is there."""
    file = tmp_path / "node.toml"
    file.write_text(
        'metadata = "embedded://h:1"\nreplicas = 3\nlocation = "eu"\n[controller]\nmissed_max = 9\n'
    )
    environ = {"SHAREDLOG_LOCATION": "us", "SHAREDLOG_LOG_SERVER__RESERVE_BYTES": "1000000000"}
    flags = {"node_id": "n1"}
    config = load_config(file, environ=environ, flags=flags)
    found = told_settings(config, environ=environ, flags=flags)
    assert set(found.told) == {
        ToldSetting("node_id", "n1", "flag"),
        ToldSetting("metadata", "embedded://h:1", "file"),
        ToldSetting("location", "us", "environment"),
        ToldSetting("log_server.reserve_bytes", "1000000000", "environment"),
        ToldSetting("controller.missed_max", "9", "file"),
    }
    assert found.known > 40
