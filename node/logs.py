"""Where a node's logs go: JSON lines off a terminal, readable text on one.

How a line looks is decided in `sharedlog/logs.py`. All go to stderr; stdout stays free for data.
"""

from __future__ import annotations

import logging
from typing import Literal, TextIO

from sharedlog.logs import JsonFormatter, TextFormatter

LogFormat = Literal["auto", "json", "text"]


def configure_logging(level: str, log_format: LogFormat, stream: TextIO) -> None:
    """Send every log to `stream`. "auto" is text on a terminal and JSON elsewhere."""
    text = log_format == "text" or (log_format == "auto" and stream.isatty())
    handler = logging.StreamHandler(stream)
    handler.setFormatter(TextFormatter() if text else JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # One line for each scrape and each slow callback is noise; their warnings are not. And what
    # botocore tells in detail has session tokens in it.
    for name in ("aiohttp.access", "asyncio", "botocore", "aiobotocore"):
        logging.getLogger(name).setLevel(logging.WARNING)
