"""The planner's memory against that of real runs: `kebiolm pretrain` in one and two processes, on a CPU.

    python -m tests.benchmarks.bench_plan            # about 6 minutes on 2 quiet cores, 4 GB
    python -m tests.benchmarks.bench_plan --only 3

Each case trains two steps of random full sequences, a checkpoint included. Measured is the resident memory of a process
that is no pages of files, at its highest within training and evaluation, above what it held before the model was made
(tests/planning/measured_pretraining.py). Writes plan.md to tests/benchmarks/results/.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

from tests.benchmarks.machine import describe_machine
from tests.planning.compare import Comparison, compare
from tests.planning.synthetic_shards import write_synthetic_shards

RESULTS = Path(__file__).parent / "results"
LIMIT = 0.15
MIB = 2**20

_SMALL = {
    "model.hidden_size": 256,
    "model.num_hidden_layers": 4,
    "model.num_attention_heads": 4,
    "model.intermediate_size": 1024,
    "model.entity_size": 100,
    "model.max_candidate_entities": 100,
}
_DEEP = _SMALL | {
    "model.hidden_size": 512,
    "model.num_hidden_layers": 8,
    "model.num_context_layers": 5,
    "model.num_attention_heads": 8,
    "model.intermediate_size": 2048,
}
_NO_DROPOUT = {"model.hidden_dropout_prob": 0, "model.attention_probs_dropout_prob": 0}
_CHECKPOINTED = {"optimization.activation_checkpointing": "true"}


def batch(micro: int, accumulated: int = 1, processes: int = 1) -> dict[str, object]:
    """Sizes of the batches."""
    return {
        "optimization.micro_batch_size": micro,
        "optimization.global_batch_size": micro * accumulated * processes,
    }


CASES: list[tuple[str, str, int, dict[str, object]]] = [
    ("4 x 256, micro 4", "zero2_fp32", 1, _SMALL | batch(4)),
    ("4 x 256, micro 4, no dropout", "zero1_fp32", 1, _SMALL | _NO_DROPOUT | batch(4)),
    ("4 x 256, micro 1 x 2", "zero2_fp32", 1, _SMALL | batch(1, 2)),
    ("4 x 256, micro 1 x 2", "zero1_bf16", 1, _SMALL | batch(1, 2)),
    ("4 x 256, micro 4", "zero2_bf16", 1, _SMALL | batch(4)),
    ("4 x 256, micro 1 x 2", "zero3_bf16", 1, _SMALL | batch(1, 2)),
    ("8 x 512, micro 2, checkpointing", "zero1_fp32", 1, _DEEP | _CHECKPOINTED | batch(2)),
    ("8 x 512, micro 1", "zero3_fp32", 1, _DEEP | batch(1)),
    ("4 x 256, micro 1", "zero3_offload_fp32", 1, _SMALL | batch(1)),
    ("4 x 256, micro 2", "zero1_fp32", 2, _SMALL | batch(2, 1, 2)),
    ("4 x 256, micro 1 x 2", "zero2_bf16", 2, _SMALL | batch(1, 2, 2)),
    ("4 x 256, micro 1", "zero3_fp32", 2, _SMALL | batch(1, 1, 2)),
]
"""Name, DeepSpeed's settings, processes, settings of the recipe."""


def main() -> None:
    """Measure all cases, or one of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", type=int, help="number of a case, from 1")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    machine = describe_machine(["torch", "deepspeed", "transformers"])
    chosen = CASES if arguments.only is None else [CASES[arguments.only - 1]]
    found: list[tuple[str, str, int, Comparison]] = []
    with tempfile.TemporaryDirectory() as folder:
        shards = write_synthetic_shards(Path(folder) / "shards", length=512, pieces=30_000, entities=100_000, heldout=2)
        for number, (name, deepspeed, processes, settings) in enumerate(chosen):
            run = Path(folder) / str(number)
            run.mkdir()
            compared = compare(run, shards, f"{deepspeed}.json", settings, processes)
            found.append((name, deepspeed, processes, compared))
            print(row(*found[-1]), compared.predicted.parts, flush=True)
    if arguments.only is None:
        machine["load average at the end"] = f"{os.getloadavg()[0]:.1f}"
        write(found, machine, arguments.out)


def row(name: str, deepspeed: str, processes: int, compared: Comparison) -> str:
    """A line of the table."""
    verdict = "met" if abs(compared.error) <= LIMIT else "missed"
    cells = (
        name,
        deepspeed,
        processes,
        f"{compared.measured / MIB:,.0f}",
        f"{compared.predicted.total / MIB:,.0f}",
        f"{compared.error:+.1%}",
        verdict,
        compared.predicted.moment,
    )
    return "| " + " | ".join(map(str, cells)) + " |"


def write(found: list[tuple[str, str, int, Comparison]], machine: dict[str, str], out: Path) -> None:
    """plan.md."""
    errors = [abs(compared.error) for *_, compared in found]
    lines = [
        "# Predicted and measured memory of a pretraining process",
        "",
        *(f"- {name}: {said}" for name, said in machine.items()),
        "- data: full sequences of 512 pieces, one segment each, 36 mentions; 30,000 pieces, 100,000 entities of 100",
        f"- target: within {LIMIT:.0%}; largest error {max(errors):.1%}, mean {sum(errors) / len(errors):.1%}",
        "",
        "| layers x size, batch | DeepSpeed | processes | measured, MiB | predicted | error | target | highest at |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        *(row(*case) for case in found),
        "",
        "Measured: resident memory without pages of files, sampled every 3 ms in the process that took most, at its",
        "highest within training and evaluation, above what it held before the model was made. 60 MiB of each",
        "prediction are what libraries take at their first use. A GPU differs in attention (no weights are kept),",
        "buckets (allocated whole) and libraries: that part of the planner has been measured on no GPU.",
    ]
    out.mkdir(parents=True, exist_ok=True)
    (out / "plan.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
