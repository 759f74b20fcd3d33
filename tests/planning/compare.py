"""Runs the real trainer and the planner on one recipe, for tests and for the benchmark."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from kebiolm.planning.cards import CARDS
from kebiolm.planning.memory import Memory, predict_memory
from kebiolm.planning.workload import make_workload
from kebiolm.training.config import load_config

REPOSITORY = Path(__file__).resolve().parents[2]
RECIPE = REPOSITORY / "launch" / "configs" / "pretrain" / "debug.yaml"
ENVIRONMENT = {
    "DS_ACCELERATOR": "cpu",
    "OMP_NUM_THREADS": "1",
    # A freed tensor goes back to the system at once, so that resident memory is what tensors hold.
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "MALLOC_ARENA_MAX": "1",
}
_MODULE = "tests.planning.measured_pretraining"
_SECONDS = 600


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One run, predicted and measured."""

    predicted: Memory
    measured: int
    """Bytes of the process that took most, at its highest, above what it held before the model was made."""
    phase: str
    """When that was."""

    @property
    def error(self) -> float:
        """Share by which the prediction is above (or, negative, below) the measurement."""
        return self.predicted.total / self.measured - 1


def compare(folder: Path, shards: Path, deepspeed: str, settings: dict[str, object], processes: int = 1) -> Comparison:
    """Pretrain for two steps, and predict the same.

    Args:
        folder: for the run; its files are small but for a checkpoint.
        shards: to train on.
        deepspeed: name of a file in deepspeed_configs/.
        settings: of the recipe, over debug.yaml.
        processes: to run.
    """
    overrides = {
        "shards": shards,
        "output": folder / "run",
        "deepspeed": REPOSITORY / "deepspeed_configs" / deepspeed,
        "optimization.max_steps": 2,
        "optimization.warmup_steps": 0,
        "tracking.tracking_uri": f"sqlite:///{folder / 'mlflow.db'}",
        **settings,
    }
    arguments = [f"{key}={value}" for key, value in overrides.items()]
    predicted = predict_memory(make_workload(load_config(RECIPE, arguments), processes, None), CARDS["cpu"])
    _run([str(RECIPE), *arguments], processes)
    records = [json.loads(path.read_text()) for path in (folder / "run").glob("memory-*.json")]
    assert len(records) == processes
    highest, phase = max((record[phase], phase) for record in records for phase in ("train", "evaluate"))
    return Comparison(predicted=predicted, measured=highest, phase=phase)


def _run(arguments: list[str], processes: int) -> None:
    command = [sys.executable, "-m", _MODULE]
    if processes > 1:
        launcher = str(Path(sys.executable).parent / "deepspeed")
        command = [launcher, "--num_gpus", str(processes), "--master_port", str(_free_port()), "--module", _MODULE]
    environment = os.environ | ENVIRONMENT | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [*command, *arguments],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
