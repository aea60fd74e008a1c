"""`python -m metadata.init --metadata URL`: make a cluster in a metadata store.

Data goes to stdout, all else to stderr. Exit code 0: it is as it was asked for; 1: it can't be
read; 2: what was asked for can't be; 3: the cluster is there and differs; 4: no answer, try again.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from metadata.cluster_registry import Difference, InitResult, Wanted, init_cluster
from metadata.namespaces import NamespaceChange
from metadata.quorum import make_spread
from metadata.standing import StandingMetadataStore
from metadata.tool_settings import load_settings
from metadata.url import open_metadata_store
from sharedlog.clock import SystemClock
from sharedlog.errors import InvalidArgument, SharedLogError
from sharedlog.retention import Retention
from sharedlog.rpc.grpc_client import GrpcTransport

EXIT_DONE: Final = 0
EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_DIFFERS: Final = 3
EXIT_RETRY: Final = 4

DEFAULT_REPLICAS: Final = 3
"""As nodes have it that are not told otherwise."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        found = asyncio.run(_run(options))
    except SharedLogError as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        if isinstance(error, InvalidArgument):
            return EXIT_USAGE
        return EXIT_RETRY if error.retryable else EXIT_FAILED
    if options.json:
        sys.stdout.write(json.dumps(_view(found, dry_run=options.dry_run)) + "\n")
    elif not found.conflicts:
        sys.stdout.write("\n".join(_lines(found, dry_run=options.dry_run)) + "\n")
    if found.conflicts:
        sys.stderr.write(f"error: {_conflict(found)}\n")
        return EXIT_DIFFERS
    return EXIT_DONE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m metadata.init", description=__doc__)
    parser.add_argument("--metadata", default="", metavar="URL")
    parser.add_argument("--config", type=Path, metavar="FILE")
    parser.add_argument("--name", default="")
    parser.add_argument("--replicas", type=int)
    parser.add_argument("--write-quorum", type=int)
    parser.add_argument("--spread", metavar="JSON", help='e.g. {"zone": 2}')
    parser.add_argument("--near", metavar="LOCATION")
    for name in ("local-bytes", "local-age-s", "total-age-s"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--json", action="store_true")
    return parser


async def _run(options: argparse.Namespace) -> InitResult:
    spread = None if options.spread is None else make_spread(json.loads(options.spread).items())
    retention = Retention(
        local_bytes=options.local_bytes,
        local_age_s=options.local_age_s,
        total_age_s=options.total_age_s,
    )
    defaults = NamespaceChange(
        replicas=options.replicas,
        write_quorum=options.write_quorum,
        spread=spread,
        near=options.near,
        retention=retention,
    )
    url, settings = load_settings(options.config, os.environ)
    url = options.metadata or url
    if not url:
        raise InvalidArgument("which metadata store: --metadata URL, or --config FILE")
    clock, transport = SystemClock(), GrpcTransport()
    opened = open_metadata_store(url, transport, clock=clock, new_id=_uuid, settings=settings)
    store = StandingMetadataStore(opened)
    try:
        return await init_cluster(
            store,
            Wanted(name=options.name, defaults=defaults),
            new_id=_uuid,
            now_ms=clock.now_ms(),
            default_replicas=DEFAULT_REPLICAS,
            dry_run=options.dry_run,
        )
    finally:
        await store.close()
        await transport.close()


def _uuid() -> str:
    return uuid.uuid4().hex  # noqa: TID251  here the real source of ids is chosen


def _lines(found: InitResult, *, dry_run: bool) -> list[str]:
    who = f"cluster {found.name or 'without a name'}"
    if found.cluster_id:
        who += f" ({found.cluster_id})"
    if not found.made and not found.changes:
        return [f"{who}: nothing to do"]
    if dry_run:
        did = "would be made" if found.made else "would be finished"
    else:
        did = "made" if found.made else "finished: its defaults were missing"
    return [
        f"{who}: {did}",
        *(f"  {it.setting}: {it.present} -> {it.wanted}" for it in found.changes),
    ]


def _conflict(found: InitResult) -> str:
    what = ", ".join(f"{it.setting} is {it.present}, not {it.wanted}" for it in found.conflicts)
    change = " ".join(f"{it.setting}={it.wanted}" for it in found.conflicts)
    return (
        f"cluster {found.name or found.cluster_id} is there already and differs: {what}; to change "
        f"it: sharedlog cluster config set {change}"
    )


def _view(found: InitResult, *, dry_run: bool) -> dict[str, object]:
    return {
        "cluster_id": found.cluster_id or None,
        "name": found.name,
        "made": found.made,
        "dry_run": dry_run,
        "changes": [_view_difference(it) for it in found.changes],
        "conflicts": [_view_difference(it) for it in found.conflicts],
    }


def _view_difference(difference: Difference) -> dict[str, str]:
    return {
        "name": difference.setting,
        "present": difference.present,
        "wanted": difference.wanted,
    }


if __name__ == "__main__":
    sys.exit(main())
