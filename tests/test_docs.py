"""The documentation site: every public name has its place, every page is linked, it builds."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import sharedlog
from tools.docstrings import place_of, prepare

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"


def _pages() -> dict[str, str]:
    """Every page's text without its code, by its path from docs/."""
    return {
        path.relative_to(DOCS).as_posix(): re.sub(
            r"^```.*?^```", "", path.read_text(), flags=re.DOTALL | re.MULTILINE
        )
        for path in sorted(DOCS.rglob("*.md"))
    }


def _places() -> list[str]:
    """What the API pages have an entry for."""
    return [
        name
        for text in _pages().values()
        for name in re.findall(r"^::: ([\w.]+)$", text, flags=re.MULTILINE)
    ]


def _public_names() -> Iterator[str]:
    """All that `sharedlog` and its public packages have for everybody, without the errors."""
    for name in sharedlog.__all__:
        found = getattr(sharedlog, name)
        if hasattr(found, "__all__"):
            yield from (f"sharedlog.{name}.{inner}" for inner in found.__all__)
        elif not inspect.isclass(getattr(sharedlog.errors, name, None)):
            yield f"sharedlog.{name}"


def test_every_public_name_has_a_place() -> None:
    """One, in docs/api/; all errors have theirs in that of `sharedlog.errors`."""
    places = _places()
    assert len(places) == len(set(places)), "a name has two places"
    missing = set(_public_names()) - set(places)
    assert not missing, f"without a place in docs/api/: {sorted(missing)}"


def test_every_place_is_of_something() -> None:
    """What a page has an entry for can be imported."""
    missing = [place for place in _places() if not _exists(place)]
    assert not missing, f"there is no {missing}"


def _exists(place: str) -> bool:
    module, _, name = place.rpartition(".")
    if hasattr(importlib.import_module(module), name):
        return True
    return importlib.util.find_spec(place) is not None


def test_links_of_pages_stay_in_the_site() -> None:
    """What a page links to is a page, an anchor in the API or on the web: nothing beside docs/."""
    wrong = []
    for page, text in _pages().items():
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            file = (DOCS / page).parent / target.partition("#")[0]
            inside = file.resolve().is_relative_to(DOCS) and not file.is_dir()
            if not inside and not re.match(r"[a-z]+:", target):
                wrong.append(f"{page}: {target}")
        for target in re.findall(r"\]\[(sharedlog[\w.]*)\]", text):
            name = target.removeprefix("sharedlog.errors.").removeprefix("sharedlog.")
            if place_of(name) != target:
                wrong.append(f"{page}: {target}")
    assert not wrong, "\n".join(wrong)


def test_every_page_is_linked() -> None:
    """From the navigation, or from another page."""
    linked = set(re.findall(r"^ +- (?:[\w ]+: )?(\S+\.md)$", _configuration(), re.MULTILINE))
    assert linked <= set(_pages()), "the navigation has a page that is not there"
    for page, text in _pages().items():
        for target in re.findall(r"\]\(([^)\s#]+\.md)(?:#[^)]*)?\)", text):
            file = (DOCS / page).parent / target
            if file.resolve().is_relative_to(DOCS):
                linked.add(file.resolve().relative_to(DOCS).as_posix())
    lost = set(_pages()) - linked
    assert not lost, f"in neither the navigation of mkdocs.yml nor another page: {sorted(lost)}"


def _configuration() -> str:
    return (ROOT / "mkdocs.yml").read_text()


def test_raises_becomes_a_list() -> None:
    """Several errors to a line, one text for several, an error without a text, no text cut off."""
    docstring = """Do it.

Raises:
    LogNotFound. OffsetMismatch: carries the tail (see `tail`). DataLoss, ...: records
    that are in the log can't be had. As for `append` otherwise.

**Cancellation:** stops the wait."""
    assert prepare(docstring, "<{}>".format) == (
        """Do it.

**Raises:**

- <LogNotFound>
- <OffsetMismatch>: carries the tail (see <tail>).
- <DataLoss>, …: records that are in the log can't be had. As for <append> otherwise.

**Cancellation:** stops the wait."""
    )


def test_code_in_docstrings_stays_as_it_is() -> None:
    """Indented lines have no links, nor has what is more than a name."""
    docstring = "Use `Log`, or `await x`:\n\n    async with `log`.appender():\n"
    assert prepare(docstring, "<{}>".format) == docstring.replace("`Log`", "<Log>")


def test_raises_that_says_nothing_is_refused() -> None:
    """Rather than shown wrongly."""
    with pytest.raises(ValueError, match="does not begin with the name of an error: at times"):
        prepare("Raises:\n    at times: it fails", str)


def _docstrings_of_the_client() -> Iterator[tuple[str, str]]:
    for path in sorted((ROOT / "sharedlog").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                docstring = ast.get_docstring(node)
                if docstring is not None:
                    yield f"{path.relative_to(ROOT)} {getattr(node, 'name', '')}", docstring


def test_every_docstring_of_the_client_can_be_shown() -> None:
    """Its `Raises:` section, where it has one, names the errors first."""
    wrong = []
    for where, docstring in _docstrings_of_the_client():
        try:
            shown = prepare(docstring, str)
        except ValueError as error:
            wrong.append(f"{where}: {error}")
        else:
            assert not re.search(r"^Raises:$", shown, re.MULTILINE), where
    assert not wrong, "\n".join(wrong)


def test_names_find_their_places() -> None:
    """Errors, public names, their methods, and methods of the class whose docstring it is."""
    assert place_of("LogNotFound") == "sharedlog.errors.LogNotFound"
    assert place_of("Log") == place_of("sharedlog.Log") == "sharedlog.Log"
    assert place_of("Log.append") == "sharedlog.Log.append"
    assert place_of("tail", owner="Log") == "sharedlog.Log.tail"
    assert place_of("tail") is None
    assert place_of("Log.nothing") is None
    assert place_of("Record.offset") is None  # a field: the entry of its class has it
    assert place_of("errors") is None


@pytest.mark.slow
def test_the_site_builds_and_asks_for_nothing_from_elsewhere(tmp_path: Path) -> None:
    """Without a warning; no page loads a script, a style, a font or an image from the web."""
    if importlib.util.find_spec("zensical") is None or importlib.util.find_spec("griffe") is None:
        pytest.skip("the extra sharedlog[docs] is not installed; `make docs` installs it")
    shutil.copytree(DOCS, tmp_path / "docs")
    configuration = tmp_path / "mkdocs.yml"
    configuration.write_text(_configuration().replace("paths: [.]", f"paths: [{ROOT}]"))
    done = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--strict", "-f", str(configuration)],
        capture_output=True,
        check=False,
        cwd=ROOT,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "griffe" not in done.stdout + done.stderr
    pages = sorted((tmp_path / "site").rglob("*.html"))
    assert len(pages) > len(_pages())  # and one for what is not found
    loads = re.compile(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=[\"']?(?:https?:)?//[^>]*>")
    found = [f"{page.name}: {tag}" for page in pages for tag in loads.findall(page.read_text())]
    assert not found, "\n".join(found)
    for anchor in ("Log.append", "sync.Log.append", "errors.OffsetMismatch"):
        assert any(f'id="sharedlog.{anchor}"' in page.read_text() for page in pages), anchor
