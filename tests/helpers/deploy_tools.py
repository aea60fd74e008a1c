"""Tools that check what is in deploy/; a test that lacks one is skipped, and says how to get it."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


def module(name: str) -> Any:
    """A package of the extra `deploy-checks`."""
    try:
        return importlib.import_module(name)
    except ImportError:
        pytest.skip(f"no {name}; `make deploy-checks` installs it")


def command(name: str, *, of: str = "deploy-checks") -> str:
    """The path of a command: beside this interpreter, or on the path."""
    beside = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    found = shutil.which(name, path=beside)
    if found is None:
        pytest.skip(f"no {name}; `make {of}` installs it")
    return found
