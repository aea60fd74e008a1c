"""What the tests of the command share: the command as a process, and one cluster for all."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.command import Cli
from helpers.processes import PATIENT

from sharedlog.dev_cluster import DevCluster, module_environment


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """An environment without settings of the user who runs the tests."""
    return module_environment() | {"SHAREDLOG_CONFIG": str(tmp_path / "config.toml")}


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevCluster]:
    """Three nodes, for all tests that do no harm to them."""
    found = DevCluster(tmp_path_factory.mktemp("cluster"), settings=PATIENT)
    asyncio.run(found.start())
    try:
        yield found
    finally:
        asyncio.run(found.stop())


@pytest.fixture
def cli(environment: dict[str, str], cluster: DevCluster) -> Iterator[Cli]:
    """The command, for the cluster."""
    found = Cli(environment, cluster.address)
    yield found
    found.close()


@pytest.fixture
def alone(environment: dict[str, str]) -> Iterator[Cli]:
    """The command, for no cluster in particular."""
    found = Cli(environment)
    yield found
    found.close()


@pytest.fixture
def log(cli: Cli, request: pytest.FixtureRequest) -> str:
    """The name of a new log, for the test alone."""
    name = f"{request.node.name.split('[')[0]}-{os.urandom(4).hex()}"
    cli.ok("log", "create", name)
    return name


@pytest.fixture
def own_cluster(tmp_path: Path) -> Iterator[DevCluster]:
    """Three nodes for one test, to be killed at will."""
    found = DevCluster(tmp_path / "own")
    asyncio.run(found.start())
    try:
        yield found
    finally:
        asyncio.run(found.stop())
