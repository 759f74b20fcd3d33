"""Start real DeepSpeed jobs of the debug recipe, and kill them by process id."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from kebiolm.training.tracking import RECORDS, read_records

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
_SECONDS_FOR_A_LAUNCH = 240


@dataclass(frozen=True)
class Finished:
    """How a launched job ended."""

    status: int
    output: str

    def check(self) -> Finished:
        """Fail with the job's own words unless it ended well."""
        assert self.status == 0, self.output
        return self


def launch_pretraining(
    shards: Path, output: Path, *settings: str, kill_when: Callable[[Path], bool] | None = None, processes: int = 2
) -> Finished:
    """Run `deepspeed --module kebiolm.training.pretrain` to its end, or SIGKILL all of it once `kill_when(output)`."""
    binary = Path(sys.executable).parent / "deepspeed"
    command = [str(binary), "--num_gpus", str(processes), "--master_port", str(_free_port())]
    command += ["--module", "kebiolm.training.pretrain", str(DEBUG_RECIPE), *SETTINGS]
    command += [
        f"shards={shards}",
        f"output={output}",
        f"tracking.tracking_uri=sqlite:///{output.parent / 'mlflow.db'}",
    ]
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    job = subprocess.Popen(
        [*command, *settings], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )
    if kill_when is not None:
        _kill_tree_when(job, lambda: kill_when(output))
    text, _ = job.communicate(timeout=_SECONDS_FOR_A_LAUNCH)
    return Finished(job.returncode, text)


def losses(output: Path, kind: str = "train") -> dict[int, dict[str, float]]:
    """The recorded losses of a run by step, without figures that depend on the clock."""
    records = [record for record in read_records(output / RECORDS) if record["kind"] == kind]
    timeless = [
        {name: value for name, value in record["metrics"].items() if name != "tokens_per_second"} for record in records
    ]
    assert len({record["step"] for record in records}) == len(records), "a step was recorded twice"
    return {record["step"]: metrics for record, metrics in zip(records, timeless, strict=True)}


def _kill_tree_when(job: subprocess.Popen[str], is_time: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _SECONDS_FOR_A_LAUNCH
    while job.poll() is None and time.monotonic() < deadline:
        if is_time():
            # Ranks outlive their launcher, so each is killed by its own id.
            for process in [*psutil.Process(job.pid).children(recursive=True), psutil.Process(job.pid)]:
                process.kill()
            return
        time.sleep(0.002)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
