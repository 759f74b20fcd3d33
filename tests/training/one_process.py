"""A recipe's loader, model, DeepSpeed engine and step in the test's own process, without a run's folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kebiolm.data.collator import Batch
from kebiolm.data.loader import PretrainingLoader
from kebiolm.data.shard_format import PackedShards
from kebiolm.model import KeBioLMForPreTraining
from kebiolm.training.assemble import make_loader
from kebiolm.training.config import PretrainConfig, load_config
from kebiolm.training.deepspeed_engine import init_distributed, load_deepspeed_settings, make_engine
from kebiolm.training.initial_model import make_initial_model
from kebiolm.training.train_step import StepResult, TrainStep
from tests.training.launch import DEBUG_RECIPE, REPOSITORY


@dataclass(frozen=True)
class OneProcess:
    """What trains one recipe."""

    config: PretrainConfig
    shards: PackedShards
    loader: PretrainingLoader
    model: KeBioLMForPreTraining
    engine: Any
    step: TrainStep

    def batches(self, step: int) -> list[Batch]:
        """The micro batches of optimizer step `step`, counted from 0."""
        return next(batches for _, batches in self.loader.iterate(step, step + 1))

    def train(self, first: int, end: int) -> list[StepResult]:
        """Train steps `first` to `end` - 1."""
        return [self.step(number, self.batches(number)) for number in range(first, end)]


def make_one_process(
    shards: Path, *settings: str, deepspeed: str = "zero1_fp32", recipe: Path = DEBUG_RECIPE
) -> OneProcess:
    """Put a recipe's parts together; `deepspeed` names a file of deepspeed_configs/."""
    path = REPOSITORY / "deepspeed_configs" / f"{deepspeed}.json"
    config = load_config(recipe, [f"shards={shards}", "output=unused", f"deepspeed={path}", *settings])
    init_distributed()
    packed = PackedShards.load(config.shards)
    loader = make_loader(config, packed)
    model = make_initial_model(config, packed, say=False)
    accumulated = loader.gradient_accumulation_steps
    engine = make_engine(model, load_deepspeed_settings(path), config.optimization, accumulated)
    peak = config.optimization.learning_rate
    step = TrainStep(engine, learning_rate=lambda _: peak, seed=config.seed, rank=0, world_size=1)
    return OneProcess(config, packed, loader, model, engine, step)
