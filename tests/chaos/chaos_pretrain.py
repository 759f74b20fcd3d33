"""Kills a pretraining job of two processes at random moments, again and again, and proves that nothing changes.

    python -m tests.chaos.chaos_pretrain [--kills 10] [--seed 0] [--work DIR] [--results FILE]

The debug recipe is trained on the sample once undisturbed and once with kills: SIGKILL of one process or of all,
SIGTERM to one, SIGKILL of all while a checkpoint is written; while it is set up, evaluated or trained, as it happens.
After each the same command is started again. A real MLflow server is killed and started again meanwhile. In the end
losses must be equal bit for bit, every step must have had its samples, and MLflow must have every figure once.
"""

from __future__ import annotations

import argparse
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from mlflow import MlflowClient
from rich.table import Table

from kebiolm.console import console
from kebiolm.data.collator import PretrainingCollator
from kebiolm.data.loader import PretrainingLoader
from kebiolm.data.masking import MaskingSettings
from kebiolm.data.shard_format import PackedShards
from kebiolm.tracking.metric_log import RECORDS, read_records
from kebiolm.tracking.metric_names import mlflow_name
from kebiolm.tracking.run_description import described_run
from kebiolm.training.checkpoint import MARKER
from kebiolm.training.config import load_config
from kebiolm.training.sample_log import checksum_of_samples, read_checksums
from kebiolm.training.stop_request import EXIT_STATUS
from tests.benchmarks.machine import describe_machine
from tests.chaos.sample_shards import make_sample_shards
from tests.training.launch import DEBUG_RECIPE, Job, losses

STEPS = 300
SETTINGS = (
    f"optimization.max_steps={STEPS}",
    "checkpoints.every_steps=15",
    "evaluation.every_steps=30",
    "evaluation.max_sequences=8",
)
ONE, ALL, ASK, SAVING = "SIGKILL of one", "SIGKILL of all", "SIGTERM to one", "SIGKILL of all in a save"
KINDS = (ONE, ALL, ASK, SAVING)
SECONDS_TO_END = 35.0
"""Within which the other processes must end: DeepSpeed's launcher looks every second and waits 30."""
SECONDS_FOR_MLFLOW = 120


@dataclass
class Chaos:
    """What was done to the run, and what became of it."""

    kills: Counter[str] = field(default_factory=Counter)
    server_kills: int = 0
    starts: int = 0
    slowest_end: float = 0.0
    """Seconds from a kill to the end of the last process."""
    repeated_steps: int = 0
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)


class MlflowServer:
    """A real server on this machine that can be killed and started again with the same files."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self._port}"
        self._command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self._port)]
        self._command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{folder / 'server.db'}"]
        self._command += ["--artifacts-destination", str(folder / "artifacts")]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it listens."""
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + SECONDS_FOR_MLFLOW
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self._port)) == 0:
                    return
            time.sleep(0.2)
        raise RuntimeError("the MLflow server did not start")

    def kill(self) -> None:
        """SIGKILL it and its workers."""
        if self._process is not None:
            server = psutil.Process(self._process.pid)
            for process in [*server.children(recursive=True), server]:
                process.kill()
            self._process.wait()
            self._process = None


def strike(job: Job, ranks: list[psutil.Process], kind: str, output: Path, rng: random.Random) -> bool:
    """Do one kill now; false where the job ended before."""
    if kind == SAVING:
        left_over = unfinished(output)
        if not job.wait_until(lambda: unfinished(output) - left_over):
            return False
    if not all(rank.is_running() for rank in ranks):
        return False
    if kind in {ONE, ASK}:
        rng.choice(ranks).send_signal(signal.SIGTERM if kind == ASK else signal.SIGKILL)
    else:
        job.kill_all()
    return True


def unfinished(output: Path) -> set[tuple[str, int]]:
    """Checkpoints without a marker: one that is being written, or what an earlier kill has left.

    With the folder's inode, because a save that is made again begins with a new folder of the same name.
    """
    folders = (output / "checkpoints").glob("step-*")
    return {(folder.name, folder.stat().st_ino) for folder in folders if not (folder / MARKER).is_file()}


def steps_done(output: Path) -> int:
    """The last step that has left a trace."""
    return max(read_checksums(output), default=0)


def disturb(shards: Path, output: Path, server: MlflowServer, *, kills: int, rng: random.Random) -> Chaos:
    """Run the job to its end with kills spread over it."""
    chaos, began = Chaos(), time.monotonic()
    kinds = [KINDS[number % len(KINDS)] for number in range(kills)]
    rng.shuffle(kinds)
    for number, kind in enumerate(kinds):
        # The server dies before every third kill and is back for the next one.
        if number % 3 == 1:
            server.kill()
            chaos.server_kills += 1
        job = Job(shards, output, *SETTINGS, f"tracking.tracking_uri={server.uri}")
        chaos.starts += 1
        # Every third strikes at a random time after the processes are there, whatever they do then; the others after
        # a random step of the kill's share of the run, so that the run cannot end before the last kill.
        first = steps_done(output)
        ranks = job.wait_for_ranks()
        if number % 3 == 2:
            time.sleep(rng.uniform(0.0, 10.0))
        else:
            step = rng.randint(first + 1, max(first + 1, STEPS * (number + 1) // (kills + 2)))
            job.wait_until(lambda step=step: steps_done(output) >= step)
        if not strike(job, ranks, kind, output, rng):
            chaos.problems.append(f"kill {number}: the job had ended already: {job.wait().output[-500:]}")
            return chaos
        before = steps_done(output)
        ended = job.wait()
        chaos.kills[kind] += 1
        chaos.slowest_end = max(chaos.slowest_end, ended.seconds_to_end)
        saved = max((int(m.parent.name[5:]) for m in (output / "checkpoints").glob(f"step-*/{MARKER}")), default=0)
        chaos.repeated_steps += max(steps_done(output) - saved, 0)
        # A signal that comes before the job listens ends it at once, and nothing is lost.
        if kind == ASK and ended.status != EXIT_STATUS and before > first:
            chaos.problems.append(f"kill {number}: SIGTERM ended in status {ended.status}: {ended.output[-500:]}")
        console.print(f"{number + 1:2d}. {kind} at step {before}, saved until {saved}, status {ended.status}")
        if number % 3 == 1:
            server.start()
    finished = Job(shards, output, *SETTINGS, f"tracking.tracking_uri={server.uri}").wait()
    chaos.starts += 1
    chaos.seconds = time.monotonic() - began
    if finished.status != 0:
        chaos.problems.append(f"the last start ended in status {finished.status}: {finished.output[-500:]}")
    if chaos.slowest_end > SECONDS_TO_END:
        chaos.problems.append(f"a process ended {chaos.slowest_end:.0f} s after the kill of another")
    return chaos


def compare_losses(output: Path, undisturbed: Path) -> dict[str, int]:
    """Records that are equal to the undisturbed run's bit for bit, other, missing or too many, over both kinds."""
    counts = Counter(equal=0, other=0, missing=0, extra=0)
    for kind in ("train", "heldout"):
        expected, found = losses(undisturbed, kind), losses(output, kind)
        counts["missing"] += len(expected.keys() - found.keys())
        counts["extra"] += len(found.keys() - expected.keys())
        for step in expected.keys() & found.keys():
            counts["equal" if found[step] == expected[step] else "other"] += 1
    return dict(counts)


def compare_samples(output: Path, shards: Path) -> dict[str, int]:
    """Steps whose checksum is that of the samples which the order of the epoch gives them, others, and missing ones."""
    found, counts = read_checksums(output), Counter(equal=0, other=0, missing=0)
    config = load_config(DEBUG_RECIPE, [f"shards={shards}", "output=unused"])
    # One process with one micro batch: the order must not depend on how a step is dealt out.
    size = config.optimization.global_batch_size
    loader = make_loader(PackedShards.load(shards), config.seed, size)
    seen: Counter[int] = Counter()
    for step in range(1, STEPS + 1):
        (batch,) = loader.step_batches(step - 1)
        seen.update(batch["sample_ids"].tolist())
        if step not in found:
            counts["missing"] += 1
        else:
            counts["equal" if found[step] == checksum_of_samples(batch["sample_ids"]) else "other"] += 1
    # Whole passes give every sample equally often; the last pass is begun only.
    counts["samples seen too often or too seldom"] = sum(
        1 for times in seen.values() if times not in {STEPS * size // len(seen), STEPS * size // len(seen) + 1}
    )
    return dict(counts)


def make_loader(shards: PackedShards, seed: int, global_batch_size: int) -> PretrainingLoader:
    """The order of the run, as one process would have it."""
    return PretrainingLoader(
        shards.train,
        PretrainingCollator.from_shards(shards, seed=seed, masking=MaskingSettings()),
        seed=seed,
        global_batch_size=global_batch_size,
        micro_batch_size=global_batch_size,
        max_steps=STEPS,
    )


def compare_mlflow(output: Path, server: MlflowServer) -> dict[str, int]:
    """Figures of the run's records that MLflow has once, more than once, or not."""
    client, run_id = MlflowClient(tracking_uri=server.uri), described_run(output)["run_id"]
    written: Counter[tuple[Any, ...]] = Counter()
    for record in read_records(output / RECORDS):
        for name, value in record["metrics"].items():
            written[mlflow_name(record["kind"], name), record["step"], record["time_ms"], value] += 1
    there: Counter[tuple[Any, ...]] = Counter()
    for key in {figure[0] for figure in written}:
        for metric in client.get_metric_history(run_id, key):
            there[key, metric.step, metric.timestamp, metric.value] += 1
    assert set(written.values()) == {1}
    return {
        "once": sum(1 for figure in written if there[figure] == 1),
        "more than once": sum(1 for figure in written if there[figure] > 1),
        "lost": sum(1 for figure in written if not there[figure]),
        "others": sum(1 for figure in there if figure not in written),
    }


def report(chaos: Chaos, counts: dict[str, dict[str, int]], seed: int) -> tuple[Table, str]:
    """The result as a table for the terminal and as Markdown."""
    rows = [("kills", f"{chaos.kills.total()}: " + ", ".join(f"{n} {kind}" for kind, n in sorted(chaos.kills.items())))]
    rows += [
        ("kills of the MLflow server", str(chaos.server_kills)),
        ("starts of the job", str(chaos.starts)),
        ("steps done, of which repeated after kills", f"{STEPS}, {chaos.repeated_steps}"),
        ("longest from a kill to the end of all processes", f"{chaos.slowest_end:.1f} s"),
        *((name, ", ".join(f"{n} {word}" for word, n in found.items())) for name, found in counts.items()),
        ("time, undisturbed run not counted", f"{chaos.seconds / 60:.1f} min"),
        ("problems", "; ".join(chaos.problems) or "none"),
    ]
    table = Table("what", "count", title=f"pretraining under kills, seed {seed}")
    for row in rows:
        table.add_row(*row)
    lines = [
        "# Pretraining under kills",
        "",
        *(f"- {name}: {said}" for name, said in describe_machine(["torch", "deepspeed", "mlflow"]).items()),
        f"- {chaos.kills.total()} kills, seed {seed}; debug recipe, two DeepSpeed processes, ZeRO-2, fp32",
        "",
        "| what | count |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in rows),
    ]
    return table, "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="of all choices")
    parser.add_argument("--work", type=Path, help="keep everything in this new folder")
    parser.add_argument("--results", type=Path, help="write the table to this file too, as Markdown")
    arguments = parser.parse_args()
    work = arguments.work or Path(tempfile.mkdtemp(prefix="chaos-"))
    work.mkdir(exist_ok=True)
    shards = make_sample_shards(work / "sample")
    server = MlflowServer(work / "mlflow")
    server.start()
    try:
        undisturbed = Job(shards, work / "undisturbed", *SETTINGS).wait().check()
        console.print(f"undisturbed: {STEPS} steps; last words: {undisturbed.output.splitlines()[-1]}")
        output = work / "disturbed"
        chaos = disturb(shards, output, server, kills=arguments.kills, rng=random.Random(arguments.seed))
        counts = {
            "records of losses": compare_losses(output, work / "undisturbed"),
            "steps by checksum of their samples": compare_samples(output, shards),
            "figures at MLflow": compare_mlflow(output, server),
        }
    finally:
        server.kill()
    for name, found in counts.items():
        chaos.problems += [f"{name}: {n} {word}" for word, n in found.items() if n and word not in {"equal", "once"}]
    table, text = report(chaos, counts, arguments.seed)
    console.print(table)
    if arguments.results:
        arguments.results.write_text(text, encoding="utf-8")
    return bool(chaos.problems)


if __name__ == "__main__":
    sys.exit(main())
