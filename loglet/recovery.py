"""Ending a segment: seal, find the tail, repair. The heart of the protocol, without I/O.

One `SegmentRecovery` is one attempt. The shell (`node/reconfigure.py`) asks servers, tells here
what came of it, and takes the next step from `advance`, until that says `EndSegment` (now the chain
may be changed) or `StopAttempt`. Any number of attempts may run at once, anywhere, each may be
abandoned anywhere, and nothing here is remembered: a further attempt begins with fresh answers.

**Why it is safe** (DESIGN.md §6; the model in `docs/model/` checks each sentence).

*Seal.* A server that has sealed takes no more stores of the sequencer. Only answers that a server
gave after its own seal was durable are events here, so a seal quorum of answers is a set that every
write quorum meets and that can acknowledge nothing more: whatever was or ever will be committed is
below the local tail of one of them. Anything else a server may say, or not say, is *unknown*: it
never counts as "no" (field notes 2 and 5).

*Find the tail.* M is the highest local tail of a seal quorum of answers, so everything that was
committed lies below M. C is the highest committed tail that anyone knows; everything below is on a
write quorum already. Between them lies what may or may not have been committed, so all of it is
made so. M and C are fixed when copying begins; an answer that comes later adds a copy, a source or
a target, and changes neither, for a seal quorum's M stays valid until the segment has an end.

*Repair.* [C, M) is copied forward, in order, until each offset is on a write quorum. An answer with
local tail t is a copy of [C, t) but for what is damaged. It may have a hole there; then the server
knew that the offsets of the hole were committed when it left it, so they are on a write quorum in
any case. Where the answers are a write quorum nothing is copied. Servers take repair stores only of
loglets that they know, so only those who have answered the seal are targets.

*What can't be copied.* A range of [C, M) for which no source is left, or too few targets, does not
end the matter: the servers that claim it may be left out if the other answers are a seal quorum of
their own. What a whole seal quorum lacks was never committed, so that is no truncation. Damaged
batches count in their servers' tails here, so damage can't make a seal quorum seem to lack what it
once held. The attempt stops with `leave_out`, and the next one starts again at the seal. In it the
left-out servers have no say in M and are no part of the seal quorum; they still are copies, targets
and witnesses of C. Otherwise the attempt stops and says why.

*Servers that are lost.* A store that was wiped or swapped refuses by its storage_id, and whoever
calls may know of stores that are gone for good. If the others can't be a seal quorum, nothing can
tell what was committed, and the segment is `Unrepairable`. If they can be one but not a write
quorum, no amount of waiting makes [C, M) safe: *replacement servers* take the lost ones' places in
the nodeset. They are created sealed, get all of [base, M) from the survivors, not only what lies
above C, since from then on they are counted as members, and count for nothing before they have all
of it. The compare-and-swap that ends the segment names them. They never vote: M and C come from the
nodeset that the sequencer wrote to, and so does the seal quorum. An attempt that loses leaves
copies behind that no chain names.

With replacements the survivors' claims are *proved anew*, from the base on: only what they confirm
to hold when it is stored to them again counts. A claim may cover a hole, which is no harm while the
write quorum that once made it legal is there; but that quorum was one of the old nodeset, with the
lost disks in it, and need not be one of the new.

A server that is merely silent is not lost, and is never replaced here: the attempt says who it
waits for (field note 13).

*What was trimmed* is nobody's to copy: it is committed, and kept elsewhere. Below the highest local
start that is heard of nothing is read or stored. It may rise while the attempt runs.

**Invariants** (`check_invariants`):
 1. Once the tail is found the voters are a seal quorum of the segment's own nodeset, none of them
    lost or left out, and base <= C <= M.
 2. Nothing is counted as held below the base, or by a server that has not answered.
 3. A replacement stands in the place of a lost server, one for each place, and no node is named
    twice.
 4. `EndSegment` is only said when every offset of [C, M) is on a write quorum of the nodeset that
    it names, judged by the locations in that nodeset; with replacements, every offset of [base, M)
    that was not trimmed, and each of them holds all of it.

Deliberately not here: who is asked how often, time limits (the shell says when patience is over),
the chain, and what an operator may give up.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import pairwise

from loglet.messages import SealResponse
from loglet.ranges import OffsetRanges, Range, in_words
from loglet.recovery_steps import (
    AwaitAnswers,
    CopyRange,
    EndSegment,
    SealReplacements,
    Step,
    StopAttempt,
)
from metadata.quorum import QuorumRule
from metadata.records import Replica, Segment
from sharedlog.errors import (
    LogUnavailable,
    SharedLogError,
    Unreachable,
    Unrepairable,
    WrongStorage,
)
from sharedlog.ids import Offset


class SegmentRecovery:
    """See the module's docstring.

    Servers are numbers: the segment's nodeset by index, then the replacements. `candidates` are log
    servers that could join, best first.
    """

    def __init__(
        self,
        name: str,
        segment: Segment,
        *,
        lost: Iterable[int] = (),
        left_out: Iterable[int] = (),
        candidates: Sequence[Replica] = (),
    ) -> None:
        self.segment = segment
        self._name = name
        self._rule = QuorumRule.of(segment)
        self._members = range(len(segment.nodeset))
        self._lost = set(lost)
        self._left_out = frozenset(left_out)
        self._candidates = list(candidates)  # not taken yet
        self._answers: dict[int, SealResponse] = {}
        self._failures: dict[int, SharedLogError] = {}  # of seals; an answer removes them
        self._deaf: dict[int, SharedLogError] = {}  # targets whose stores failed
        self._mute: dict[int, SharedLogError] = {}  # sources that do not answer
        self._held: dict[int, OffsetRanges] = {}  # counted as copies
        self._readable: dict[int, OffsetRanges] = {}  # may be read as a source
        self._copied = OffsetRanges()
        self._kept = segment.base  # all below was trimmed somewhere: committed, and kept elsewhere
        self._servers: list[Replica] = list(segment.nodeset)  # and the replacements
        self._place: dict[int, int] = {}  # of each replacement that is in play: whose it takes
        self._tail: tuple[Offset, Offset] | None = None  # C and M, once fixed
        self._proving = False  # with replacements: claims count for nothing
        self._grace_over = False
        self._patience_over = False
        assert self._lost | self._left_out <= set(self._members)

    # ------------------------------------------------------------------ what is known

    @property
    def servers(self) -> Sequence[Replica]:
        """By number."""
        return self._servers

    @property
    def tail(self) -> tuple[Offset, Offset] | None:
        """C and M once they are fixed."""
        return self._tail

    @property
    def replacements(self) -> Mapping[int, int]:
        """Replacement servers in play, and in whose place they stand."""
        return self._place

    def is_needed(self, target: int) -> bool:
        """Nobody else could take what is to be copied to the target: it is worth some patience."""
        if self._tail is None or (target in self._place and self._candidates):
            return False
        deaf, places = dict(self._deaf), dict(self._place)
        self.on_target_failed(target, Unreachable("as if"))
        able = self._choose_targets() or not self._uncovered(self._start, self._tail[1])
        self._deaf, self._place = deaf, places
        return not able

    def unanswered(self) -> list[int]:
        """Members whose seal is not answered and may still be: to be asked, again and again."""
        return [it for it in self._able() if it not in self._answers]

    # ------------------------------------------------------------------ events

    def on_sealed(self, server: int, answer: SealResponse) -> None:
        """The server has sealed the loglet, durably, and then answered this."""
        if server in self._answers or server in self._lost:
            return  # the first answer stands: it is true for ever
        self._answers[server] = answer
        self._failures.pop(server, None)
        self._kept = max(self._kept, answer.local_start)
        if server in self._place:
            # Filled from its first offset on, whatever an earlier attempt left there.
            self._held[server] = OffsetRanges()
            self._readable[server] = OffsetRanges()
            return
        held = OffsetRanges([(self.segment.base, answer.local_tail)])
        for first, end in answer.damaged:
            held.remove(first, end)
        self._held[server] = OffsetRanges(() if self._proving else held)
        self._readable[server] = held

    def on_seal_failed(self, server: int, error: SharedLogError) -> None:
        """No answer, or a refusal. Another storage_id is for ever; all else is unknown."""
        if server in self._answers:
            return
        self._failures[server] = error
        if server in self._place:
            del self._place[server]
        elif isinstance(error, WrongStorage):
            self._lost.add(server)

    def on_grace_over(self) -> None:
        """No more waiting for answers that might spare the copying."""
        self._grace_over = True

    def on_patience_over(self) -> None:
        """No more waiting for answers at all."""
        self._grace_over = self._patience_over = True

    def on_copied(self, target: int, first: Offset, end: Offset) -> None:
        """The target holds [first, end), fsynced."""
        assert self._tail is not None, "nothing is copied before the tail is known"
        assert target in self._answers, "a target has sealed"
        self._held[target].add(max(first, self.segment.base), min(end, self._tail[1]))
        self._copied.add(max(first, self.segment.base), min(end, self._tail[1]))

    def on_target_failed(self, target: int, error: SharedLogError) -> None:
        """A repair store failed: the server is a target no more. What it holds, it holds."""
        self._deaf[target] = error
        if target in self._place:
            del self._place[target]

    def on_source_lacks(
        self, source: int, first: Offset, end: Offset, *, damaged: bool, trimmed: bool = False
    ) -> None:
        """The source has said that [first, end) is damaged there, was trimmed, or is a hole."""
        self._readable[source].remove(first, end)
        self._kept = max(self._kept, end if trimmed else self._kept)
        if damaged:
            self._held[source].remove(first, end)

    def on_source_silent(self, source: int, error: SharedLogError) -> None:
        """The source does not answer: it is a source no more. What it holds, it holds."""
        self._mute[source] = error
        self._readable[source] = OffsetRanges()

    # ------------------------------------------------------------------ the next step

    def advance(self) -> Step:
        """What to do now. Once it has said to copy, M and C are fixed."""
        if self._tail is None:
            step = self._find_tail()
            if step is not None:
                return step
        return self._repair()

    def _find_tail(self) -> Step | None:
        """A step on the way to the tail; None once it is fixed."""
        able = self._able()
        if not self._rule.is_seal_quorum(able):
            return StopAttempt(self._unrepairable())
        voters = self._voters()
        if not self._rule.is_seal_quorum(voters):
            if self._patience_over or not self._rule.is_seal_quorum(set(able) - self._left_out):
                return StopAttempt(self._silent("no seal quorum"))
            return AwaitAnswers(spare=False)
        end = max(self._answers[it].local_tail for it in voters)
        committed = max(self.segment.base, *(it.committed_tail for it in self._answers.values()))
        if committed > end:
            return StopAttempt(self._contradiction(committed, end))
        if not self._uncovered(committed, end):
            self._tail = committed, end
            return None
        if not self._rule.is_write_quorum(able):
            return self._await_replacements(committed, end)
        if self._rule.is_write_quorum(self._targets()):
            if not self._grace_over and self._unheard():
                return AwaitAnswers(spare=True)
            self._tail = committed, end
            return None
        return self._await_write_quorum(committed, end)

    def _await_write_quorum(self, committed: Offset, end: Offset) -> Step:
        """Those who answered can't make [C, M) safe by themselves, and others may come."""
        if self._unheard() and not self._patience_over:
            return AwaitAnswers(spare=False)
        leave_out = self._dispensable(self._uncovered(committed, end)[0][0])
        if leave_out:
            return StopAttempt(self._left_out_error(leave_out), leave_out)
        if not self._patience_over:
            return AwaitAnswers(spare=False)
        return StopAttempt(self._silent("sealed, but no write quorum to repair on"))

    def _await_replacements(self, committed: Offset, end: Offset) -> Step | None:
        self._assign()
        if unsealed := self._unsealed():
            return SealReplacements(unsealed)
        places = {*self._targets(), *self._place.values()}
        rule = self._new_rule(self._place)
        if rule.is_write_quorum(places):
            self._tail = committed, end
            self._proving = True
            self._held = {it: OffsetRanges() for it in self._held}
            return None
        can_come = rule.is_write_quorum(places.union(self.unanswered()))
        if can_come and not self._patience_over:
            return AwaitAnswers(spare=False)
        leave_out = self._dispensable(self._uncovered(committed, end)[0][0])
        if leave_out:
            return StopAttempt(self._left_out_error(leave_out), leave_out)
        if can_come:
            return StopAttempt(self._silent("sealed, but no write quorum to repair on"))
        return StopAttempt(self._no_replacements())

    def _repair(self) -> Step:
        assert self._tail is not None
        committed, end = self._tail
        known = max(it.committed_tail for it in self._answers.values())
        if known > end:
            return StopAttempt(self._contradiction(known, end))
        uncovered = self._uncovered(self._start, end)
        unfilled = [it for it in self._place if not self._is_filled(it)]
        if not uncovered and (not unfilled or not self._copied):
            return self._end()
        if unsealed := self._unsealed():
            return SealReplacements(unsealed)
        targets = self._choose_targets()
        if not targets:
            return self._blocked(uncovered) if uncovered else self._end()
        lacking = {target: self._lacks(target) for target in targets}
        first = min(ranges[0][0] for ranges in lacking.values())
        sources = self._sources(first)
        assert sources, "a target that can't be fed is none"
        last = self._readable[sources[0]].run_end(first)
        for ranges in lacking.values():
            # Up to where another target joins in, or the first of these is done.
            last = min(last, ranges[0][1] if ranges[0][0] == first else ranges[0][0])
        now = [it for it in targets if lacking[it][0][0] == first]
        return CopyRange(first, last, sources, now, max(committed, self._kept))

    def _end(self) -> EndSegment:
        assert self._tail is not None
        committed, end = self._tail
        filled = {it: place for it, place in self._place.items() if self._is_filled(it)}
        times = [it.last_timestamp_ms for it in self._answers.values()]
        return EndSegment(
            end=end,
            committed_tail=committed,
            last_timestamp_ms=max([self.segment.timestamp_ms, *times]),
            nodeset=self._nodeset(filled),
            repaired_records=self._copied.count,
        )

    def _blocked(self, uncovered: Sequence[Range]) -> Step:
        """No target is left that could be fed."""
        assert self._tail is not None
        if not self._rule.is_write_quorum(self._able()):
            self._assign()  # where a replacement has failed
            if unsealed := self._unsealed():
                return SealReplacements(unsealed)
        if self._unheard() and not self._patience_over:
            return AwaitAnswers(spare=False)
        gone = self._unreadable()
        obstacle = max([uncovered[0][0], *(first for first, _ in gone[:1])])
        if self._proving and not gone:
            obstacle = min(self._answers[it].local_tail for it in self._voters())
        leave_out = self._dispensable(obstacle)
        if leave_out:
            return StopAttempt(self._left_out_error(leave_out), leave_out)
        if self.unanswered() and not self._patience_over:
            return AwaitAnswers(spare=False)
        if gone and not self.unanswered() and not self._mute:
            return StopAttempt(self._damaged_for_good(gone), gone=tuple(gone))
        what = f"sealed, but {in_words(uncovered)} can't be brought to a write quorum"
        return StopAttempt(self._silent(what), gone=tuple(gone))

    # ------------------------------------------------------------------ who can do what

    def _able(self) -> list[int]:
        """Members that may answer, now or some time."""
        return [it for it in self._members if it not in self._lost]

    def _voters(self) -> set[int]:
        """Members whose answers decide M."""
        return {it for it in self._members if it in self._answers} - self._left_out

    def _targets(self) -> set[int]:
        """Members that may be stored to."""
        return {it for it in self._members if it in self._answers and it not in self._deaf}

    def _unheard(self) -> list[int]:
        """Members of which nothing was heard yet, not even a failure."""
        return [it for it in self.unanswered() if it not in self._failures]

    def _unsealed(self) -> list[int]:
        """Replacements that are still to be sealed."""
        return [it for it in self._place if it not in self._answers]

    def _dispensable(self, offset: Offset) -> frozenset[int]:
        """The voters that claim `offset`, if the others are a seal quorum without them."""
        voters = self._voters()
        if self._tail is not None and offset < self._tail[0]:
            return frozenset()  # it is committed
        claim = {it for it in voters if self._answers[it].local_tail > offset}
        return frozenset(claim) if self._rule.is_seal_quorum(voters - claim) else frozenset()

    def _assign(self) -> None:
        """Give each lost place a replacement, as far as there are candidates.

        A node that came back with a new store takes its own place. Others go, if they can, where
        the lost one was: the spread is judged by the locations in the nodeset.
        """
        vacant = sorted(self._lost.difference(self._place.values()))
        nodeset = self.segment.nodeset
        vacant.sort(key=lambda place: not self._fitting(place, own=True))
        for place in vacant:
            fitting = self._fitting(place, own=True) or self._fitting(place, own=False)
            if not fitting:
                continue
            found = min(fitting, key=lambda it: it.location != nodeset[place].location)
            self._candidates.remove(found)
            self._place[len(self._servers)] = place
            self._servers.append(found)

    def _fitting(self, place: int, *, own: bool) -> list[Replica]:
        """Candidates for a place: of the very node (`own`), or of any that is not named yet."""
        old = self.segment.nodeset[place].node_id
        named = {it.node_id for it in self._nodeset(self._place)}
        return [
            it for it in self._candidates if (it.node_id == old if own else it.node_id not in named)
        ]

    def _nodeset(self, replacements: Mapping[int, int]) -> tuple[Replica, ...]:
        nodeset = list(self.segment.nodeset)
        for server, place in replacements.items():
            nodeset[place] = self._servers[server]
        return tuple(nodeset)

    def _new_rule(self, replacements: Mapping[int, int]) -> QuorumRule:
        segment = self.segment
        nodeset = self._nodeset(replacements)
        return QuorumRule.make(nodeset, segment.write_quorum, segment.spread)

    # ------------------------------------------------------------------ who holds what

    def _is_filled(self, replacement: int) -> bool:
        assert self._tail is not None
        held = self._held.get(replacement)
        return held is not None and held.holds(self._kept, self._tail[1])

    @property
    def _start(self) -> Offset:
        """From here on to M every offset has to be on a write quorum that is known here."""
        assert self._tail is not None
        return self._kept if self._proving else max(self._kept, self._tail[0])

    def _uncovered(
        self, start: Offset, end: Offset, *, filled: Collection[int] = ()
    ) -> list[Range]:
        """Ranges of [start, end) that are on no write quorum, taking `filled` to hold all of it.

        A replacement counts once it has everything.
        """
        replacements = {
            it: place
            for it, place in self._place.items()
            if it in filled or (self._tail is not None and self._is_filled(it))
        }
        rule = self._new_rule(replacements)
        edges = {start, end}
        for held in self._held.values():
            edges.update(edge for run in held for edge in run if start < edge < end)
        lacking = OffsetRanges()
        for first, last in pairwise(sorted(edges)):
            places = {
                it
                for it in self._members
                if it in self._held and (it in filled or self._held[it].holds(first, last))
            }
            if not rule.is_write_quorum(places.union(replacements.values())):
                lacking.add(first, last)
        return list(lacking)

    def _lacks(self, target: int) -> list[Range]:
        """What a target needs before it is a copy of all that has to be copied."""
        assert self._tail is not None
        return self._held[target].missing(self._start, self._tail[1])

    def _choose_targets(self) -> list[int]:
        """Those to store to: all replacements, and the members that have least to catch up.

        As many as make a write quorum, and whoever can ride along: it lacks nothing that is not
        read for the others. Empty if no choice makes a write quorum.
        """
        assert self._tail is not None
        able = [it for it in (*self._targets(), *self._place) if self._can_be_fed(it)]
        lacking = {it: ranges for it in able if (ranges := self._lacks(it))}
        chosen = [it for it in lacking if it in self._place]
        rest = sorted(
            (it for it in lacking if it not in self._place),
            key=lambda it: (sum(end - first for first, end in lacking[it]), it),
        )
        while self._uncovered(self._start, self._tail[1], filled=chosen):
            if not rest:
                return []
            chosen.append(rest.pop(0))
        if not chosen:
            return []
        lowest = min(lacking[it][0][0] for it in chosen)
        return sorted([*chosen, *(it for it in rest if lacking[it][0][0] >= lowest)])

    def _can_be_fed(self, target: int) -> bool:
        """Somebody can give each offset that the target lacks."""
        return all(
            not self._union_readable().missing(first, end) for first, end in self._lacks(target)
        )

    def _union_readable(self) -> OffsetRanges:
        return OffsetRanges(run for readable in self._readable.values() for run in readable)

    def _unreadable(self) -> list[Range]:
        """What is needed, and nobody can give."""
        assert self._tail is not None
        return self._union_readable().missing(self._start, self._tail[1])

    def _sources(self, offset: Offset) -> list[int]:
        """Who can give `offset`; who can go on longest first."""
        ends = {it: readable.run_end(offset) for it, readable in self._readable.items()}
        able = [it for it, end in ends.items() if end > offset]
        return sorted(able, key=lambda it: (-ends[it], it))

    # ------------------------------------------------------------------ why not

    def _names(self, members: Iterable[int]) -> str:
        return ", ".join(self._servers[it].node_id for it in sorted(members)) or "nobody"

    def _segment_name(self) -> str:
        return f"segment {self.segment.index} of log {self._name}"

    def _silent(self, what: str) -> LogUnavailable:
        """Names who has to come back."""
        parts = [f"{self._segment_name()}: {what}"]
        parts += [
            f"{self._servers[it].node_id} does not answer"
            + (f" ({self._failures[it]})" if it in self._failures else "")
            for it in self.unanswered()
        ]
        if self._lost:
            parts.append(f"lost for good: {self._names(self._lost)}")
        if self._left_out:
            parts.append(f"without the tail of {self._names(self._left_out)}")
        failed = (*self._mute.items(), *self._deaf.items())
        parts += [f"{self._servers[it].node_id}: {error}" for it, error in failed]
        return LogUnavailable("; ".join(parts))

    def _left_out_error(self, leave_out: Iterable[int]) -> LogUnavailable:
        return LogUnavailable(
            f"{self._segment_name()}: the tail of {self._names(leave_out)} can't be copied; the "
            "others are a seal quorum without it"
        )

    def _contradiction(self, committed: Offset, end: Offset) -> LogUnavailable:
        """The one thing that can't be: what was committed is held by no sealed seal quorum."""
        return LogUnavailable(
            f"{self._segment_name()}: offsets up to {committed} are known to be committed, but a "
            f"sealed seal quorum ({self._names(self._voters())}) holds none at or above {end}; "
            "nothing is done"
        )

    def _unrepairable(self) -> Unrepairable:
        return Unrepairable(
            f"{self._segment_name()} can't be ended: {self._names(self._lost)} lost "
            f"{'their stores' if len(self._lost) > 1 else 'its store'} for good, and "
            f"{self._names(self._able())} can't tell what was committed without one of them; "
            f"`sharedlog log accept-loss {self._name}` would end it with what is left, and give up "
            "whatever else was there",
            segment_index=self.segment.index,
        )

    def _no_replacements(self) -> LogUnavailable:
        return LogUnavailable(
            f"{self._segment_name()}: {self._names(self._lost)} lost for good, the others are no "
            f"write quorum, and too few log servers can take the place "
            f"({len(self._place)} of {len(self._lost)})"
        )

    def _damaged_for_good(self, gone: Sequence[Range]) -> Unrepairable:
        return Unrepairable(
            f"{self._segment_name()} can't be ended: {in_words(gone)} can't be read from any log "
            f"server that is left; `sharedlog log accept-loss {self._name}` would give that up",
            segment_index=self.segment.index,
        )

    # ------------------------------------------------------------------ invariants

    def check_invariants(self) -> None:
        """Assert what the module's docstring promises. For tests."""
        assert not self._lost & self._answers.keys(), "a lost store answers nothing"
        assert self._held.keys() == self._readable.keys() == self._answers.keys()
        places = list(self._place.values())
        assert len(set(places)) == len(places)
        assert self._lost.issuperset(places)
        named = [it.node_id for it in self._nodeset(self._place)]
        assert len(set(named)) == len(named)
        if self._tail is None:
            assert not self._copied
            return
        committed, end = self._tail
        assert self.segment.base <= committed <= end
        assert self._rule.is_seal_quorum(self._voters())
        for run_first, run_end in self._copied:
            assert self.segment.base <= run_first < run_end <= end
        for held in self._held.values():
            assert all(run_first >= self.segment.base for run_first, _ in held)
