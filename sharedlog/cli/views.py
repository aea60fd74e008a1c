"""What the cluster answers, as plain values: the one place that decides how JSON keys are named.

Ids of logs are text of 16 hex digits: an unsigned 64-bit number does not survive most JSON readers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sharedlog.retention import RETENTION_SETTINGS, SINCE_CREATION, retention_sources

if TYPE_CHECKING:
    from sharedlog.v1 import (
        admin_pb2,
        cluster_pb2,
        cursor_pb2,
        log_server_pb2,
        namespace_pb2,
        types_pb2,
    )

Json = dict[str, Any]

CLUSTER_SOURCE = "cluster"
"""Where a setting comes from that `cluster config` or `cluster init` has set."""

_SEVERITIES = {1: "warning", 2: "error"}
_HOLDINGS = {1: "holds", 2: "hole", 3: "damaged", 4: "no answer", 5: "lost"}
_FINDINGS = {1: "missing", 2: "damaged", 3: "disagree", 4: "lost", 5: "no answer"}


def view_log(log: types_pb2.LogDescription) -> Json:
    """A log with its chain."""
    return {
        "name": log.name,
        "log_id": f"{log.log_id:016x}",
        "replicas": log.replicas,
        "write_quorum": log.write_quorum,
        "spread": dict(log.spread),
        "near": log.near,
        "created_ms": log.created_ms,
        "created_with": [_view_setting(setting) for setting in log.created_with],
        "sources": _placement_sources(log),
        "nodeset": _view_nodeset(log),
        "retention": _view_retention(log),
        "start": log.start,
        "trimmed": log.trimmed,
        "archived_end": log.archived_end,
        "chain_version": log.chain_version,
        "chain": [view_segment(segment) for segment in log.chain],
        "nodes": [
            {
                "node_id": node.node_id,
                "address": node.address,
                "generation": node.generation,
                "storage_id": node.storage_id,
            }
            for node in log.nodes
        ],
    }


def _placement_sources(log: types_pb2.LogDescription) -> Json:
    """Where what is wanted of its placement comes from: "log", if it was changed since."""
    at_creation = {it.name: it for it in log.created_with}
    now = {
        "replicas": str(log.replicas),
        "write_quorum": str(log.write_quorum),
        "spread": spread_text(dict(log.spread)),
    }
    sources: Json = {}
    for name, value in now.items():
        setting = at_creation.get(name)
        changed = setting is not None and setting.value != value
        sources[name] = None if setting is None else SINCE_CREATION if changed else setting.source
    # A log does not keep of a wish that nobody had that nobody had it.
    wish = at_creation.get("near")
    asked_for = SINCE_CREATION if log.near else "default"
    sources["near"] = wish.source if wish is not None and wish.value == log.near else asked_for
    return sources


def _view_nodeset(log: types_pb2.LogDescription) -> Json:
    """The log servers of the open segment, and how many of them are wanted."""
    open_segment = log.chain[-1]
    nodes = [replica.node_id for replica in open_segment.nodeset]
    return {"wanted": log.replicas, "actual": len(nodes), "nodes": nodes}


def _view_retention(log: types_pb2.LogDescription) -> Json:
    """Each limit (null: none), and where it comes from."""
    from sharedlog.retention_proto import retention_from_proto  # late: most help needs no protobuf

    retention = retention_from_proto(log.retention)
    created_with = [(it.name, it.value, it.source) for it in log.created_with]
    return {
        RETENTION_SETTINGS[name]: {"value": retention.amount(name), "source": source}
        for name, _, source in retention_sources(retention, created_with)
    }


def view_summary(log: types_pb2.LogSummary) -> Json:
    """A log in short, as a listing has it."""
    return {
        "name": log.name,
        "log_id": f"{log.log_id:016x}",
        "replicas": log.replicas,
        "write_quorum": log.write_quorum,
        "spread": dict(log.spread),
        "created_ms": log.created_ms,
        "chain_version": log.chain_version,
        "segments": log.segment_count,
        "sequencer": log.sequencer_node_id,
        "nodeset": list(log.node_ids),
    }


def view_namespace(namespace: namespace_pb2.Namespace) -> Json:
    """What a prefix sets (null: inherited; 0: no limit), and what is in force there."""
    kept = namespace.retention
    return {
        "prefix": namespace.prefix,
        "version": namespace.version,
        "replicas": namespace.replicas if namespace.HasField("replicas") else None,
        "write_quorum": namespace.write_quorum if namespace.HasField("write_quorum") else None,
        "spread": dict(namespace.spread.levels) if namespace.HasField("spread") else None,
        "near": namespace.near if namespace.HasField("near") else None,
        **{
            field: getattr(kept, field) if kept.HasField(field) else None
            for field in ("local_bytes", "local_age_s", "total_age_s")
        },
        "changed_ms": namespace.changed_ms,
        "effective": [_view_setting(setting) for setting in namespace.effective],
    }


def _view_setting(setting: types_pb2.Setting) -> Json:
    return {"name": setting.name, "value": setting.value, "source": setting.source}


def view_cursor(cursor: cursor_pb2.CursorState) -> Json:
    """A cursor."""
    return {
        "name": cursor.name,
        "position": cursor.position,
        "epoch": cursor.epoch,
        "owner_name": cursor.owner_name,
        "changed_ms": cursor.changed_ms,
    }


def view_segment(segment: types_pb2.Segment) -> Json:
    """One segment of a chain; `end` is null while it is open."""
    return {
        "index": segment.index,
        "base": segment.base,
        "end": segment.end if segment.HasField("end") else None,
        "sequencer": _view_sequencer(segment.sequencer),
        "nodeset": [
            {
                "node_id": replica.node_id,
                "storage_id": replica.storage_id,
                "location": replica.location,
            }
            for replica in segment.nodeset
        ],
        "write_quorum": segment.write_quorum,
        "spread": dict(segment.spread),
        "lost": [
            {
                "first": lost.first,
                "end": lost.end,
                "accepted_ms": lost.accepted_ms,
                "reason": lost.reason,
            }
            for lost in segment.lost
        ],
    }


def source_text(source: str) -> str:
    """Where a setting comes from, for people: the namespace of every log is the cluster's."""
    return CLUSTER_SOURCE if source == "namespace:" else source


def spread_text(spread: dict[str, int]) -> str:
    """As it is typed: "zone:2,node:3"."""
    return ",".join(f"{level}:{count}" for level, count in sorted(spread.items()))


def view_digest(digest: admin_pb2.DigestLogResponse) -> Json:
    """One segment: which replica holds what."""
    return {
        "segment": view_segment(digest.segment),
        "end": digest.end,
        "replicas": [
            {
                "node_id": one.replica.node_id,
                "storage_id": one.replica.storage_id,
                "error": one.error or None,
                "status": _view_loglet(one.status) if one.HasField("status") else None,
            }
            for one in digest.replicas
        ],
        "ranges": [
            {
                "first": part.first,
                "end": part.end,
                "holdings": [_HOLDINGS.get(holding, "unknown") for holding in part.holdings],
                "under_replicated": part.under_replicated,
            }
            for part in digest.ranges
        ],
    }


def _view_loglet(status: log_server_pb2.LogletStatus) -> Json:
    return {
        "base": status.base,
        "local_start": status.local_start,
        "local_tail": status.local_tail,
        "committed_tail": status.committed_tail,
        "sealed": status.sealed,
        "told_end": status.told_end if status.HasField("told_end") else None,
    }


def view_finding(finding: admin_pb2.CheckFinding) -> Json:
    """What `log check` found wrong, and where."""
    return {
        "kind": _FINDINGS.get(finding.kind, "unknown"),
        "segment_index": finding.segment_index,
        "first": finding.first,
        "end": finding.end,
        "node_id": finding.node_id or None,
        "message": finding.message,
    }


def _view_sequencer(sequencer: types_pb2.SequencerId) -> Json:
    return {"node_id": sequencer.node_id, "generation": sequencer.generation}


def view_status(status: cluster_pb2.GetStatusResponse) -> Json:
    """The cluster: problems, nodes, logs."""
    return {
        "cluster_id": status.cluster_id,
        "metadata": status.metadata,
        "problems": [
            {
                "severity": _SEVERITIES.get(problem.severity, "warning"),
                "subject": problem.subject,
                "message": problem.message,
                "code": problem.code or None,
            }
            for problem in status.problems
        ],
        "nodes": [view_node(node) for node in status.nodes],
        "logs": [_view_log_status(log) for log in status.logs],
        "controller": status.controller or None,
        "work": [
            {
                "kind": work.kind,
                "subject": work.subject,
                "message": work.message,
                "done": work.done,
                "total": work.total or None,
                "node_id": work.node_id,
            }
            for work in status.work
        ],
    }


def view_node(node: cluster_pb2.NodeStatus) -> Json:
    """A node. What only the node itself knows is null while it does not answer."""
    known: Json = {
        "node_id": node.node_id,
        "address": node.address,
        "http_address": node.http_address or None,
        "generation": node.generation,
        "storage_id": node.storage_id or None,
        "location": node.location,
        "roles": list(node.roles),
        "alive": node.alive,
        "error": node.error or None,
        "state": node.state or None,
        "segments": node.segments,
        "open_segments": node.open_segments,
    }
    own: Json = {
        "read_only": node.read_only,
        "disk_free_bytes": node.disk_free_bytes,
        "store_bytes": node.store_bytes,
        "rss_anon_bytes": node.rss_anon_bytes,
        "uptime_s": round(node.uptime_s, 3),
        "version": node.version,
        "loglets": node.loglets,
        "sequenced_logs": node.sequenced_logs,
    }
    return known | (own if node.alive else dict.fromkeys(own))


def _view_log_status(log: cluster_pb2.LogStatus) -> Json:
    return {
        "name": log.name,
        "log_id": f"{log.log_id:016x}",
        "replicas": log.replicas,
        "write_quorum": log.write_quorum,
        "sequencer": _view_sequencer(log.sequencer),
        "accepts_appends": log.accepts_appends,
        "known_tail": log.known_tail,
        "replicas_alive": log.replicas_alive,
        "under_replicated_on": list(log.under_replicated_on),
        "segments": log.segments,
        "segments_under_replicated": log.segments_under_replicated,
        "unrepairable": log.unrepairable or None,
    }
