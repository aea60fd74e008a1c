"""Runs the simulation over many seeds: `python -m helpers.sim.run --seeds 100 --from 1 --jobs 2`.

Prints a line for every so many seeds, and for a seed that fails what is wrong and the command that
runs it again; then it stops, unless `--keep-going`. The exit code is 1 if any failed. `--trace
FILE` keeps every line of the trace, `--log FILE` what the nodes and clients log, in simulated time.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import multiprocessing
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from helpers.history_check import report
from helpers.sim.profiles import PROFILES
from helpers.sim.scenario import DURATION_S, Plan, run

PROGRESS_EVERY_S = 10.0
EACH = "each"


@dataclass(frozen=True, slots=True)
class Told:
    """What a seed's run came to, as it crosses between processes."""

    seed: int
    line: str
    violations: str
    cpu_s: float
    simulated_s: float


def run_seed(seed: int, plan: Plan, *, trace: Path | None = None) -> Told:
    """One seed."""
    began_s = time.process_time()
    result = run(seed, plan, keep_lines=trace is not None)
    if trace is not None:
        trace.write_text("\n".join(result.trace.lines or []) + "\n")
    spent_s = time.process_time() - began_s
    return Told(seed, result.line(), report(result.violations), spent_s, result.simulated_s)


def command_of(seed: int, arguments: argparse.Namespace) -> str:
    """What runs the seed again."""
    words = ["PYTHONPATH=.:tests", "python", "-m", "helpers.sim.run", "--from", str(seed)]
    words += ["--seeds", "1"]
    if arguments.profile:
        words += ["--profile", f"'{_mix_of(seed, arguments)}'"]
    if arguments.archive:
        words += ["--archive", arguments.archive]
    if arguments.duration != DURATION_S:
        words += ["--duration", f"{arguments.duration:g}"]
    return " ".join(words)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    arguments = _parse(argv)
    _set_up_logging(arguments.log)
    seeds = range(arguments.first, arguments.first + arguments.seeds)
    began_s = shown_s = time.monotonic()
    failed: list[int] = []
    done = 0
    cpu_s = simulated_s = 0.0
    for told in _all(seeds, arguments):
        done += 1
        cpu_s += told.cpu_s
        simulated_s += told.simulated_s
        if told.violations:
            failed.append(told.seed)
            _say(f"FAILED {told.line}\n{told.violations}\n  {command_of(told.seed, arguments)}")
            if not arguments.keep_going:
                break
        elif arguments.seeds <= 20:
            _say(f"{told.line}, {told.cpu_s:.2f} s")
        if time.monotonic() - shown_s > PROGRESS_EVERY_S:
            shown_s = time.monotonic()
            _say(f"{done} of {len(seeds)} seeds, {len(failed)} failed, {shown_s - began_s:.0f} s")
    took_s = time.monotonic() - began_s
    _say(
        f"{done} seeds, {simulated_s:,.0f} simulated seconds in {took_s:.1f} s "
        f"({cpu_s / max(done, 1):.2f} s of processor each), {len(failed)} failed"
        + (f": {sorted(failed)}" if failed else "")
    )
    return 1 if failed else 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m helpers.sim.run", description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--from", dest="first", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument(
        "--profile",
        default="",
        choices=["", EACH, *sorted(PROFILES)],
        help="a mix of faults; else as drawn. `each`: one after the other, by seed",
    )
    parser.add_argument("--archive", default="", choices=["yes", "no"], help="else as drawn")
    parser.add_argument("--duration", type=float, default=DURATION_S, help="simulated seconds")
    parser.add_argument("--keep-going", action="store_true")
    parser.add_argument("--trace", type=Path)
    parser.add_argument("--log", type=Path)
    return parser.parse_args(argv)


def _mix_of(seed: int, arguments: argparse.Namespace) -> str:
    """The name of a seed's mix; "": as drawn."""
    names = sorted(PROFILES)
    return names[seed % len(names)] if arguments.profile == EACH else arguments.profile


def _plan(seed: int, arguments: argparse.Namespace) -> Plan:
    """What is not said the mix says, and without a mix the seed draws it."""
    name = _mix_of(seed, arguments)
    mix = PROFILES[name] if name else None
    archive = mix.archive if mix else None
    if arguments.archive:
        archive = arguments.archive == "yes"
    return Plan(
        profile=mix.profile if mix else None,
        shape=mix.shape if mix else None,
        duration_s=arguments.duration,
        archive=archive,
    )


def _all(seeds: Sequence[int], arguments: argparse.Namespace) -> Iterator[Told]:
    gc.collect()
    gc.freeze()  # what is loaded by now need not be looked at after each seed
    if arguments.jobs == 1 or arguments.trace or arguments.log:
        for seed in seeds:
            yield run_seed(seed, _plan(seed, arguments), trace=arguments.trace)
        return
    with multiprocessing.get_context("fork").Pool(arguments.jobs, maxtasksperchild=200) as pool:
        yield from pool.imap_unordered(_Runner(arguments), seeds)


@dataclass(frozen=True, slots=True)
class _Runner:
    arguments: argparse.Namespace

    def __call__(self, seed: int) -> Told:
        return run_seed(seed, _plan(seed, self.arguments))


class _SimulatedTime(logging.Filter):
    """Adds the simulated time, and the fields that the line was given."""

    def filter(self, record: logging.LogRecord) -> bool:
        try:
            record.simulated_s = f"{asyncio.get_running_loop().time():10.6f}"
            task = asyncio.current_task()
        except RuntimeError:
            record.simulated_s, task = "-", None
        record.task = task.get_name() if task is not None else "-"
        known = logging.LogRecord("", 0, "", 0, "", None, None).__dict__.keys()
        fields = {key: value for key, value in record.__dict__.items() if key not in known}
        for key in ("simulated_s", "task", "message", "asctime"):
            fields.pop(key, None)
        record.fields = " ".join(f"{key}={value}" for key, value in fields.items())
        return True


def _set_up_logging(path: Path | None) -> None:
    if path is None:
        logging.disable(logging.CRITICAL)
        return
    handler = logging.FileHandler(path, mode="w")
    handler.addFilter(_SimulatedTime())
    handler.setFormatter(
        logging.Formatter("%(simulated_s)s [%(task)s] %(levelname)s %(message)s %(fields)s")
    )
    logging.basicConfig(level=logging.DEBUG, handlers=[handler])


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
