"""One cluster for all examples."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from helpers.processes import PATIENT

from sharedlog.dev_cluster import DevCluster


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevCluster]:
    """Three nodes, to which no example does harm."""
    found = DevCluster(tmp_path_factory.mktemp("cluster"), settings=PATIENT)
    asyncio.run(found.start())
    try:
        yield found
    finally:
        asyncio.run(found.stop())
