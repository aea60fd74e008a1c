"""Dockerfile, Compose file and systemd unit are right by the tools made for them, and in step."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.deploy_tools import DEPLOY, ROOT, command

from node.config import load_config

DOCKERFILE = DEPLOY / "Dockerfile"
COMPOSE = DEPLOY / "compose.yaml"
UNIT = DEPLOY / "systemd" / "sharedlogd.service"


def run(*arguments: str) -> str:
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
def test_hadolint_finds_nothing() -> None:
    """In the Dockerfile."""
    run(command("hadolint"), str(DOCKERFILE))


def test_the_image_has_every_package_and_nothing_runs_as_root() -> None:
    """What it copies is there and let in, and the stop signal is the one that hands over."""
    text = DOCKERFILE.read_text()
    copied = set(" ".join(re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE)).split())
    packages = {"sharedlog", "metadata", "loglet", "sequencer", "node"}
    assert packages <= copied
    assert all((ROOT / name).exists() for name in copied)
    ignore = (DEPLOY / "Dockerfile.dockerignore").read_text()
    let_in = set(re.findall(r"^!(\S+)$", ignore, re.MULTILINE))
    assert copied == let_in
    assert re.findall(r"^USER (\S+)$", text, re.MULTILINE)[-1] == "10001:10001"
    assert "STOPSIGNAL SIGTERM" in text


class _Healthy(BaseHTTPRequestHandler):
    """Answers /healthz."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/healthz" else 404)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@pytest.mark.slow
def test_the_health_check_tells_a_node_that_answers() -> None:
    """Exit code 0 while /healthz answers, another once nobody listens."""
    (line,) = re.findall(r"^  CMD (\[.+\])$", DOCKERFILE.read_text(), re.MULTILINE)
    _, *arguments = json.loads(line)
    with HTTPServer(("127.0.0.1", 0), _Healthy) as server:
        arguments = [it.replace(":4200", f":{server.server_port}") for it in arguments]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        well = subprocess.run([sys.executable, *arguments], check=False)
        server.shutdown()
        thread.join()
    ill = subprocess.run([sys.executable, *arguments], capture_output=True, check=False)
    assert (well.returncode, ill.returncode) == (0, 1)


@pytest.mark.slow
def test_the_compose_file_is_one() -> None:
    """By its schema."""
    schema = ("--builtin-schema", "vendor.compose-spec")
    run(command("check-jsonschema"), *schema, str(COMPOSE))


@pytest.mark.slow
def test_docker_reads_the_compose_file() -> None:
    """As well as its schema does, where Docker's plugin is; no engine is needed."""
    docker = shutil.which("docker")
    ask = [docker or "docker", "compose"]
    if (
        docker is None
        or subprocess.run([*ask, "version"], capture_output=True, check=False).returncode
    ):
        pytest.skip("no `docker compose` here; Docker's own packages have it")
    run(*ask, "--file", str(COMPOSE), "config", "--quiet")


def test_the_compose_files_nodes_have_settings_that_there_are() -> None:
    """Three nodes, apart in zones; every image has a version, and what is mounted is there."""
    services: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())["services"]
    nodes = {name: it for name, it in services.items() if "SHAREDLOG_NODE_ID" in str(it)}
    assert sorted(nodes) == ["n1", "n2", "n3"]
    for name, service in nodes.items():
        config = load_config(None, environ=service["environment"], flags={})
        members = config.metadata.removeprefix("etcd://").partition("/")[0]
        assert {it.partition(":")[0] for it in members.split(",")} <= set(services)
        assert config.node_id == name
        assert config.archive.url.startswith("s3://")
        assert int(service["stop_grace_period"].removesuffix("s")) > config.shutdown_grace_s
    assert len({it["environment"]["SHAREDLOG_LOCATION"] for it in nodes.values()}) == 3
    for service in services.values():
        assert re.search(r":[\w.-]*\d", service["image"]) or service["image"] == "sharedlog:local"
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:"), "nothing here asks who is there"
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert not source.startswith(".") or (DEPLOY / source).exists()


def test_prometheus_and_grafana_are_told_of_each_other() -> None:
    """Targets are the nodes of the Compose file, and the dashboard lies where Grafana looks."""
    scrape = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    (job,) = scrape["scrape_configs"]
    assert job["static_configs"] == [{"targets": ["n1:4200", "n2:4200", "n3:4200"]}]
    provisioning = DEPLOY / "grafana" / "provisioning"
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "sharedlog.yml").read_text())[
        "providers"
    ]
    assert f"{provider['options']['path']}/sharedlog.json" in COMPOSE.read_text()


@pytest.mark.slow
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    """`systemd-analyze verify` is silent, with a program that there is."""
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/sharedlog/bin/sharedlogd", "/bin/true"))
    analyze = command("systemd-analyze", of="test-deps")
    assert run(analyze, "verify", str(unit)).strip() == ""


def test_the_unit_waits_for_the_hand_over() -> None:
    """Longer than the default of `shutdown_grace_s`; what it sets are settings that there are."""
    text = UNIT.read_text()
    (stop_s,) = re.findall(r"^TimeoutStopSec=(\d+)s$", text, re.MULTILINE)
    (variables,) = re.findall(r"^Environment=(.+)$", text, re.MULTILINE)
    environ = dict(it.split("=", 1) for it in variables.split())
    flags = {"node_id": "n1", "metadata": "embedded://m:4100"}
    config = load_config(None, environ=environ, flags=flags)
    assert int(stop_s) > config.shutdown_grace_s
    assert config.dir == "/var/lib/sharedlog"
