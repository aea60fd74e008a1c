"""What earlier versions put on the wire and stored is read as they meant it.

`tools/record_messages.py` records; docs/compatibility.md has the rules.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.recorded import VERSIONS, known_methods, recorded_forms, recorded_messages

from tools.compat_forms import StoredForm
from tools.compat_messages import message_types, methods, text
from tools.record_messages import RECORDED, wanted


def contains(now: Any, then: Any) -> bool:
    """`now` says all that `then` said; objects may have further fields by now."""
    if isinstance(then, dict):
        return isinstance(now, dict) and all(
            name in now and contains(now[name], value) for name, value in then.items()
        )
    if isinstance(then, list):
        return isinstance(now, list) and len(now) == len(then) and all(map(contains, now, then))
    return bool(now == then)


def test_everything_of_this_version_is_recorded() -> None:
    """A method or a stored form that is added gets an example."""
    missing = [path.name for path in wanted() if not path.exists()]
    assert not missing, f"not recorded: {missing}; run python tools/record_messages.py"


def test_every_message_is_read_as_it_was_meant() -> None:
    """Of a message that has lost a field, the text loses it too: the one reason to edit it."""
    types = message_types()
    wrong = [
        path.name
        for name, path in recorded_messages()
        if text(types[name], path.read_bytes()) != path.with_suffix(".txt").read_text()
    ]
    assert not wrong
    assert len(list(recorded_messages())) > 100


def test_every_method_decodes_what_was_recorded() -> None:
    """Also those whose bytes are taken apart by hand, and they are put together to the same."""
    found = known_methods()
    assert set(found) == set(methods())
    for name, method in found.items():
        request, response = methods()[name]
        sides = (
            (request.name, method.decode_request, method.encode_request),
            (response.name, method.decode_response, method.encode_response),
        )
        for message, decode, encode in sides:
            for version in VERSIONS:
                for path in (RECORDED / version / "messages").glob(f"{message}*.bin"):
                    if path.name.split(".")[0] != message:
                        continue
                    decoded = decode(path.read_bytes())
                    # Errors within are equal by what they say.
                    assert repr(decode(encode(decoded))) == repr(decoded), path.name


@pytest.mark.parametrize(
    ("form", "path"), [*recorded_forms()], ids=lambda it: getattr(it, "name", "")
)
def test_every_stored_form_is_read_as_it_was_meant(form: StoredForm, path: Path) -> None:
    then = json.loads(path.with_suffix(".txt").read_text())
    assert contains(json.loads(form.text(path.read_bytes())), then)


def test_a_value_that_means_something_else_is_found() -> None:
    """The comparison allows further fields, and nothing else."""
    then = {"a": 1, "b": [{"c": 2}]}
    assert contains({"a": 1, "b": [{"c": 2, "new": 3}], "new": 4}, then)
    for now in ({"a": 1}, {"a": 2, "b": [{"c": 2}]}, {"a": 1, "b": []}, {"a": 1, "b": [{}]}):
        assert not contains(now, then)
