"""What was recorded of each version, and the methods that it goes through."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import loglet.wire
import metadata.service
import sharedlog.rpc.methods
from sharedlog.rpc.transport import Method
from tools.compat_forms import FORMS, StoredForm
from tools.record_messages import RECORDED

VERSIONS = sorted(it.name for it in RECORDED.iterdir() if it.is_dir())


def recorded_messages() -> Iterator[tuple[str, Path]]:
    """(name of the message, where its example is) of every version."""
    for version in VERSIONS:
        for path in sorted((RECORDED / version / "messages").glob("*.bin")):
            yield path.name.split(".")[0], path


def recorded_forms() -> Iterator[tuple[StoredForm, Path]]:
    by_name = {form.name: form for form in FORMS}
    for version in VERSIONS:
        for path in sorted((RECORDED / version / "stored").glob("*.bin")):
            yield by_name[path.stem], path


def known_methods() -> dict[str, Method[Any, Any]]:
    """Every method that nodes and clients call, by "Service/Method"."""
    modules = (sharedlog.rpc.methods, loglet.wire, metadata.service)
    found = [it for module in modules for it in vars(module).values() if isinstance(it, Method)]
    return {it.path.removeprefix("/sharedlog.v1."): it for it in found}
