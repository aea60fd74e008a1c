"""Batch sizes as the nodes themselves counted them, from their metrics over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping

_ANSWER_S_MAX = 2.0
_ANSWER_BYTES_MAX = 4_000_000
_COMMITTED = "sharedlog_sequencer_committed_"
_COMMITS = "sharedlog_log_server_commit_batches"


async def scrape_all(http_addresses: Iterable[str]) -> dict[str, float]:
    """The sum of each metric over all nodes and labels; a node that does not answer is left out."""
    total: dict[str, float] = {}
    for address in http_addresses:
        try:
            async with asyncio.timeout(_ANSWER_S_MAX):
                found = parse_metrics(await _get(address, "/metrics"))
        except (OSError, TimeoutError):
            continue
        for name, value in found.items():
            total[name] = total.get(name, 0.0) + value
    return total


def parse_metrics(text: str) -> dict[str, float]:
    """Samples of the Prometheus text format, summed over labels."""
    found: dict[str, float] = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            labelled, _, value = line.rpartition(" ")
            name = labelled.partition("{")[0]
            found[name] = found.get(name, 0.0) + float(value)
    return found


def describe_batches(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """What batches were like between two scrapes; empty if the nodes said nothing."""

    def grown(name: str) -> float:
        return after.get(name, 0.0) - before.get(name, 0.0)

    batches = grown(f"{_COMMITTED}batches_total")
    if batches <= 0:
        return {}
    commits = grown(f"{_COMMITS}_count")
    found = {
        "count": batches,
        "records_mean": grown(f"{_COMMITTED}records_total") / batches,
        "bytes_mean": grown(f"{_COMMITTED}bytes_total") / batches,
        "per_fsync_mean": grown(f"{_COMMITS}_sum") / commits if commits > 0 else 0.0,
    }
    return {name: round(value, 2) for name, value in found.items()}


async def _get(address: str, path: str) -> str:
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        # HTTP/1.0, so that the answer ends with the connection and comes in one piece.
        writer.write(f"GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
        answer = b""
        while len(answer) < _ANSWER_BYTES_MAX and (part := await reader.read(65_536)):
            answer += part
    finally:
        writer.close()
    return answer.partition(b"\r\n\r\n")[2].decode("utf-8", "replace")
