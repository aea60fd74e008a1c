"""The Helm chart renders to what Kubernetes takes, and to nodes that start."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
import tomllib
from typing import Any

import pytest
import yaml
from helpers.deploy_tools import DEPLOY, ROOT, module

CHART = DEPLOY / "helm" / "sharedlog"
KUBERNETES = ("1.28", "1.33")
SETTINGS = (
    'replicas = 3\n[archive]\nurl = "s3://bucket/prefix"\n[log_server]\nreserve_bytes = 134217728\n'
)
VALUES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "everything": {
        "nodes": 5,
        "metadata": "etcd://etcd-0.etcd:2379,etcd-1.etcd:2379/logs",
        "config": SETTINGS,
        "zone": {"source": "nodeLabels"},
        "envFrom": [{"secretRef": {"name": "keys"}}],
        "serviceMonitor": {"enabled": True, "interval": "5s", "labels": {"release": "prometheus"}},
        "storage": {"size": "1Ti", "className": "fast"},
        "imagePullSecrets": [{"name": "pull"}],
        "tolerations": [{"operator": "Exists"}],
        "nodeSelector": {"disk": "nvme"},
        "priorityClassName": "high",
        "zoneSpread": "DoNotSchedule",
    },
    "pod labels": {"zone": {"source": "podLabels"}, "antiAffinity": "preferred"},
}


def render(values: dict[str, Any]) -> list[dict[str, Any]]:
    """The chart's objects."""
    chart = module("helm_python").Chart.load(str(CHART))
    chart.validate_schema(chart.merge_values(values))
    texts = chart.render(values=values, name="demo", namespace="logs")
    return [
        found
        for path, text in sorted(texts.items())
        if not path.endswith(".txt")
        for found in yaml.safe_load_all(text)
        if found
    ]


def one(objects: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    (found,) = [it for it in objects if it["kind"] == kind]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", VALUES)
def test_kubernetes_takes_what_it_renders(name: str) -> None:
    """Every object is right by the schemas of an older and a newer release, with no unknown field.

    Those of other projects' kinds are not known to them."""
    validate = module("kubernetes_validate").validate
    objects = render(VALUES[name])
    assert len(objects) >= 6
    for found in objects:
        if found["kind"] != "ServiceMonitor":
            for version in KUBERNETES:
                validate(found, version, strict=True)


@pytest.mark.parametrize(
    "values",
    [
        {"nodes": 0},
        {"metadata": "zookeeper://a"},
        {"zone": {"source": "guess"}},
        {"storage": {"size": "much"}},
        {"nodeCount": 3},
        {"config": {"replicas": 3}},
    ],
    ids=str,
)
def test_values_that_can_not_be_right_are_refused(values: dict[str, Any]) -> None:
    """Before anything is rendered; a misspelt name too."""
    helm = module("helm_python")
    chart = helm.Chart.load(str(CHART))
    with pytest.raises(helm.HelmValuesError):
        chart.validate_schema(chart.merge_values(values))


def test_a_node_of_the_chart_starts_with_its_settings() -> None:
    """`sharedlogd --print-config` with the rendered file and variables: every one is known, and the
    file's numbers come through whole."""
    objects = render(VALUES["everything"])
    settings = one(objects, "ConfigMap")["data"]["node.toml"]
    assert tomllib.loads(settings)["log_server"]["reserve_bytes"] == 134_217_728
    pod = one(objects, "StatefulSet")["spec"]["template"]["spec"]
    fixed = {it["name"]: it["value"] for it in pod["containers"][0]["env"] if "value" in it}
    pod_name = "demo-sharedlog-0"  # which Kubernetes fills in
    environ = {name: it.replace("$(SHAREDLOG_NODE_ID)", pod_name) for name, it in fixed.items()}
    environ["SHAREDLOG_NODE_ID"] = pod_name
    done = subprocess.run(
        [sys.executable, "-m", "node", "--config", "/dev/stdin", "--print-config"],
        input=settings,
        env={"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"], **environ},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "unknown" not in done.stderr
    found = json.loads(done.stdout)
    assert found["metadata"] == VALUES["everything"]["metadata"]
    assert found["advertise"] == "demo-sharedlog-0.demo-sharedlog-nodes.logs.svc:4100"
    assert (found["log_server"]["reserve_bytes"], found["replicas"]) == (134_217_728, 3)
    grace_s = pod["terminationGracePeriodSeconds"]
    assert grace_s > found["shutdown_grace_s"] + 3, "the hand-over would be cut short"


def test_nodes_stay_apart_and_are_taken_down_one_by_one() -> None:
    """A budget of one, no two on a machine, spread over zones; locked down; probes as /healthz and
    /readyz are meant."""
    objects = render(VALUES["defaults"])
    assert one(objects, "PodDisruptionBudget")["spec"]["maxUnavailable"] == 1
    pod = one(objects, "StatefulSet")["spec"]["template"]["spec"]
    (apart,) = pod["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert apart["topologyKey"] == "kubernetes.io/hostname"
    assert pod["topologySpreadConstraints"][0]["topologyKey"] == "topology.kubernetes.io/zone"
    (container,) = pod["containers"]
    assert container["livenessProbe"]["httpGet"]["path"] == "/healthz"
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False


def test_only_the_lookup_of_node_labels_needs_permissions() -> None:
    """And it may get nodes, nothing else."""
    for name, values in VALUES.items():
        roles = [it for it in render(values) if it["kind"] == "ClusterRole"]
        if name == "everything":
            (role,) = roles
            assert role["rules"] == [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["get"]}]
        else:
            assert not roles


def test_the_zone_becomes_the_location() -> None:
    """By the shell that starts the node, or by the script that asks for it; with and without a
    region."""
    script = runpy.run_path(str(CHART / "files" / "zone.py"))
    names = ("topology.kubernetes.io/region", "topology.kubernetes.io/zone")
    for values, location in ((("eu", "eu.a"), "eu.eu-a"), (("", "a"), "a"), (("", ""), "")):
        assert script["location_of"](dict(zip(names, values, strict=True))) == location
    pod = one(render(VALUES["pod labels"]), "StatefulSet")["spec"]["template"]["spec"]
    script = pod["containers"][0]["args"][0].split(" exec ")[0] + '; echo "$SHAREDLOG_LOCATION"'
    for region, zone, location in (("eu-1", "a", "eu-1.a"), ("", "a", "a"), ("", "", "")):
        done = subprocess.run(
            ["sh", "-c", script],
            env={"REGION": region, "ZONE": zone},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == location
