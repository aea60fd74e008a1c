"""What griffe, which reads the code for the documentation site (mkdocs.yml), is to do besides."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import griffe

from tools.docstrings import place_of, prepare

_MAKERS: Final = {"blocking", "direct", "iterating", "iterating_flat"}
"""Of `sharedlog/sync/facade.py`: they make blocking methods from asyncio ones."""


class Docstrings(griffe.Extension):  # type: ignore[misc, unused-ignore]  # Any if it is missing
    """Prepares every docstring that griffe reads, before it is parsed."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Called by griffe with each object that it has read."""
        if obj.docstring is None:
            return
        owner = obj if obj.is_class else obj.parent
        name = owner.name if owner is not None and owner.is_class else None

        def link(found: str) -> str:
            place = place_of(found, name)
            if place is None or place == f"sharedlog.{name}":
                return f"`{found}`"
            return f"[`{found}`][{place}]"

        obj.docstring.value = prepare(obj.docstring.value, link)


class BlockingMethods(griffe.Extension):  # type: ignore[misc, unused-ignore]  # likewise
    """Shows the methods of `sharedlog.sync` as such, with what those say that they are made from.

    In the code they are `append = blocking(aio.Log.append)`.
    """

    def on_package(self, *, pkg: griffe.Module, **_: object) -> None:
        """Called by griffe when it has read a package and prepared its docstrings."""
        if "sync" not in pkg.members:
            return
        for cls in _classes(pkg["sync"]):
            for attribute in list(cls.attributes.values()):
                made_from = _made_from(attribute)
                if made_from is not None:
                    cls.set_member(attribute.name, _blocking(attribute, pkg[made_from]))


def _classes(module: griffe.Module) -> Iterator[griffe.Class]:
    for part in module.modules.values():
        yield from (found for found in part.classes.values() if not found.is_alias)


def _made_from(attribute: griffe.Attribute) -> str | None:
    """Path, from the package, of the method that it is made from; None if it is something else."""
    call = attribute.value
    if not isinstance(call, griffe.ExprCall) or call.function.canonical_name not in _MAKERS:
        return None
    return str(call.arguments[0].canonical_path).removeprefix("sharedlog.")  # type: ignore[union-attr, unused-ignore]  # an expression


def _blocking(attribute: griffe.Attribute, method: griffe.Function) -> griffe.Function:
    returns = str(method.returns)
    if returns.startswith("AsyncGenerator["):
        returns = returns.removeprefix("Async")
        returns = f"{returns.removesuffix(', None]')}, None, None]"
    made = griffe.Function(
        attribute.name,
        parameters=method.parameters,
        returns=returns,
        lineno=attribute.lineno,
        endlineno=attribute.endlineno,
        parent=attribute.parent,
    )
    if method.docstring is not None:
        text = method.docstring.value.replace("**Cancellation:**", "**An interrupt:**")
        made.docstring = griffe.Docstring(text, parent=made)
    return made
