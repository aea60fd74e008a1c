"""What a log server drops of a loglet when it is told to: the rules of `TrimLoglets`.

A trim raises the **local start**. Below it nothing is served, nothing is taken, and what is there
is deleted in the background (`loglet/sweep.py`). Whoever asks answers for it that all of that is
kept elsewhere, or given up; that it is *committed* the log server sees to by itself:

1. This storage_id. A loglet that is not known here is passed over, and not created: the answer
   lacks it. Its prefix is a hole then, legal below the committed tail. Nobody fills it
   (`node/coverage.py`), and a further trim reaches it once it is known.
2. Open, sealed and ended loglets alike: a trim takes nothing that a sealer may ask for.
3. **Never beyond what is known here to be committed**: the told end, or else the committed tail. A
   told end proves that all below is committed, and nothing above it is in the log. A server that is
   behind goes as far as it knows and says how far that is (Field note 44); whoever asks can tell it
   a committed tail or an end first, and asks again.
4. The local start never goes back, and may lie within a batch. That batch stays, whole, and is
   served from the local start on; batches that end at or below it go.

**What is raised with it.** The committed tail, to at least the local start: it is true, a restart
would take it from there (`loglet/held.py`), and a sealer who hears it copies nothing below. Had it
stayed behind, an attempt at ending the segment would look for sources of what all have dropped.
And the local tail: a server may be told to drop what it never held, since it was skipped or is new,
and knows that to be committed. With the local tail at the local start the prefix rule stays what it
is: the next batch follows what is committed. The claim that goes with a local tail, to be a copy
from the committed tail on, claims nothing here, as the committed tail is not below.

So base <= local start <= local tail, and local start <= committed tail <= told end.

**What survives a restart** (Field note 46): the record has the local start, and the latest
timestamp as of the trim, which the batches that are gone would have told. The local tail is that of
the last batch, or the local start if there is none above it: nothing more has to be recorded.

Pure; works on the state and the group that it is handed.
"""

from __future__ import annotations

from loglet.store import LogletState
from sharedlog.ids import Offset


def trim(state: LogletState, local_start: Offset) -> bool:
    """Raise the local start to what was asked for, as far as may be; whether that was higher."""
    known = state.committed_tail if state.told_end is None else state.told_end
    start = min(local_start, known)
    if start <= state.local_start:
        return False
    state.local_start = start
    state.committed_tail = max(state.committed_tail, start)
    state.local_tail = max(state.local_tail, start)
    assert state.base < state.local_start <= min(state.local_tail, state.committed_tail)
    assert state.told_end is None or state.committed_tail <= state.told_end
    return True
