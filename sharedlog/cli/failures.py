"""From an exception to an exit code and one line for a person.

| code | meaning                                                                      |
|------|------------------------------------------------------------------------------|
| 0    | done                                                                         |
| 1    | failed; trying again as it is will not help, or is not safe                  |
| 2    | usage: what was typed can't be right                                         |
| 3    | not found, exists already, or a condition was lost                           |
| 4    | may succeed if tried again: nothing was appended                             |
| 130  | interrupted                                                                  |

They follow from what the class of an error says of itself (`fault`, `retryable`).
"""

from __future__ import annotations

import os
import re
from typing import Final

import click

from sharedlog import errors

EXIT_DONE: Final = 0
EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_NOT_FOUND: Final = 3
EXIT_RETRY: Final = 4
EXIT_INTERRUPTED: Final = 130

_BY_FAULT: Final[dict[errors.Fault, int]] = {
    "call": EXIT_USAGE,
    "data": EXIT_FAILED,  # wrong in what was to be appended, not in what was typed
    "state": EXIT_NOT_FOUND,
}
_REFUSED: Final = re.compile(
    r"failed to connect .*to remote host: (?:connect: )?(.+?)(?: \(\d+\))?", re.IGNORECASE
)
"""How gRPC says that nobody listens; the group is the system's word for it."""


_PLAIN_WORDS: Final = (
    ("is not a valid integer range", "is no whole number"),
    ("is not a valid float range", "is no number"),
)
"""What click says, and what a person says."""


class CliFailure(click.ClickException):
    """A failure that the command itself found; `str` is the line, without "error: "."""

    def __init__(self, message: str, *, exit_code: int = EXIT_FAILED) -> None:
        super().__init__(message)
        self.code = exit_code


class SilentExit(Exception):
    """Ends the command with a code; whatever there was to say has been said."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code


def exit_code_of(error: BaseException) -> int:
    """The exit code that tells a script what to do about an error."""
    if isinstance(error, CliFailure):
        return error.code
    if isinstance(error, click.ClickException | SilentExit):
        return error.exit_code
    if isinstance(error, errors.SharedLogError):
        otherwise = EXIT_RETRY if error.retryable else EXIT_FAILED
        return _BY_FAULT.get(error.fault, otherwise)
    return EXIT_RETRY if isinstance(error, TimeoutError) else EXIT_FAILED


def message_of(error: BaseException, *, address: str | None = None) -> str:
    """One line that says what went wrong, with a hint where there is one to give.

    Args:
        error: What was raised.
        address: The node that the command spoke to, if it spoke to one.
    """
    if isinstance(error, click.UsageError):
        help_of = error.ctx.command_path if error.ctx is not None else "sharedlog"
        said = error.format_message()
        for clicks_words, ours in _PLAIN_WORDS:
            said = said.replace(clicks_words, ours)
        return f"{_sentence(said)}; see: {help_of} --help"
    if isinstance(error, click.ClickException):
        return _one_line(error.format_message())
    if isinstance(error, errors.Unreachable) and address is not None:
        return _unreachable(str(error), address)
    if isinstance(error, errors.LogNotFound):
        return f"{_one_line(str(error))}; see: sharedlog log ls"
    if isinstance(error, errors.SharedLogError):
        notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
        return _one_line((str(error) or type(error).__name__) + notes)
    if isinstance(error, TimeoutError):
        return _one_line(str(error) or "no answer in time; --timeout SECONDS waits longer")
    if isinstance(error, OSError):
        name = f"{error.filename}: " if error.filename else ""
        return _one_line(f"{name}{error.strerror or error}")
    return _one_line(f"unexpected {type(error).__name__}: {error} (SHAREDLOG_DEBUG=1 shows where)")


def debugging() -> bool:
    """Whether the user wants to see tracebacks."""
    return os.environ.get("SHAREDLOG_DEBUG", "") not in ("", "0")


def leaf_of(error: BaseException) -> BaseException:
    """The error of a task group that says most: one of ours if there is any, else the first."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    leaves = [leaf_of(inner) for inner in error.exceptions]
    ours = (leaf for leaf in leaves if isinstance(leaf, errors.SharedLogError))
    return next(ours, leaves[0])


def _unreachable(text: str, address: str) -> str:
    """What the client said, in which the address may stand already, with a hint."""
    said = text if text.startswith("can't reach ") else f"can't reach {address}: {text}"
    start, _, reason = _one_line(said).partition(": ")
    if refused := _REFUSED.fullmatch(reason):
        reason = refused[1].lower()
    if "HTTP/2" in reason:
        return f"{start}: what listens there does not speak gRPC (is it a node's own port?)"
    return f"{start}: {reason}{_hint_unreachable(address)}"


def _hint_unreachable(address: str) -> str:
    host = address.rpartition(":")[0].strip("[]")
    if host in ("127.0.0.1", "localhost", "::1"):
        return " (is a cluster running? start one with: sharedlog dev)"
    return " (is the address right? see --address and: sharedlog context ls)"


def _sentence(text: str) -> str:
    """As part of a longer line: one line, without a full stop, starting small."""
    line = _one_line(text).rstrip(".")
    return line[:1].lower() + line[1:]


def _one_line(text: str) -> str:
    return " ".join(text.split())
