"""Memory, time and cost of a run, before it is started."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kebiolm.errors import UserError
from kebiolm.planning.cards import Card, check_precision, find_card
from kebiolm.planning.fit import AMPLE, GIB, check_fit, find_fitting
from kebiolm.planning.flops import Flops, Range, count_flops, evaluation_flops, hours, training_flops
from kebiolm.planning.memory import Memory, predict_memory
from kebiolm.planning.parameters import Parameters, count_parameters
from kebiolm.planning.workload import Workload, make_workload
from kebiolm.training.config import PretrainConfig
from kebiolm.training.schedule import WARMUP_LIMIT


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is predicted of a run."""

    workload: Workload
    card: Card
    parameters: Parameters
    memory: Memory
    flops: Flops
    """Of one sequence's forward pass."""
    real_tokens: float
    """Pieces that the run reads, without padding."""
    training: Range
    """Hours of training."""
    evaluation: Range
    """Hours of evaluation."""
    cost: Range | None
    """In the unit of the price."""
    warnings: tuple[str, ...]


def make_plan(
    config: PretrainConfig,
    *,
    gpus: int,
    card_name: str,
    sequences: int | None = None,
    price_per_gpu_hour: float | None = None,
) -> Plan:
    """Predict a run.

    Args:
        config: its recipe.
        gpus: processes, one for each GPU; on a CPU, processes of one core.
        card_name: one of `cards.CARDS`.
        sequences: training sequences; None: those of the shards.
        price_per_gpu_hour: of one card.

    Raises:
        UserError: the run cannot be started or does not fit; with the setting to change.
    """
    for option, value in (("--gpus", gpus), ("--sequences", sequences), ("--price-per-gpu-hour", price_per_gpu_hour)):
        if value is not None and value <= 0:
            raise UserError(option, got=value, expected="more than 0", mend=f"give another {option}")
    card = find_card(card_name)
    workload = make_workload(config, gpus, sequences)
    check_precision(card, workload.zero.precision, config.deepspeed)
    memory = predict_memory(workload, card)
    check_fit(workload, card, memory)
    flops = count_flops(workload)
    training = hours(training_flops(workload, flops, executed=True), workload, card)
    evaluation = hours(evaluation_flops(workload, flops), workload, card)
    return Plan(
        workload=workload,
        card=card,
        parameters=count_parameters(workload.model, workload.data),
        memory=memory,
        flops=flops,
        real_tokens=workload.steps * config.optimization.global_batch_size * workload.data.length * workload.data.fill,
        training=training,
        evaluation=evaluation,
        cost=_cost(training, evaluation, gpus, price_per_gpu_hour),
        warnings=tuple(_warnings(workload, card, memory)),
    )


def _cost(training: Range, evaluation: Range, gpus: int, price: float | None) -> Range | None:
    if price is None:
        return None
    return Range(
        low=(training.low + evaluation.low) * gpus * price,
        likely=(training.likely + evaluation.likely) * gpus * price,
        high=(training.high + evaluation.high) * gpus * price,
    )


def _warnings(workload: Workload, card: Card, memory: Memory) -> Iterator[str]:
    warmup, steps = workload.config.optimization.warmup_steps, workload.steps
    if warmup > WARMUP_LIMIT * steps:
        yield (
            f"warm-up is {warmup:,} of {steps:,} steps ({warmup / steps:.0%}), more than {WARMUP_LIMIT:.0%}: lower "
            f"optimization.warmup_steps, to {int(WARMUP_LIMIT * steps):,} or less"
        )
    if card.memory is not None and memory.total > AMPLE * card.memory:
        change = find_fitting(workload, card, share=AMPLE)
        safer = "" if change is None else f"; {change.says}"
        yield (
            f"{memory.total / GIB:.1f} of {card.memory / GIB:.1f} GiB, more than {AMPLE:.0%}, leaves little for what "
            f"the arithmetic misses{safer}"
        )
    if memory.host:
        yield (
            f"{memory.host / GIB:.1f} GiB of host memory for each process are not checked: a host with 8 GPUs needs "
            f"{8 * memory.host / GIB:.0f} GiB, and more for reading data and for saving"
        )
