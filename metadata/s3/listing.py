"""Reading the answer to a request for a listing: quickly, for it is read by the event loop.

The library takes 0.1 s for a page of 1,000 names, and appends wait meanwhile; a metadata store asks
for one twice a second. So its objects are taken out of the answer here, which takes a tenth of
that, and the library reads what remains. It goes on as usual afterwards, e.g. with the names that
servers escape.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from datetime import datetime
from typing import Any, Final
from xml.etree import ElementTree as ET

EVENT: Final = "before-parse.s3.ListObjectsV2"
"""Of the library, at which `take_objects` is called."""

_OBJECT: Final = "Contents"


def take_objects(
    response_dict: MutableMapping[str, Any],
    customized_response_dict: MutableMapping[str, Any],
    **_: object,
) -> None:
    """Move the objects of an answer to where the library adds what others have read.

    What can't be read is left to the library, which says what is wrong with it.
    """
    if response_dict["status_code"] != 200:
        return
    try:
        # An answer of the store that was asked for; the library reads it by the same means.
        root = ET.fromstring(response_dict["body"])  # noqa: S314
        space = root.tag.rpartition("}")[0]
        name = f"{space}}}{_OBJECT}" if space else _OBJECT
        found = root.findall(name)
        objects = [_object(element) for element in found]
    except (ET.ParseError, KeyError, ValueError):
        return
    root[:] = [element for element in root if element.tag != name]
    response_dict["body"] = ET.tostring(root)
    if objects:
        customized_response_dict[_OBJECT] = objects


def _object(element: ET.Element) -> dict[str, object]:
    fields = {child.tag.rpartition("}")[2]: child.text or "" for child in element}
    return {
        "Key": fields["Key"],
        "Size": int(fields["Size"]),
        "ETag": fields["ETag"],
        "LastModified": datetime.fromisoformat(fields["LastModified"]),
    }
