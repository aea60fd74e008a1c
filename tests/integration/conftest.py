"""A cluster of real processes for each test that asks for one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from sharedlog.dev_cluster import DevCluster

StartCluster = Callable[..., object]


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[DevCluster]:
    """Three nodes and the metadata process; nothing is left of them afterwards."""
    async with _running(tmp_path) as running:
        yield running


@asynccontextmanager
async def _running(directory: Path) -> AsyncIterator[DevCluster]:
    async with DevCluster(directory / "cluster") as running:
        yield running
