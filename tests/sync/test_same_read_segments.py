"""The tests of `tests/client/test_read_segments.py`, with the blocking client."""

from __future__ import annotations

import pytest
from client import test_read_segments
from helpers.threaded import scenarios, threaded_client

pytestmark = pytest.mark.usefixtures("threaded")

threaded = threaded_client
globals().update(scenarios(test_read_segments, without={}))
