"""What an error of a request to S3 means: S3's codes, and those of the libraries, as ours.

| meaning           | examples                                            | becomes               |
|-------------------|-----------------------------------------------------|-----------------------|
| no such object    | `NoSuchKey`, 404 without a code                     | `ObjectNotFound`      |
| beyond the end    | 416                                                 | `BeyondEnd`           |
| no such upload    | `NoSuchUpload`                                      | `UploadLost`          |
| may pass          | 5xx, 429, throttling, time-outs, broken connections | `purpose.unavailable` |
| a condition lost  | 412, 409: what is there is to be read               | `purpose.unavailable` |
| a person must act | 401, 403, no such bucket, no credentials, other 4xx | `purpose.unsuitable`  |

This module loads the library, so it is loaded late itself.
"""

from __future__ import annotations

from typing import Final

import aiohttp
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    HTTPClientError,
    MetadataRetrievalError,
)
from botocore.exceptions import ConnectionError as NoConnection

from metadata.s3.settings import Purpose
from sharedlog.errors import ObjectNotFound

FAILURES: Final = (BotoCoreError, ClientError, aiohttp.ClientError, OSError, TimeoutError)
"""What a request raises: errors of the library, and what it lets through."""

_PASSING: Final = (
    *(NoConnection, HTTPClientError, aiohttp.ClientError, OSError, TimeoutError),
    # Credentials that are fetched from the machine's role, by HTTP.
    *(CredentialRetrievalError, MetadataRetrievalError),
)
_PASSING_CODES: Final = frozenset(
    (
        *("SlowDown", "Throttling", "ThrottlingException", "TooManyRequests", "RequestTimeout"),
        *("RequestLimitExceeded", "BandwidthLimitExceeded", "InternalError", "ServiceUnavailable"),
        # The body was damaged or cut on the way.
        *("BadDigest", "IncompleteBody", "XAmzContentChecksumMismatch"),
        "XAmzContentSHA256Mismatch",
    )
)
"""Of a 4xx; a 5xx may pass whatever its code."""
_NO_OBJECT: Final = frozenset(("NoSuchKey", "404", "NotFound"))


class BeyondEnd(Exception):
    """The range begins where the object has ended."""


class UploadLost(Exception):
    """An upload in parts is not known any more: it was completed, or aborted."""


def translated(error: Exception, said: str, key: str, purpose: Purpose) -> Exception:
    """What one of `FAILURES` means. `said`: which place, and what was tried there."""
    if isinstance(error, ClientError):
        return _of_answer(error, said, key, purpose)
    reason = " ".join(str(error).split())
    text = f"{said}: {reason}" if reason else f"{said}: {type(error).__name__}"
    if isinstance(error, _PASSING):
        return purpose.unavailable(text)
    return purpose.unsuitable(text)


def status_of(error: BaseException | None) -> int:
    """HTTP status of the answer that an error of ours was made of; 0 if it was of none."""
    cause = None if error is None else error.__cause__
    return _status(cause) if isinstance(cause, ClientError) else 0


def _of_answer(error: ClientError, said: str, key: str, purpose: Purpose) -> Exception:
    found = error.response.get("Error", {})
    code, message = str(found.get("Code", "")), " ".join(str(found.get("Message", "")).split())
    status = _status(error)
    shown = " ".join(part for part in (str(status), code if code != str(status) else "") if part)
    text = f"{said}: {shown}: {message}" if message else f"{said}: {shown}"
    if code == "NoSuchUpload":
        return UploadLost(text)
    if status == 404 and code in _NO_OBJECT:
        return ObjectNotFound(text, key=key)
    if status == 416:
        return BeyondEnd(text)
    if code in _PASSING_CODES or status in (408, 409, 412, 429) or status >= 500:
        return purpose.unsuitable(text) if status == 501 else purpose.unavailable(text)
    return purpose.unsuitable(text)


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
