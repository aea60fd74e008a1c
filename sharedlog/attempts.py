"""The core of finding a log's sequencer: where the next attempt goes, when, and who is suspected.

Rules of this file: no I/O, no clock, no `async`. The shell (`sequencer_path.py`) asks where to go,
goes there, and tells how it ended.

Theory of operation. An attempt goes to an address that somebody *told* (a session that moved, an
answer to a report), else to the sequencer that the log's description names, else *forwarded*:
through any node, which passes it on. It ends in progress or in a failure, which is one of

    unreached   no connection, or no answer to the opening: suspicious if it went straight there
    broke       the connection ended without a word: likewise
    silent      answers were due and nothing came: suspicious whichever way it went
    refused     the node answered, with an error: it lives, so it is not suspected

A suspicion is reported to another node, which looks into it and tells who orders the log by now. If
that is somebody else, the next attempt goes there at once. If it is the same one, then the suspect
is *innocent*: it lives, and merely can't answer (no write quorum) or can't be reached from here.
Then the next attempt waits longer for an answer, so that nobody is hammered; and one that could not
even be reached is tried through another node.

Waits. The first retry comes within 10 ms; the later ones back off from 20 ms to 0.5 s, until there
is progress.

Patience is kept for a while after it was needed, for a log that answers in a second would otherwise
be suspected again and again.
"""

from __future__ import annotations

from random import Random
from typing import Final, Literal, NamedTuple

from sharedlog.backoff import Backoff
from sharedlog.errors import NotSequencer, Overloaded, SharedLogError

_FIRST_WAIT_MAX_S: Final = 0.01
_WAIT_MIN_S: Final = 0.02
_WAIT_MAX_S: Final = 0.5
_PATIENCE_MAX_S: Final = 5.0
_PATIENCE_KEPT_S: Final = 60.0
_DOUBLINGS_MAX: Final = 16
_FORWARD_AFTER: Final = 2  # attempts that did not reach the sequencer, with nobody to ask about it
_MOVES_AT_ONCE_MAX: Final = 3  # without progress: two nodes may disagree for a moment

FailureKind = Literal["unreached", "broke", "silent", "refused"]


class Failure(NamedTuple):
    """How an attempt ended without success."""

    kind: FailureKind
    error: SharedLogError
    address: str
    direct: bool  # it went to the sequencer's own node


class Attempts:
    """See the module's docstring. One for each appender, and for each call."""

    def __init__(self, rng: Random, *, smart: bool) -> None:
        self._rng = rng
        self._smart = smart
        self._backoff = Backoff(rng, min_s=_WAIT_MIN_S, max_s=_WAIT_MAX_S)
        self.told = ""  # go to this address next
        self.named: str | None = None  # the node of this name orders the log, a node said
        self.forward = False  # go through any node next
        self.refresh = False  # the description led astray: fetch a new one
        self.failures = 0  # in a row, without progress
        self._moves = 0  # likewise
        self._unreached = 0  # likewise
        self._at_once = False
        self._patience = 0  # times that an innocent one was suspected
        self._patient_until_s = float("-inf")

    def on_progress(self) -> None:
        """The log answered."""
        self.failures = self._moves = self._unreached = 0
        self._backoff.reset()

    def on_moved(self, address: str) -> None:
        """A session ended by saying who orders the log now: go there at once."""
        self._moves += 1
        self._go_to(address)
        self._at_once = self._moves <= _MOVES_AT_ONCE_MAX

    def on_failure(self, failure: Failure) -> bool:
        """Returns whether the suspicion is to be reported before the next attempt."""
        self.failures += 1
        self.refresh = True
        self._at_once = False
        if isinstance(failure.error, NotSequencer):
            self.named = failure.error.sequencer_node_id
        if not failure.direct:
            self._unreached = 0
        elif failure.kind == "unreached":
            self._unreached += 1
            self.forward = self._unreached >= _FORWARD_AFTER
        return failure.kind == "silent" or (failure.direct and failure.kind != "refused")

    def on_report_answered(
        self, failure: Failure, *, address: str, innocent: bool, now_s: float
    ) -> None:
        """A node looked into it: the log is ordered by whoever is at `address` by now."""
        if not innocent:
            self._patience = 0
            self._go_to(address)
            self._at_once = self.failures <= _MOVES_AT_ONCE_MAX
            return
        self._patience = min(self._patience + 1, _DOUBLINGS_MAX)
        self._patient_until_s = now_s + _PATIENCE_KEPT_S
        if failure.kind == "unreached" and failure.direct:
            self.forward = True

    def _go_to(self, address: str) -> None:
        self.named = None
        self.refresh = True
        if self._smart:
            self.told = address
            self.forward = False
            self._unreached = 0

    def limit_s(self, base_s: float, now_s: float) -> float:
        """How long to wait for an answer that should come within `base_s`."""
        if now_s >= self._patient_until_s:
            self._patience = 0
        return max(base_s, min(_PATIENCE_MAX_S, base_s * (1 << self._patience)))

    def wait_s(self, error: SharedLogError | None) -> float:
        """Until the next attempt. `error`: what the last one met."""
        if self._at_once:
            self._at_once = False
            return 0.0
        if self.failures <= 1 and self._moves <= _MOVES_AT_ONCE_MAX:
            wait_s = self._rng.random() * _FIRST_WAIT_MAX_S
        else:
            wait_s = self._backoff.next_s()
        return max(wait_s, error.retry_after_s) if isinstance(error, Overloaded) else wait_s
