"""What tracking costs a training step: real runs with the MLflow server well, slow, answering 500, gone, and without.

    python -m tests.benchmarks.bench_tracking               # about 10 minutes on 2 quiet cores
    python -m tests.benchmarks.bench_tracking --rounds 1 --steps 60

Each run is `kebiolm pretrain` with the debug recipe, in a process of its own, logging every step; its steps take some
hundredths of a second, so a delay shows more than in any real run. The runs without tracking have
tracking.tracking_uri=null, which starts no sender. The runs take turns; the step times are those of the run's own
metrics.jsonl. The sender computes for some seconds at its start and wants a core that is free then. Writes tracking.md
to tests/benchmarks/results/.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from kebiolm.tracking.metric_log import RECORDS, MetricLog, read_records
from tests.benchmarks.machine import describe_machine
from tests.planning.synthetic_shards import write_synthetic_shards
from tests.tracking.conftest import running_server
from tests.tracking.proxy import Proxy

RESULTS = Path(__file__).parent / "results" / "tracking.md"
REPOSITORY = Path(__file__).resolve().parents[2]
LIMIT = 1.05
"""Requirement: a tracking server in whatever state slows a step by at most 5%."""
CONDITIONS = {
    "without tracking": "MLflow off; the local file is written",
    "server well": "answers at once",
    "server slow": "2 s for every answer",
    "server answers 500": "always",
    "server gone": "connection refused",
}
WITHOUT = next(iter(CONDITIONS))
_FIRST_STEPS = 5  # of a process: allocations, first use of every operator


def measure(condition: str, proxy: Proxy, shards: Path, output: Path, steps: int) -> list[float]:
    """Seconds of the steps of one run."""
    proxy.delay_s = 2.0 if condition == "server slow" else 0.0
    proxy.status = 500 if condition == "server answers 500" else None
    uri = {"server gone": "http://127.0.0.1:9", WITHOUT: "null"}.get(condition, proxy.uri)
    command = [sys.executable, "-m", "kebiolm.training.pretrain"]
    command += [str(REPOSITORY / "launch/configs/pretrain/debug.yaml")]
    command += [f"deepspeed={REPOSITORY / 'deepspeed_configs/zero1_fp32.json'}", f"shards={shards}", f"output={output}"]
    command += [f"optimization.max_steps={steps}", "evaluation.every_steps=1000000", "evaluation.max_sequences=4"]
    command += ["checkpoints.every_steps=1000000", f"tracking.tracking_uri={uri}", "tracking.system_metrics_seconds=10"]
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    subprocess.run(command, check=True, cwd=REPOSITORY, env=environment, capture_output=True)
    records = [record for record in read_records(output / RECORDS) if record["kind"] == "train"]
    return [record["metrics"]["step_seconds"] for record in records][_FIRST_STEPS:]


def time_of_append(folder: Path, records: int = 2000) -> list[float]:
    """Seconds that one line of the local file takes."""
    log, times = MetricLog(folder), []
    for step in range(records):
        started = time.perf_counter()
        log.append("train", step, {f"figure_{number}": 0.123456789 for number in range(10)})
        times.append(time.perf_counter() - started)
    return times


def ratios_of(
    figure: Callable[[list[float]], float], of_rounds: list[list[float]], without: list[list[float]]
) -> list[float]:
    """A figure of each round's step times as a share of that without tracking, lowest first."""
    return sorted(figure(mine) / figure(other) for mine, other in zip(of_rounds, without, strict=True))


def in_words(ratios: list[float]) -> str:
    """The middle one and the extremes."""
    return f"{statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})"


def report(times: dict[str, list[list[float]]], appends: list[float], machine: dict[str, str]) -> str:
    """The results as Markdown."""
    lines = ["# What tracking costs a training step", ""]
    lines += [f"- {name}: {value}" for name, value in machine.items()]
    rounds, steps = len(times[WITHOUT]), len(times[WITHOUT][0])
    lines += [f"- {rounds} rounds of all five in turns, {steps} steps each, one process; debug recipe", ""]
    lines += [
        "Ratios are between runs of the same round, of their median step and of the sum of all their steps (a rare "
        f"stall shows in the sum alone): the middle one, and the extremes of the rounds. Limit: {LIMIT}.",
        "",
    ]
    lines += [
        "| | median step, ms | 95th percentile, ms | slowest, ms | ratio of medians | ratio of sums | limit |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for condition, of_rounds in times.items():
        everything = sorted(second for of_round in of_rounds for second in of_round)
        medians = ratios_of(statistics.median, of_rounds, times[WITHOUT])
        sums = ratios_of(sum, of_rounds, times[WITHOUT])
        is_met = max(statistics.median(medians), statistics.median(sums)) <= LIMIT
        middle, high = statistics.median(everything), everything[int(0.95 * len(everything))]
        name = f"{condition} ({CONDITIONS[condition]})"
        lines.append(
            f"| {name} | {1000 * middle:.1f} | {1000 * high:.1f} | {1000 * everything[-1]:.1f} | {in_words(medians)} "
            f"| {in_words(sums)} | {'' if condition == WITHOUT else 'met' if is_met else 'not met'} |"
        )
    appends = sorted(appends)
    lines += ["", f"A record of 10 figures takes {1e6 * statistics.median(appends):.0f} us to write, "]
    lines[-1] += f"{1e6 * appends[int(0.99 * len(appends))]:.0f} us at the 99th percentile."
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--shards", type=Path, help="made by `kebiolm pack`; none: synthetic ones")
    arguments = parser.parse_args()
    machine = describe_machine(["torch", "deepspeed", "mlflow"])
    times: dict[str, list[list[float]]] = {condition: [] for condition in CONDITIONS}
    with tempfile.TemporaryDirectory() as name, running_server(Path(name)) as port:
        proxy = Proxy(port)
        shards = arguments.shards or write_synthetic_shards(
            Path(name) / "shards", length=128, pieces=2000, entities=500, heldout=4
        )
        for number in range(arguments.rounds):
            for condition in CONDITIONS:
                output = Path(name) / f"{number}-{condition.replace(' ', '-')}"
                seconds = measure(condition, proxy, shards.resolve(), output, arguments.steps)
                times[condition].append(seconds)
                print(f"round {number + 1}, {condition}: {1000 * statistics.median(seconds):.1f} ms", flush=True)
        proxy.go()
        folder = Path(name) / "append"
        folder.mkdir()
        appends = time_of_append(folder)
    machine["load average at the end"] = f"{os.getloadavg()[0]:.1f}"
    RESULTS.write_text(report(times, appends, machine), encoding="utf-8")
    print(RESULTS.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
