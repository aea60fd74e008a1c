"""Has griffe prepare docstrings: it reads the code for the documentation site (mkdocs.yml)."""

from __future__ import annotations

import griffe

from tools.docstrings import place_of, prepare


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
