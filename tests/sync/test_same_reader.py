"""The tests of `tests/client/test_reader.py`, with the blocking client."""

from __future__ import annotations

import pytest
from client import test_reader
from helpers.threaded import scenarios, threaded_client

pytestmark = pytest.mark.usefixtures("threaded")

threaded = threaded_client
globals().update(
    scenarios(
        test_reader,
        without={
            "test_the_preferred_replica_is_asked_first": "it asks the reader below the client",
        },
    )
)
