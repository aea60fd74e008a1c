"""Rules of the code base that no linter knows: sizes, layers, pure cores, documents.

Each test names every offender, so that one run shows all there is to mend.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

LAYERS = ("sharedlog", "metadata", "loglet", "sequencer", "node")
"""Lowest first: a package may import itself and what stands before it."""

CODE_FOLDERS = (*LAYERS, "bench", "examples", "tests", "tools")

FUNCTION_LINES_MAX = 70
FILE_LINES_MAX = 600

PURE = {
    "loglet/core.py",
    "loglet/group.py",
    "loglet/ranges.py",
    "loglet/recovery.py",
    "loglet/recovery_steps.py",
    "loglet/repair_rules.py",
    "loglet/time_search.py",
    "metadata/core.py",
    "metadata/quorum.py",
    "metadata/reconfiguration.py",
    "sequencer/core.py",
    "sequencer/find_tail.py",
    "sequencer/moves.py",
    "sequencer/producers.py",
    "sequencer/watch.py",
    "sharedlog/batch.py",
    "sharedlog/codec.py",
    "sharedlog/key_digest.py",
    "sharedlog/merge.py",
    "sharedlog/read_window.py",
}
"""Files that decide and do no I/O; every `core.py` is one."""

NOT_IN_PURE = {
    *("asyncio", "concurrent", "socket", "subprocess", "threading"),
    *("grpc", "lmdb", "prometheus_client", "aiohttp"),
    *("time", "datetime", "random", "secrets", "uuid", "logging", "os", "pathlib"),
}

OWN_TASKS = {
    # A task group would cancel its writer in the middle of a commit; `run` lets it finish first.
    "loglet/service.py",
    # It serves handlers, which begin and end with their streams; `close` ends them all.
    "sharedlog/rpc/loopback.py",
    # A group would cancel whoever iterates; the generator ends its task and waits for it.
    "sharedlog/merged_reads.py",
    # Likewise: it ends its task when its block ends, and waits for it.
    "metadata/etcd_watch.py",
    # `run_together`: waits for all that it starts.
    "sharedlog/tasks.py",
    # A process's root: it stops its parts in order, and waits for them.
    "metadata/__main__.py",
}
"""Files that may create tasks outside of a `TaskGroup`, and why."""


@cache
def _sources() -> dict[str, ast.Module]:
    """Every Python file of ours, by its path from the root."""
    found = {}
    for folder in CODE_FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            if not name.startswith("sharedlog/v1/"):
                found[name] = ast.parse(path.read_text())
    return found


def _packages() -> dict[str, ast.Module]:
    return {name: tree for name, tree in _sources().items() if name.split("/")[0] in LAYERS}


def _imports(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.lineno, node.module
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}"


def _documents() -> list[Path]:
    hidden = {".venv", ".git", "node_modules"}
    return [
        path
        for path in sorted(ROOT.rglob("*.md"))
        if not hidden & set(path.relative_to(ROOT).parts)
    ]


def test_there_is_something_to_check() -> None:
    """The other tests would pass on an empty list."""
    assert len(_packages()) > 20
    assert set(_sources()) >= PURE


def test_functions_are_short() -> None:
    """At most 70 lines, the docstring not counted."""
    long = []
    for name, tree in _sources().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = node.body
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if ast.get_docstring(node, clean=False) is not None:
                    lines -= (body[0].end_lineno or 0) - body[0].lineno + 1
                if lines > FUNCTION_LINES_MAX:
                    long.append(f"{name}:{node.lineno} {node.name} has {lines} lines")
    assert not long, "\n".join(long)


def test_files_are_short() -> None:
    """At most 600 lines: a longer one has two subjects."""
    long = [
        f"{name} has {lines} lines"
        for name in _sources()
        if (lines := len((ROOT / name).read_text().splitlines())) > FILE_LINES_MAX
    ]
    assert not long, "\n".join(long)


def test_modules_say_what_they_are() -> None:
    """Every module opens with a docstring."""
    silent = [name for name, tree in _sources().items() if not ast.get_docstring(tree)]
    assert not silent, "\n".join(silent)


def test_imports_run_one_way() -> None:
    """node → sequencer → loglet → metadata → sharedlog, and nothing imports tests or bench."""
    wrong = []
    for name, tree in _packages().items():
        layer = LAYERS.index(name.split("/")[0])
        for line, module in _imports(tree):
            top = module.split(".")[0]
            above = top in LAYERS and LAYERS.index(top) > layer
            if above or top in ("bench", "tests", "helpers", "tools"):
                wrong.append(f"{name}:{line} imports {module}")
    assert not wrong, "\n".join(wrong)


def test_cores_are_pure() -> None:
    """No I/O, no clock, no chance, no coroutine in what decides."""
    cores = {name for name in _packages() if name.endswith("/core.py") or "/core/" in name}
    wrong = []
    for name in sorted(PURE | cores):
        tree = _sources()[name]
        for line, module in _imports(tree):
            if module.split(".")[0] in NOT_IN_PURE or module.endswith((".metrics", "_pb2")):
                wrong.append(f"{name}:{line} imports {module}")
        wrong += [
            f"{name}:{node.lineno} has a coroutine"
            for node in ast.walk(tree)
            if isinstance(node, ast.AsyncFunctionDef | ast.Await)
        ]
    assert not wrong, "\n".join(wrong)


def test_stored_and_configured_things_know_no_wire_messages() -> None:
    """Generated messages stay with those who speak to a transport."""
    without = re.compile(r"/(\w*core|\w*store|config|errors|metrics|records|\w*db|keys|cache)\.py$")
    wrong = [
        f"{name}:{line} imports {module}"
        for name, tree in _packages().items()
        if without.search(name) and name != "sharedlog/rpc/errors.py"  # it makes them messages
        for line, module in _imports(tree)
        if module.endswith("_pb2")
    ]
    assert not wrong, "\n".join(wrong)


def test_metrics_objects_live_in_metrics_files() -> None:
    """Others are handed them, or the registry."""
    wrong = [
        f"{name}:{line} imports {module}"
        for name, tree in _packages().items()
        if not name.endswith("/metrics.py")
        for line, module in _imports(tree)
        if module.startswith("prometheus_client.")
        and module.split(".")[1] in {"Counter", "Gauge", "Histogram", "Info", "Summary", "Enum"}
    ]
    assert not wrong, "\n".join(wrong)


BOUNDED_BY_THEIR_USE = {
    "loglet/lmdb_store.py",  # one commit at a time; a bounded Queue has three locks instead of one
}


def test_queues_are_bounded() -> None:
    """An `asyncio.Queue` has a maxsize: what nobody bounds grows until the process dies."""
    wrong = []
    for name, tree in _packages().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and _called(node) in {
                *("Queue", "asyncio.Queue"),
                *("LifoQueue", "asyncio.LifoQueue", "PriorityQueue", "asyncio.PriorityQueue"),
                *("queue.Queue", "queue.SimpleQueue", "SimpleQueue"),
            }:
                given = [
                    *node.args,
                    *(word.value for word in node.keywords if word.arg == "maxsize"),
                ]
                unbounded = not given or (
                    isinstance(given[0], ast.Constant) and given[0].value in (0, None)
                )
                if unbounded and name not in BOUNDED_BY_THEIR_USE:
                    wrong.append(f"{name}:{node.lineno} makes a queue without a bound")
    assert not wrong, "\n".join(wrong)


def test_tasks_have_owners() -> None:
    """Tasks are made by a `TaskGroup`, which waits for them and hears their errors."""
    wrong = [
        f"{name}:{node.lineno} calls {_called(node)}"
        for name, tree in _packages().items()
        if name not in OWN_TASKS
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and _called(node)
        in {"asyncio.create_task", "asyncio.ensure_future", "loop.create_task", "ensure_future"}
    ]
    assert not wrong, "\n".join(wrong)


def _called(node: ast.Call) -> str:
    return ast.unparse(node.func)


def test_every_proto_field_is_explained() -> None:
    """A comment above each field, enum value and method of the wire contract."""
    silent = []
    entry = re.compile(r"^\s*((optional |repeated )?[\w.<>, ]+ \w+ = \d+|rpc \w+)")
    for path in sorted((ROOT / "proto").rglob("*.proto")):
        above = ""
        for number, line in enumerate(path.read_text().splitlines(), 1):
            declares = entry.match(line) and not line.strip().endswith("_UNSPECIFIED = 0;")
            if declares and not above.startswith("//"):
                silent.append(f"{path.relative_to(ROOT)}:{number} {line.strip()}")
            above = line.strip()
    assert not silent, "\n".join(silent)


def test_links_in_documents_lead_somewhere() -> None:
    """Relative links name files that exist, and headings that are there."""
    broken = []
    for document in _documents():
        for target in re.findall(r"\]\(([^)\s]+)\)", _without_code(document.read_text())):
            if re.match(r"[a-z]+:", target):
                continue
            path, _, anchor = target.partition("#")
            file = document if not path else document.parent / path
            if not file.exists() or (anchor and anchor not in _anchors(file)):
                broken.append(f"{document.relative_to(ROOT)}: {target}")
    assert not broken, "\n".join(broken)


def _without_code(text: str) -> str:
    return re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)


def _anchors(document: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", document.read_text(), flags=re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in plain}


def test_code_that_documents_name_exists() -> None:
    """`path/to/file.py` and the like in a document is a file of this repository."""
    folders = "|".join((*CODE_FOLDERS, "docs", "proto"))
    named = re.compile(rf"`((?:{folders})/[\w./-]+\.(?:py|md|proto))`")
    missing = [
        f"{document.relative_to(ROOT)}: {path}"
        for document in _documents()
        for path in named.findall(document.read_text())
        if not (ROOT / path).exists()
    ]
    assert not missing, "\n".join(missing)


def test_nothing_points_outside_the_repository() -> None:
    """No path of one developer's machine."""
    private = re.compile(r"(?<![\w.\"'}-])/(?:work|root|home/\w+|Users/\w+|tmp/\w+)/")
    texts = [
        *(ROOT / name for name in _sources()),
        *_documents(),
        *(ROOT / "proto").rglob("*.proto"),
    ]
    wrong = [
        f"{path.relative_to(ROOT)}:{number} {line.strip()}"
        for path in (*texts, ROOT / "pyproject.toml", ROOT / "Makefile")
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if path != Path(__file__) and private.search(line)
    ]
    assert not wrong, "\n".join(wrong)


def test_nothing_is_left_for_later_in_the_code() -> None:
    """What is to be done is an issue, not a remark."""
    marks = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
    wrong = [
        f"{name}:{number}"
        for name in _sources()
        for number, line in enumerate((ROOT / name).read_text().splitlines(), 1)
        if name != "tests/test_tidy.py" and marks.search(line)
    ]
    assert not wrong, "\n".join(wrong)


def test_the_stubs_are_current() -> None:
    """sharedlog/v1 holds what proto/ says, made by the pinned compiler."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("proto_tool", ROOT / "tools" / "proto.py")
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    assert tool.main(["--check"]) == 0, "run `make proto`"
