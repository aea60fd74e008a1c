"""What a run reports: rates, latencies, processes, batches."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sharedlog.benchmark import plot
from sharedlog.benchmark.processes import UsageSampler, read_cpu_s, read_rss_anon_mb
from sharedlog.benchmark.report import Recorder, Result, make_result, result_rows
from sharedlog.benchmark.scrape import describe_batches, parse_metrics


class StoppedClock:
    """A clock that the test moves, and whose sleepers sleep for ever."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def now_ms(self) -> int:
        return round(self.now_s * 1000)

    def monotonic_s(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        await asyncio.get_running_loop().create_future()


def sample_result() -> Result:
    recorder = Recorder(record_bytes=1_000)
    recorder.record(5, 9.0, 99.0)  # warm-up: not counted
    recorder.begin(100.0)
    recorder.record(10, 0.001, 100.5)
    recorder.record(30, 0.003, 101.9)
    recorder.record(10, 0.002, 102.5)
    return make_result(recorder, [], workload="append", mode="closed", settings={"seconds": 2})


def test_a_run_is_counted_from_the_end_of_the_warm_up_to_the_last_ack() -> None:
    result = sample_result()
    assert (result.records, result.seconds) == (50, 2.5)
    assert result.records_per_s == 20.0
    assert result.record_mb_per_s == 0.02
    assert result.latency_ms["p50"] == pytest.approx(3.0, rel=0.01)
    assert result.latency_ms["max"] == 3.0
    assert [point["records"] for point in result.timeline] == [10, 30, 10]
    # The last half second is not taken for a whole one.
    assert [point["record_mb_per_s"] for point in result.timeline] == [0.01, 0.03, 0.02]
    assert result.errors == 0


def test_a_result_is_one_json_object_with_the_names_that_are_promised() -> None:
    result = sample_result()
    result.extra["append_latency_ms"] = {"p50": 1.5}
    found = json.loads(json.dumps(result.to_json()))
    assert {"record_mb_per_s", "records_per_s", "latency_ms", "rss_anon_mb", "errors"} <= set(found)
    assert set(found["latency_ms"]) == {"p50", "p90", "p99", "p999", "max"}
    assert found["append_latency_ms"] == {"p50": 1.5}
    assert "extra" not in found
    assert ("append latency p50", "1.500", "ms") in result_rows(result)


def test_a_run_without_any_answer_is_reported_as_such() -> None:
    recorder = Recorder(100)
    recorder.begin(5.0)
    recorder.fail(TimeoutError())
    recorder.fail(TimeoutError())
    result = make_result(recorder, [], workload="append", mode="closed", settings={})
    assert (result.records_per_s, result.record_mb_per_s, result.errors) == (0.0, 0.0, 2)
    assert result.errors_by_class == {"TimeoutError": 2}
    assert ("errors TimeoutError", "2", "") in result_rows(result)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_memory_and_processor_time_are_those_of_the_process() -> None:
    own_mb = read_rss_anon_mb(os.getpid())
    assert own_mb is not None
    kept = bytearray(os.urandom(32_000_000))
    grown_mb = read_rss_anon_mb(os.getpid())
    assert grown_mb is not None
    assert 25 < grown_mb - own_mb < 80
    assert len(kept) == 32_000_000
    times = os.times()
    cpu_s = read_cpu_s(os.getpid())
    assert cpu_s == pytest.approx(times.user + times.system, abs=0.2)


def test_the_sampler_keeps_the_most_and_the_last_and_survives_an_end(tmp_path: Path) -> None:
    def set_process(rss_kib: int, ticks: int) -> None:
        folder = tmp_path / "7"
        folder.mkdir(exist_ok=True)
        folder.joinpath("status").write_text(f"Name:\tx\nRssAnon:\t {rss_kib} kB\n")
        folder.joinpath("stat").write_text(f"7 (a b) c) S {'0 ' * 10}{ticks} {ticks} 0\n")

    sampler = UsageSampler({"n1": 7, "gone": 8}, StoppedClock(), proc=tmp_path)
    per_s = os.sysconf("SC_CLK_TCK")
    for rss_kib, ticks in ((1000, per_s), (3000, 2 * per_s), (2000, 3 * per_s)):
        set_process(rss_kib, ticks)
        sampler.sample()
    (tmp_path / "7" / "status").unlink()
    sampler.sample()
    usage, gone = sampler.usages
    assert (usage.rss_anon_mb_first, usage.rss_anon_mb_max, usage.rss_anon_mb_last) == (
        1.024,
        3.072,
        2.048,
    )
    assert usage.cpu_s == 4.0
    assert gone.samples == 0
    sampler.restart()
    assert [usage.samples for usage in sampler.usages] == [0, 0]


def test_batch_sizes_come_from_what_the_nodes_counted_in_between() -> None:
    text = """# HELP x y
sharedlog_sequencer_committed_batches_total {}
sharedlog_sequencer_committed_records_total {}
sharedlog_sequencer_committed_bytes_total {}
sharedlog_log_server_commit_batches_count{{store="a b"}} {}
sharedlog_log_server_commit_batches_sum{{store="a b"}} {}
sharedlog_log_server_commit_batches_sum{{store="c"}} 0
"""
    before = parse_metrics(text.format(10, 100, 1e6, 10, 30))
    after = parse_metrics(text.format(14, 180, 1.4e6, 20, 45))
    assert describe_batches(before, after) == {
        "count": 4.0,
        "records_mean": 20.0,
        "bytes_mean": 100_000.0,
        "per_fsync_mean": 1.5,
    }
    assert describe_batches({}, {}) == {}
    assert describe_batches(after, after) == {}


def test_a_plot_without_the_library_is_refused_before_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(plot.PlotUnavailable, match=r"pip install 'sharedlog\[bench\]'"):
        plot.require_plotting()


def test_a_plot_is_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "run.png"
    plot.write_plot(sample_result(), path)
    assert path.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(plot.PlotUnavailable, match="xyz"):
        plot.write_plot(sample_result(), tmp_path / "run.xyz")


def run_bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sharedlog.cli", "bench", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("append", "--dev", "3", "-a", "127.0.0.1:1"), "choose one"),
        (("append", "--dev", "2", "--replicas", "3"), "as many nodes"),
        (("append", "--dev", "3", "--serial", "--rate", "5"), "one append at a time"),
        (("read", "--dir", "."), "--dev cluster"),
        (("tail", "--record-bytes", "7"), "--record-bytes"),
    ],
)
def test_a_wrong_command_line_is_refused_in_one_line(arguments: tuple[str, ...], said: str) -> None:
    done = run_bench(*arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert not done.stdout


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.parametrize(
    "arguments",
    [
        ("append", "--seconds", "0.5", "--warm-up", "0.2", "--sessions", "2"),
        ("append", "--seconds", "0.5", "--warm-up", "0.2", "--rate", "200"),
        ("append", "--seconds", "0.5", "--warm-up", "0.2", "--serial"),
        ("read", "--mb", "3"),
        ("tail", "--seconds", "0.5", "--warm-up", "0.2", "--rate", "100"),
    ],
    ids=["closed", "open", "serial", "read", "tail"],
)
def test_each_workload_runs_on_a_fresh_cluster(arguments: tuple[str, ...], tmp_path: Path) -> None:
    """One JSON object, no errors, every process measured, and nothing left behind."""
    done = run_bench(*arguments, "--dev", "3", "--dir", str(tmp_path), "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["errors"] == 0
    assert found["records"] > 0
    assert 0 < found["latency_ms"]["p50"] <= found["latency_ms"]["max"]
    assert set(found["rss_anon_mb"]) == {"client", "n1", "n2", "n3", "metadata"}
    assert all(megabytes > 1 for megabytes in found["rss_anon_mb"].values())
    if arguments[0] == "append":
        assert found["batches"]["count"] > 0
    if "--rate" in arguments:
        assert found["mode"] == "open"
    assert list(tmp_path.iterdir()) == []
