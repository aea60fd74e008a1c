"""Settings of the log server are checked against each other."""

from __future__ import annotations

from dataclasses import replace

import pytest

from loglet.config import LogServerConfig
from sharedlog.errors import InvalidArgument
from sharedlog.limits import MIB


def test_the_defaults_are_valid() -> None:
    """A node without a section of its own starts."""
    LogServerConfig().validate()
    LogServerConfig(store_bytes_max=128 * MIB).validate()


@pytest.mark.parametrize(
    "change",
    [
        {"queue_bytes_max": MIB},
        {"commit_bytes_max": MIB},
        {"commit_bytes_max": 64 * MIB},
        {"pending_seals_max": 0},
        {"tail_cache_bytes": -1},
        {"open_reads_max": 0},
        {"read_message_bytes": 0},
        {"read_message_bytes": 16 * MIB},
        {"read_threads": 0},
        {"overloaded_retry_s": -1},
        {"sweep_wait_s": 0},
        {"store_bytes_max": 100 * MIB},
        {"reserve_bytes": -1},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_can_not_work_is_refused(change: dict[str, int]) -> None:
    """The error names the field."""
    with pytest.raises(InvalidArgument, match=next(iter(change))):
        replace(LogServerConfig(), **change).validate()


def test_a_heartbeat_takes_time() -> None:
    """An interval of nothing would spin."""
    with pytest.raises(InvalidArgument, match="heartbeat_s"):
        LogServerConfig(heartbeat_s=0).validate()
