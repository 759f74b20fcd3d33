"""Does annotation stay as fast and as small as it began? 100,000 synthetic documents, first against last quarter.

    python -m tests.benchmarks.bench_annotate_soak                  # about 10 minutes on 2 cores
    python -m tests.benchmarks.bench_annotate_soak --documents 10000

The documents are made of words that never come again, beside names of the knowledge base, so that whatever a process
keeps of what it saw would grow. The memory of every worker is sampled while the job runs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import psutil

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from kebiolm.console import console
from kebiolm.data.knowledge_base import KnowledgeBase
from preprocessing.annotation.job import AnnotationJob, describe_job, list_inputs
from preprocessing.annotation.run import Stages, close_job
from preprocessing.annotation.worker import AnnotationWorker, worker_arguments
from preprocessing.ledger import open_ledger
from preprocessing.ray_pool import WorkerPool, ray_session
from preprocessing.umls.build_kb import build_kb
from preprocessing.watch.screen import FIND, JobScreen
from tests.benchmarks.machine import describe_machine

RESULTS = Path(__file__).parent / "results"
PROCESSES = 2
FILES = 10
SAMPLE_SECONDS = 2.0


@dataclass(kw_only=True)
class Observed:
    """What was seen while the job ran: memory of each worker over time, and when each unit of the find stage ended."""

    memory: dict[int, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))
    ended: list[tuple[float, int]] = field(default_factory=list)


def write_documents(folder: Path, names: list[str], documents: int) -> None:
    """Short abstracts: common words, new words and names of the knowledge base, in equal files of JSON lines."""
    rng = random.Random(0)
    common = ["patients", "were", "treated", "with", "and", "showed", "reduced", "levels", "of", "the", "risk", "group"]
    syllables = [first + vowel for first in "bcdfghklmnprstvxz" for vowel in "aeiouy"]
    folder.mkdir()
    for number in range(FILES):
        with open(folder / f"{number}.jsonl", "w", encoding="utf-8") as file:
            for place in range(documents * number // FILES, documents * (number + 1) // FILES):
                words = rng.choices(common, k=28) + rng.choices(names, k=3)
                words += ["".join(rng.choices(syllables, k=4)) for _ in range(9)]
                rng.shuffle(words)
                file.write(json.dumps({"id": str(place), "text": " ".join(words) + "."}) + "\n")


def watch_memory(observed: Observed, stop: threading.Event) -> None:
    """Sample the workers' own memory (USS) until told to stop."""
    began, driver = time.monotonic(), psutil.Process()
    while not stop.wait(SAMPLE_SECONDS):
        for process in driver.children(recursive=True):
            try:
                if "AnnotationWorker" in " ".join(process.cmdline()):
                    used = process.memory_full_info().uss / 2**20
                    observed.memory[process.pid].append((time.monotonic() - began, used))
            except psutil.Error:
                continue


class NotingScreen(JobScreen):
    """The job's screen, which also notes when each slice was searched."""

    def __init__(self, observed: Observed, **screen: int) -> None:
        super().__init__(**screen)
        self._observed, self._stage, self._started = observed, "", time.monotonic()

    def begin(self, stage: str, *arguments: Any) -> None:
        """A stage begins."""
        self._stage = stage
        super().begin(stage, *arguments)

    def done(self, counts: Mapping[str, int]) -> None:
        """A unit ended."""
        if self._stage == FIND:
            self._observed.ended.append((time.monotonic() - self._started, counts["documents_in"]))
        super().done(counts)


def run(job: AnnotationJob) -> Observed:
    """Run the job and watch it."""
    observed, stop = Observed(), threading.Event()
    watcher = threading.Thread(target=watch_memory, args=(observed, stop))
    described = describe_job(job)
    with (
        open_ledger(job.out, described, inputs=[*job.inputs, job.kb], overwrite=False),
        ray_session(None, PROCESSES),
        WorkerPool(AnnotationWorker, worker_arguments(job, described), workers=PROCESSES) as pool,
    ):
        pool.start()
        watcher.start()
        try:
            with NotingScreen(observed, files=len(job.inputs)) as screen:
                parts, texts = Stages(job, described, pool, screen).run()
        finally:
            stop.set()
            watcher.join()
        close_job(job, described, parts, texts)
    return observed


def quarter_speeds(ended: list[tuple[float, int]]) -> list[float]:
    """Documents per second of each quarter of the units, by the times at which they ended."""
    times, counts = (np.array(column) for column in zip(*sorted(ended), strict=True))
    done = np.cumsum(counts)
    # Without the first unit of each worker: when it began is not known.
    borders = np.linspace(PROCESSES - 1, len(times) - 1, 5).astype(int)
    return [(done[b] - done[a]) / (times[b] - times[a]) for a, b in pairwise(borders)]


def quarter_memory(samples: list[tuple[float, float]], first: float, last: float) -> list[float]:
    """Mean memory in each quarter of the time between the first and the last unit."""
    borders = np.linspace(first, last, 5)
    return [float(np.mean([used for moment, used in samples if a <= moment <= b])) for a, b in pairwise(borders)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("KEBIOLM_TEST_DATA", "../shared/data")))
    parser.add_argument("--documents", type=int, default=100_000)
    arguments = parser.parse_args()
    machine = describe_machine(("spacy", "scispacy", "ray"))
    began = time.time()
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        build_kb(arguments.data / "kb" / "openkb", work / "kb")
        names = KnowledgeBase.load(work / "kb", check_hash=False).names()["name"].to_pylist()
        write_documents(work / "in", names, arguments.documents)
        job = AnnotationJob(
            inputs=list_inputs([work / "in"]),
            kb=work / "kb",
            model=str(arguments.data / "models" / "en_ner_open_sm"),
            out=work / "out",
            slice_documents=500,
        )
        observed = run(job)
    write_results(machine, observed, arguments.documents, time.time() - began)


def write_results(machine: dict[str, str], observed: Observed, documents: int, seconds: float) -> None:
    """Print the figures and write tests/benchmarks/results/annotate_soak.{md,png}."""
    speeds = quarter_speeds(observed.ended)
    first, last = min(observed.ended)[0], max(observed.ended)[0]
    workers = {pid: samples for pid, samples in observed.memory.items() if samples[-1][0] > first}
    memory = [quarter_memory(samples, first, last) for samples in workers.values()]
    lines = [f"# Annotation of {documents:,} synthetic documents", ""]
    lines += [f"- {name}: {value}" for name, value in machine.items()]
    lines += [f"- wall time: {seconds:.0f} s", ""]
    lines += ["| quarter | documents/s | memory of each worker (USS), MiB |", "| --- | --- | --- |"]
    for quarter, speed in enumerate(speeds):
        used = ", ".join(f"{worker[quarter]:.0f}" for worker in memory)
        lines.append(f"| {quarter + 1} | {speed:.1f} | {used} |")
    growth = max(worker[3] / worker[0] for worker in memory)
    steady = speeds[3] / speeds[0]
    lines += ["", f"Last quarter against first: speed {steady:.3f}, memory {growth:.3f}.", ""]
    lines += ["![memory and speed](annotate_soak.png)", ""]
    (RESULTS / "annotate_soak.md").write_text("\n".join(lines), encoding="utf-8")
    console.print("\n".join(lines), markup=False)
    figure, (upper, lower) = plt.subplots(2, 1, figsize=(8, 5), sharex=True, layout="constrained")
    for number, samples in enumerate(workers.values()):
        upper.plot(*zip(*samples, strict=True), label=f"worker {number + 1}")
    upper.set_ylabel("memory (USS), MiB")
    upper.set_ylim(bottom=0)
    upper.legend()
    times, counts = zip(*sorted(observed.ended), strict=True)
    lower.plot(times, np.cumsum(counts))
    lower.set_ylabel("documents searched")
    lower.set_xlabel("seconds")
    figure.savefig(RESULTS / "annotate_soak.png", dpi=110)


if __name__ == "__main__":
    main()
