"""The tests of `tests/client/test_cluster.py`, with the blocking client."""

from __future__ import annotations

import pytest
from client import test_cluster
from helpers.threaded import scenarios, threaded_client

pytestmark = pytest.mark.usefixtures("threaded")

threaded = threaded_client
globals().update(scenarios(test_cluster, without={}))
