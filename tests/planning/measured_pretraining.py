"""Pretraining as `kebiolm pretrain` does it, with a record of how much memory each part of it took.

    python -m tests.planning.measured_pretraining CONFIG [key=value ...]
    deepspeed --num_gpus 2 --module tests.planning.measured_pretraining CONFIG [key=value ...]

Each process writes OUTPUT/memory-RANK.json: bytes above what it held before the model was made, at the highest point
of training, evaluation and saving. They are the resident memory of its own, as the operating system counts it: pages of
files, which it may drop when memory is short, are left out.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import mlflow  # noqa: F401 - which tracking would import while the first steps run

from kebiolm.training import assemble, pretrain
from kebiolm.training.config import load_config
from kebiolm.training.evaluation import Evaluator
from kebiolm.training.train_step import TrainStep

_EVERY_S = 0.003


class PeakMemory:
    """Highest memory of this process within named parts of its work, in bytes above a base; a thread looks at it."""

    def __init__(self) -> None:
        self.base = 0
        self.peaks: dict[str, int] = {}
        self._part: str | None = None

    def start(self) -> None:
        """What is held now is the base."""
        self.base = _own_memory()
        threading.Thread(target=self._look, daemon=True).start()

    def within(self, name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """The function, measured under the name."""

        def measured(*arguments: Any, **options: Any) -> Any:
            self._part = name
            try:
                return work(*arguments, **options)
            finally:
                self._part = None

        return measured

    def _look(self) -> None:
        while True:
            held, part = _own_memory() - self.base, self._part
            if part is not None:
                self.peaks[part] = max(self.peaks.get(part, 0), held)
            time.sleep(_EVERY_S)


def _own_memory() -> int:
    """Resident bytes that are no pages of files."""
    _, resident, of_files, *_ = Path("/proc/self/statm").read_text(encoding="ascii").split()
    return (int(resident) - int(of_files)) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    """Run the command line of `kebiolm.training.pretrain`."""
    arguments = [argument for argument in sys.argv[1:] if not argument.startswith("--local_rank")]
    config = load_config(Path(arguments[0]), arguments[1:])
    memory = PeakMemory()
    make_model, make_engine = assemble.make_initial_model, assemble.make_engine

    def measured_model(*arguments: Any, **options: Any) -> Any:
        memory.start()
        return memory.within("model", make_model)(*arguments, **options)

    with (
        mock.patch.object(assemble, "make_initial_model", measured_model),
        mock.patch.object(assemble, "make_engine", memory.within("engine", make_engine)),
        mock.patch.object(assemble, "save_checkpoint", memory.within("save", assemble.save_checkpoint)),
        mock.patch.object(TrainStep, "__call__", memory.within("train", TrainStep.__call__)),
        mock.patch.object(Evaluator, "__call__", memory.within("evaluate", Evaluator.__call__)),
    ):
        pretrain.main(arguments)
    record = {"base": memory.base, **memory.peaks}
    path = config.output / f"memory-{os.environ['RANK']}.json"
    path.write_text(json.dumps(record), encoding="utf-8")


if __name__ == "__main__":
    main()
