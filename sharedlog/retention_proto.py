"""A `Retention` on the wire: a field that is None is absent."""

from __future__ import annotations

from dataclasses import asdict

from sharedlog.retention import NO_RETENTION, Retention, check_retention
from sharedlog.v1 import types_pb2


def retention_to_proto(retention: Retention | None) -> types_pb2.Retention | None:
    """None, which is an absent message, for one that says nothing."""
    if retention is None or retention == NO_RETENTION:
        return None
    return types_pb2.Retention(**asdict(retention))


def asked_to_proto(retention: Retention | None) -> types_pb2.Retention | None:
    """The same, of what a user asks for.

    Raises:
        InvalidArgument: an amount, or the ages together, can't be.
    """
    check_retention(retention or NO_RETENTION)
    return retention_to_proto(retention)


def retention_from_proto(message: types_pb2.Retention) -> Retention:
    """An absent message says nothing."""
    return Retention(
        local_bytes=message.local_bytes if message.HasField("local_bytes") else None,
        local_age_s=message.local_age_s if message.HasField("local_age_s") else None,
        total_age_s=message.total_age_s if message.HasField("total_age_s") else None,
    )
