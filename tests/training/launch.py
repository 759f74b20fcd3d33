"""Start real DeepSpeed jobs of the debug recipe, and disturb them by process id."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from kebiolm.tracking.metric_log import RECORDS, read_records
from kebiolm.training.config import load_config
from kebiolm.training.metrics import CLOCK_FIGURES
from kebiolm.training.pretrain import pretrain

REPOSITORY = Path(__file__).resolve().parents[2]
DEBUG_RECIPE = REPOSITORY / "launch" / "configs" / "pretrain" / "debug.yaml"
STEPS = 40
SETTINGS = [
    f"deepspeed={REPOSITORY / 'deepspeed_configs' / 'zero2_fp32.json'}",
    f"optimization.max_steps={STEPS}",
    "evaluation.every_steps=20",
    "checkpoints.every_steps=10",
    "checkpoints.keep=2",
]
WITHOUT_MLFLOW = "tracking.tracking_uri=null"  # importing it takes a sender about 4 seconds of one core
_SECONDS_FOR_A_LAUNCH = 240


@dataclass(frozen=True)
class Finished:
    """How a launched job ended."""

    status: int
    output: str
    seconds_to_end: float
    """From the moment that was waited for to the end of the last training process."""

    def check(self) -> Finished:
        """Fail with the job's own words unless it ended well."""
        assert self.status == 0, self.output
        return self


class Job:
    """A `deepspeed --module kebiolm.training.pretrain` that runs in the background.

    Args:
        shards: what it trains on.
        output: its output folder.
        settings: overrides of the recipe, after those in `SETTINGS`.
        processes: number of them.
    """

    def __init__(self, shards: Path, output: Path, *settings: str, processes: int = 2) -> None:
        binary = Path(sys.executable).parent / "deepspeed"
        command = [str(binary), "--num_gpus", str(processes), "--master_port", str(_free_port())]
        command += ["--module", "kebiolm.training.pretrain", str(DEBUG_RECIPE), *SETTINGS]
        command += [f"shards={shards}", f"output={output}", WITHOUT_MLFLOW, *settings]
        environment = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
        # A file rather than a pipe: a pipe stays open as long as any process of the job holds it.
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self.process = subprocess.Popen(command, stdout=self._log, stderr=subprocess.STDOUT, env=environment)
        self._seen: dict[int, psutil.Process] = {}
        self._ranks: dict[int, psutil.Process] = {}

    def ranks(self) -> list[psutil.Process]:
        """The training processes that are alive, by rank; empty before they are started."""
        for process in self._family():
            try:
                command, environment = process.cmdline(), process.environ()
            except psutil.Error:
                continue
            # The launcher's own processes have the module's name in their command too.
            if "--module" not in command and "kebiolm.training.pretrain" in command and "RANK" in environment:
                self._ranks[int(environment["RANK"])] = process
        return [process for _, process in sorted(self._ranks.items()) if process.is_running()]

    def wait_for_ranks(self, processes: int = 2) -> list[psutil.Process]:
        """Wait until the training processes are there: to look for them takes longer than some steps."""
        assert self.wait_until(lambda: len(self.ranks()) == processes), self.wait().output
        return self.ranks()

    def wait_until(self, is_time: Callable[[], bool]) -> bool:
        """Wait until `is_time()` or the end of the job; whether it was time."""
        deadline = time.monotonic() + _SECONDS_FOR_A_LAUNCH
        while self.process.poll() is None and time.monotonic() < deadline:
            if is_time():
                return True
            time.sleep(0.002)
        return False

    def kill_all(self) -> None:
        """SIGKILL every process of the job; ranks outlive their launcher, so each by its own id."""
        for process in list(self._seen.values()) + self._family():
            if process.is_running():
                process.kill()

    def wait(self) -> Finished:
        """Wait for the end of all of the job's processes; what does not end is killed, and an error."""
        began = time.monotonic()
        # Those that were seen; where none was waited for, there is nothing to time.
        _, hanging = psutil.wait_procs(self._ranks.values(), timeout=_SECONDS_FOR_A_LAUNCH)
        seconds = time.monotonic() - began
        try:
            self.process.wait(_SECONDS_FOR_A_LAUNCH)
            _, alive = psutil.wait_procs(self._family(), timeout=_SECONDS_FOR_A_LAUNCH)
            assert not hanging + alive, f"did not end: {hanging + alive}"
        finally:
            self.kill_all()
        self._log.seek(0)
        return Finished(self.process.returncode, self._log.read(), seconds)

    def _family(self) -> list[psutil.Process]:
        """All processes that the job has started and that are alive, its launcher last."""
        try:
            launcher = psutil.Process(self.process.pid)
            self._seen |= {child.pid: child for child in [*launcher.children(recursive=True), launcher]}
        except psutil.NoSuchProcess:
            pass
        return [process for process in self._seen.values() if process.is_running()]


def launch_pretraining(
    shards: Path, output: Path, *settings: str, kill_when: Callable[[Path], bool] | None = None, processes: int = 2
) -> Finished:
    """Run a job to its end, or SIGKILL all of it once `kill_when(output)`."""
    job = Job(shards, output, *settings, processes=processes)
    if kill_when is not None and job.wait_until(lambda: kill_when(output)):
        job.kill_all()
    return job.wait()


def run_in_this_process(shards: Path, output: Path, *settings: str) -> bool:
    """Run the debug recipe as one process, this one; whether it came to its end."""
    common = ["evaluation.max_sequences=4", WITHOUT_MLFLOW]
    deepspeed = f"deepspeed={REPOSITORY / 'deepspeed_configs' / 'zero1_fp32.json'}"
    return pretrain(load_config(DEBUG_RECIPE, [deepspeed, f"shards={shards}", f"output={output}", *common, *settings]))


def losses(output: Path, kind: str = "train") -> dict[int, dict[str, float]]:
    """The recorded losses of a run by step, without figures that depend on the clock."""
    records = [record for record in read_records(output / RECORDS) if record["kind"] == kind]
    timeless = [
        {name: value for name, value in record["metrics"].items() if name not in CLOCK_FIGURES} for record in records
    ]
    assert len({record["step"] for record in records}) == len(records), "a step was recorded twice"
    return {record["step"]: metrics for record, metrics in zip(records, timeless, strict=True)}


def copy_run(run: Path, to: Path, *, last_step: int) -> Path:
    """Copy a run as it was when the checkpoint of `last_step` had been written; returns `to`."""
    shutil.copytree(run, to)
    for folder in (to / "checkpoints").glob("step-*"):
        if int(folder.name.removeprefix("step-")) > last_step:
            shutil.rmtree(folder)
    for path in (to / RECORDS, to / "samples.jsonl"):
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        path.write_text("".join(line for line in lines if _step_of(line) <= last_step), encoding="utf-8")
    # What MLflow was told belongs to the run that was copied.
    for path in (to / "mlflow_run.json", *to.glob("*.sent.json")):
        path.unlink(missing_ok=True)
    return to


def _step_of(line: str) -> int:
    return int(re.search(r'"step": (\d+)', line)[1])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
