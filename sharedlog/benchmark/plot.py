"""A run as a picture: throughput and latency over time. Needs the extra `sharedlog[bench]`."""

from __future__ import annotations

from pathlib import Path

from sharedlog.benchmark.report import INTERVAL_S, Result


class PlotUnavailable(Exception):
    """The plotting library is not installed, or can't write this kind of file."""


def require_plotting() -> None:
    """Fail before the run rather than after it.

    Raises:
        PlotUnavailable: matplotlib is not installed.
    """
    try:
        import matplotlib as _  # noqa: F401, ICN001
    except ImportError as error:
        raise PlotUnavailable("--plot needs matplotlib: pip install 'sharedlog[bench]'") from error


def write_plot(result: Result, path: Path) -> None:
    """Write the picture; its kind is that of the file's name.

    Raises:
        PlotUnavailable: matplotlib is not installed, or does not know the kind.
        OSError: the file can't be written.
    """
    require_plotting()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    points = result.timeline
    starts = [point["second"] for point in points] or [0.0]
    edges = [*starts, min(result.seconds, starts[-1] + INTERVAL_S)]
    figure = Figure(figsize=(9, 6), layout="constrained")
    FigureCanvasAgg(figure)
    top, bottom = figure.subplots(2, 1, sharex=True)
    figure.suptitle(
        f"sharedlog bench {result.workload} ({result.mode}), {result.record_bytes:,}-byte records"
    )
    top.stairs([point["record_mb_per_s"] for point in points] or [0.0], edges, baseline=None)
    top.set_ylabel("MB/s")
    for name in ("p50_ms", "p99_ms"):
        label = name.removesuffix("_ms")
        bottom.stairs([point[name] for point in points] or [0.0], edges, baseline=None, label=label)
    bottom.set_ylabel("latency, ms")
    bottom.set_xlabel("seconds")
    bottom.legend()
    for axes in (top, bottom):
        axes.set_ylim(bottom=0)
    try:
        figure.savefig(path)
    except ValueError as error:
        raise PlotUnavailable(str(error).splitlines()[0]) from error
