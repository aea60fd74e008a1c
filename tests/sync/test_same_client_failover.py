"""The tests of `tests/client/test_client_failover.py`, with the blocking client."""

from __future__ import annotations

import pytest
from client import test_client_failover
from helpers.threaded import scenarios, threaded_client

pytestmark = pytest.mark.usefixtures("threaded")

threaded = threaded_client
globals().update(
    scenarios(
        test_client_failover,
        without={
            "test_all_appenders_of_a_log_share_one_report": (
                "each append is awaited by itself here, and so the losses come one by one"
            ),
            "test_an_idle_session_that_moved_is_opened_again_with_the_next_append": (
                "it waits for what it sees inside of the asyncio client"
            ),
        },
    )
)
