"""The tests of `tests/client/test_appender.py`, with the blocking client."""

from __future__ import annotations

import pytest
from client import test_appender
from helpers.threaded import scenarios, threaded_client

pytestmark = pytest.mark.usefixtures("threaded")

threaded = threaded_client
globals().update(
    scenarios(
        test_appender,
        without={
            "test_an_appender_keeps_order_and_makes_large_batches": (
                "each append is awaited by itself here; test_sync_appends.py has it for threads"
            ),
            "test_cancelling_stops_the_wait_not_the_write": (
                "a cancellation does not reach a thread, nor is it said which of three comes first"
            ),
            "test_append_waits_while_the_buffers_are_full": (
                "it holds a batch more; test_sync_appends.py has the bound"
            ),
        },
    )
)
