"""`python -m metadata dump|get|put|migrate`: a metadata store, without a node.

`sharedlog metadata` runs these. Data goes to stdout, all else to stderr. Exit codes are those of
the `sharedlog` command.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

from metadata.config import MetadataSettings
from metadata.emergency import check_value_of, diff_of, line_of, value_from
from metadata.keys import check_key
from metadata.migration import Place, Progress, living_nodes, look, migrate, undo
from metadata.moved import check_moved
from metadata.records import CLUSTER_KEY
from metadata.standing import StandingMetadataStore
from metadata.store import ABSENT, Entry, MetadataStore, Version
from metadata.tool_settings import load_settings
from metadata.url import open_metadata_store, parse_metadata_url
from sharedlog.cli.failures import (
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_NOT_FOUND,
    exit_code_of,
    message_of,
)
from sharedlog.clock import SystemClock
from sharedlog.errors import InvalidArgument, SharedLogError, VersionMismatch
from sharedlog.rpc.grpc_client import GrpcTransport

VERBS: Final = ("dump", "get", "put", "migrate")
STDIO: Final = "-"
_TELL_EVERY_S: Final = 1.0


def main(arguments: Sequence[str]) -> int:
    """Run a command; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        url, settings = load_settings(options.config, os.environ)
        return asyncio.run(_run(options, url, settings))
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader has seen enough; keep the interpreter from writing the rest at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_DONE
    except (SharedLogError, OSError) as error:
        _say(f"error: {message_of(error)}")
        return exit_code_of(error)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m metadata", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    dump = commands.add_parser("dump", help="print all keys, a JSON object for each")
    dump.add_argument("--prefix", default="")
    dump.add_argument("--out", default=STDIO)
    get = commands.add_parser("get", help="print one value")
    put = commands.add_parser("put", help="set one value")
    put.add_argument("--expect-version", type=int, required=True)
    put.add_argument("--file", default=STDIO)
    put.add_argument(
        "--unchecked", action="store_true", help="whatever the value is, and the store"
    )
    put.add_argument("--dry-run", action="store_true", help="show what it would change")
    for command in (get, put):
        command.add_argument("key")
        command.add_argument("--json", action="store_true")
    for command in (dump, get, put):
        command.add_argument("--metadata", default="", metavar="URL")
    move = commands.add_parser("migrate", help="move a cluster to another store")
    move.add_argument("--from", dest="source", required=True, metavar="URL")
    move.add_argument("--to", dest="target", required=True, metavar="URL")
    move.add_argument("--undo", action="store_true")
    for command in (move,):
        command.add_argument("--dry-run", action="store_true")
        command.add_argument("--force", action="store_true", help="although nodes seem to run")
        command.add_argument("--json", action="store_true")
    for command in (dump, get, put, move):
        command.add_argument("--config", type=Path, metavar="FILE")
    return parser


async def _run(options: argparse.Namespace, url: str, settings: MetadataSettings) -> int:
    async with AsyncExitStack() as stack:
        transport = GrpcTransport()
        stack.push_async_callback(transport.close)
        if options.command == "migrate":
            source = await stack.enter_async_context(_opened(options.source, transport, settings))
            target = await stack.enter_async_context(_opened(options.target, transport, settings))
            return await _migrate(options, source, target, transport)
        named = options.metadata or url
        if not named:
            raise InvalidArgument("which metadata store: --metadata URL, or --config FILE")
        place = await stack.enter_async_context(_opened(named, transport, settings))
        if options.command == "dump":
            return await _dump(options, place.store)
        if options.command == "get":
            return await _get(options, place.store)
        return await _put(options, place.store)


@asynccontextmanager
async def _opened(
    url: str, transport: GrpcTransport, settings: MetadataSettings
) -> AsyncIterator[Place]:
    store = open_metadata_store(
        url, transport, clock=SystemClock(), new_id=_new_id, settings=settings
    )
    try:
        yield Place(store, str(parse_metadata_url(url)))
    finally:
        await store.close()


async def _dump(options: argparse.Namespace, store: MetadataStore) -> int:
    lines = [json.dumps(line_of(entry)) + "\n" for entry in await store.list(options.prefix)]
    if options.out == STDIO:
        sys.stdout.writelines(lines)
        sys.stdout.flush()
        return EXIT_DONE
    path = Path(options.out)
    part = path.with_name(path.name + ".part")  # a file appears when it is whole
    part.write_text("".join(lines))
    part.replace(path)
    _say(f"{_plural(len(lines), 'key')} written to {path}")
    return EXIT_DONE


async def _get(options: argparse.Namespace, store: MetadataStore) -> int:
    entry = await store.get(options.key)
    if entry is None:
        _say(f"error: there is no key {options.key!r}")
        return EXIT_NOT_FOUND
    if options.json:
        _print_json(line_of(entry))
    else:
        sys.stdout.buffer.write(entry.value + b"\n")
        sys.stdout.flush()
        _say(f"version {entry.version}")
    return EXIT_DONE


async def _put(options: argparse.Namespace, store: MetadataStore) -> int:
    key, expected = options.key, Version(options.expect_version)
    check_key(key)
    value = value_from(key, _read(options.file))
    if not options.unchecked and (wrong := check_value_of(key, value)):
        raise InvalidArgument(f"{key}: a node could not use this value: {wrong}")
    entry = await store.get(key)
    if not options.unchecked:
        await _check_not_moved(store, entry)
        store = StandingMetadataStore(store)
    present = ABSENT if entry is None else entry.version
    if present != expected:
        raise VersionMismatch(key=key, expected=expected or None, actual=present or None)
    if options.dry_run:
        changes = diff_of(None if entry is None else entry.value, value)
        _say("\n".join(changes) if changes else "nothing would change")
        return EXIT_DONE
    version = await store.put(key, value, expected=expected)
    if options.json:
        _print_json({"key": key, "version": version})
    else:
        _say(f"version {version}")
    return EXIT_DONE


async def _check_not_moved(store: MetadataStore, entry: Entry | None) -> None:
    """Raises `WrongCluster` if nobody should change anything in this store, or this value."""
    for found in (await store.get(CLUSTER_KEY), entry):
        if found is not None:
            check_moved(found.value)


def _read(name: str) -> bytes:
    return sys.stdin.buffer.read() if name == STDIO else Path(name).read_bytes()


async def _migrate(
    options: argparse.Namespace, source: Place, target: Place, transport: GrpcTransport
) -> int:
    if source.url == target.url:
        raise InvalidArgument(f"--from and --to are the same store: {source.url}")
    clock = SystemClock()
    told_s = clock.monotonic_s()

    def tell(progress: Progress) -> None:
        nonlocal told_s
        now_s = clock.monotonic_s()
        if now_s - told_s >= _TELL_EVERY_S:
            told_s = now_s
            _say(f"{progress.moved:,} of {_plural(progress.keys, 'key')} moved")

    progress = Progress(_on_change=tell)
    if options.undo:
        await undo(source, target, progress)
        _say(f"{_plural(progress.moved, 'key')} of {source.url} can be changed again")
        return EXIT_DONE
    plan = await look(source, target)
    signs = [] if plan.complete else await living_nodes(source.store, transport, clock)
    said: dict[str, Any] = {
        "cluster_id": plan.cluster_id,
        "from": source.url,
        "to": target.url,
        "begun": plan.begun,
        "complete": plan.complete,
        "keys": plan.keys,
        "bytes": plan.bytes,
        "alive": signs,
    }
    if signs and not (options.force or options.dry_run):
        _say(
            f"error: the cluster runs: {'; '.join(signs)}. Stop all of its nodes first (--force "
            "moves it all the same: what nodes change meanwhile fails)"
        )
        return EXIT_FAILED
    if options.dry_run:
        _report(
            options, said, _would(plan.keys, plan.bytes, source, target, complete=plan.complete)
        )
        return EXIT_FAILED if signs else EXIT_DONE
    await migrate(source, target, plan, progress)
    said |= {
        "complete": True,
        "copied": progress.copied,
        "keys": progress.keys,
        "clients_must_restart": progress.versions_fall,
    }
    _report(options, said, _done(progress, source, target))
    return EXIT_DONE


def _would(keys: int, size: int, source: Place, target: Place, *, complete: bool) -> str:
    if complete:
        return f"all of it is in {target.url} already"
    return f"would move {_plural(keys, 'key')}, {size:,} bytes, from {source.url} to {target.url}"


def _done(progress: Progress, source: Place, target: Place) -> str:
    if progress.already:
        return f"all of it is in {target.url} already"
    text = (
        f"moved {_plural(progress.keys, 'key')} from {source.url} to {target.url}: start the nodes "
        f"with metadata = {target.url!r}"
    )
    if progress.versions_fall:
        text += "; restart clients that still run, too: they remember larger versions of logs"
    return text


def _report(options: argparse.Namespace, said: dict[str, Any], text: str) -> None:
    if options.json:
        _print_json(said)
        return
    for sign in said["alive"]:
        _say(f"the cluster runs: {sign}")
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _print_json(value: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _new_id() -> str:
    return uuid.uuid4().hex  # noqa: TID251  here the real source of ids is chosen
