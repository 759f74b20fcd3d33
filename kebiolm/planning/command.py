"""`kebiolm plan`: predicts a run and prints it."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from rich.console import Console

from kebiolm.console import console as default_console
from kebiolm.planning.flops import training_flops
from kebiolm.planning.plan import Plan, make_plan
from kebiolm.planning.report import print_plan
from kebiolm.training.config import PretrainConfig


def plan(
    config: PretrainConfig,
    *,
    gpus: int,
    card_name: str,
    sequences: int | None = None,
    price_per_gpu_hour: float | None = None,
    as_json: bool = False,
    console: Console = default_console,
) -> None:
    """Predict a run and print it; arguments as `make_plan`."""
    made = make_plan(config, gpus=gpus, card_name=card_name, sequences=sequences, price_per_gpu_hour=price_per_gpu_hour)
    if as_json:
        console.print_json(json.dumps(as_figures(made)))
    else:
        print_plan(made, console)


def as_figures(made: Plan) -> dict[str, Any]:
    """The plan as JSON has it; bytes, hours, counts."""
    workload, card = made.workload, made.card
    return {
        "card": card.name,
        "gpus": workload.processes,
        "precision": workload.zero.precision,
        "zero_stage": workload.zero.stage,
        "data": dataclasses.asdict(workload.data),
        "parameters": {"total": made.parameters.total, "entity_table": made.parameters.entities},
        "memory": {
            "card_bytes": card.memory,
            "predicted_bytes": made.memory.total,
            "highest_at": made.memory.moment,
            "parts": made.memory.parts,
            "moments": made.memory.moments,
            "entity_table_bytes": made.memory.entity_table,
            "host_bytes": made.memory.host,
        },
        "micro_batches_per_step": workload.micro_batches,
        "steps": workload.steps,
        "tokens": made.real_tokens,
        "training_flops": training_flops(workload, made.flops, executed=False),
        "utilisation": dataclasses.asdict(card.utilisation[workload.zero.precision]),
        "training_hours": dataclasses.asdict(made.training),
        "evaluation_hours": dataclasses.asdict(made.evaluation),
        "cost": None if made.cost is None else dataclasses.asdict(made.cost),
        "warnings": list(made.warnings),
    }
