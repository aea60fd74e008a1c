"""How the demo shows where it is: a bar on a terminal, a few plain lines elsewhere."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

_PLAIN_STEPS = 4


class Reporter(Protocol):
    """Shows one stage after another."""

    def begin(self, stage: str, total: int) -> None:
        """A stage begins; it is at its end when `at(total)` was told."""
        ...

    def at(self, done: int, note: str = "") -> None:
        """The stage has come so far."""
        ...

    def say(self, line: str) -> None:
        """Something happened that stays on the screen."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


def make_reporter(console: Console) -> Reporter:
    """The one that suits where the output goes."""
    return BarReporter(console) if console.is_terminal else PlainReporter(console)


class PlainReporter:
    """A line at each quarter of a stage: for files and CI."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._stage = ""
        self._total = 0
        self._step = 0

    def begin(self, stage: str, total: int) -> None:
        """See `Reporter`."""
        self._stage, self._total, self._step = stage, max(1, total), 0

    def at(self, done: int, note: str = "") -> None:
        """See `Reporter`."""
        step = min(_PLAIN_STEPS, done * _PLAIN_STEPS // self._total)
        if step > self._step:
            self._step = step
            self.say(f"{self._stage}: {step * 100 // _PLAIN_STEPS:3d} %  {note}".rstrip())

    def say(self, line: str) -> None:
        """See `Reporter`."""
        self._console.print(line, markup=False, soft_wrap=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        pass


class BarReporter:
    """A progress bar for each stage."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description:<8}"),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=console,
        )
        self._task: TaskID | None = None

    def begin(self, stage: str, total: int) -> None:
        """See `Reporter`."""
        self._task = self._progress.add_task(stage, total=max(1, total), note="")

    def at(self, done: int, note: str = "") -> None:
        """See `Reporter`."""
        assert self._task is not None
        self._progress.update(self._task, completed=done, note=note)

    def say(self, line: str) -> None:
        """See `Reporter`."""
        self._progress.console.print(line, markup=False, soft_wrap=True)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._progress.stop()
