"""Makes the stubs in sharedlog/v1 from proto/, or checks that they are current.

    python tools/proto.py            # make them
    python tools/proto.py --check    # exit 1 and name the files that differ

Messages and their types only: services are called through `sharedlog/rpc`, which needs no
generated code. `grpcio-tools` is pinned in pyproject.toml, since each version writes other text.
"""

from __future__ import annotations

import argparse
import difflib
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "proto"
PACKAGE = Path("sharedlog/v1")


def main(arguments: list[str] | None = None) -> int:
    """Make or check; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing, name what differs")
    check: bool = parser.parse_args(arguments).check
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        made = {path.name: path.read_text() for path in sorted((Path(folder) / PACKAGE).iterdir())}
    return report(made) if check else write(made)


def generate(folder: Path) -> None:
    """Run protoc into `folder`.

    Raises:
        SystemExit: protoc refused a file; it has said why.
    """
    from grpc_tools import (  # type: ignore[import-untyped]  # late: `--help` needs no compiler
        _proto as well_known,
    )
    from grpc_tools import protoc

    files = sorted(str(path.relative_to(SOURCES)) for path in SOURCES.rglob("*.proto"))
    status = protoc.main(
        [
            "protoc",
            f"-I{SOURCES}",
            *(f"-I{path}" for path in well_known.__path__),
            f"--python_out={folder}",
            *_plugin(),
            f"--mypy_out=quiet:{folder}",
            *files,
        ]
    )
    if status != 0:
        raise SystemExit(f"protoc ended with {status}")


def _plugin() -> list[str]:
    """Where mypy-protobuf is: beside this interpreter, whether its environment is active or not."""
    found = Path(sys.executable).parent / "protoc-gen-mypy"
    return [f"--plugin=protoc-gen-mypy={found}"] if found.exists() else []


def stale(made: dict[str, str]) -> list[str]:
    """Committed stubs that differ from those just made, and those whose source is gone."""
    committed = {path.name: path.read_text() for path in committed_stubs()}
    names = sorted(made.keys() | committed.keys())
    return [name for name in names if made.get(name) != committed.get(name)]


def committed_stubs() -> list[Path]:
    """Every generated file in the package."""
    return sorted((ROOT / PACKAGE).glob("*_pb2.py*"))


def report(made: dict[str, str]) -> int:
    """Name what differs, on stderr."""
    differing = stale(made)
    for name in differing:
        path = ROOT / PACKAGE / name
        old = path.read_text().splitlines() if path.exists() else []
        new = made.get(name, "").splitlines()
        diff = list(
            difflib.unified_diff(old, new, f"{PACKAGE}/{name}", "made anew", n=0, lineterm="")
        )
        sys.stderr.write("\n".join([*diff[:20], ""]))
    if differing:
        sys.stderr.write(f"{len(differing)} stubs are not current: run `make proto`\n")
    return 1 if differing else 0


def write(made: dict[str, str]) -> int:
    """Replace the committed stubs."""
    for path in committed_stubs():
        if path.name not in made:
            path.unlink()
    for name, text in made.items():
        (ROOT / PACKAGE / name).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
