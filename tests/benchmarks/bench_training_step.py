"""What the entity-attention operator costs in a training step: the project's own trainer, with and without it.

    python -m tests.benchmarks.bench_training_step           # about 6 minutes on 2 quiet cores, 10 GB
    python -m tests.benchmarks.bench_training_step --layers 4 --hidden 256 --rounds 2

The model has the paper's sizes (12 layers of 768, 477,039 entities of 100) and random weights; a step is one optimizer
step of one micro batch of random pieces. Steps with each backend, with plain PyTorch in the operator's place, and with
no search at all take turns; the share of a search is what its steps take more than those without one.
Writes training_step.md and .json to tests/benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from functools import partial
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor

from kebiolm.data.collator import Batch
from kebiolm.kernels import KnnEntityAttentionOutput, knn_entity_attention
from kebiolm.model import KeBioLMConfig, KeBioLMForPreTraining, entity_memory
from kebiolm.training.config import OptimizationSection
from kebiolm.training.deepspeed_engine import init_distributed, make_engine
from kebiolm.training.train_step import TrainStep
from tests.benchmarks.knn_peers import ENTITIES, SIZE, naive
from tests.benchmarks.machine import describe_machine

RESULTS = Path(__file__).parent / "results"
LENGTH, SEQUENCES, MENTIONS = 512, 2, 35
"""Pieces of a sequence, sequences of a step, linked mentions of a sequence (as in packed abstracts: about 34)."""
VOCABULARY = 28_895


def without_search(h: Tensor, table: Tensor, gold: Tensor, k: int, **_: object) -> KnnEntityAttentionOutput:
    """No search: outputs of the right shapes that depend on h, and a dense gradient of the table that is 0."""
    rows = torch.arange(k).expand(len(h), k)
    values = h.sum(dim=1, keepdim=True).expand(-1, k)
    return KnnEntityAttentionOutput(h + 0.0 * table[0], values[:, 0], values[:, 0] * 0, values, rows)


def naive_search(h: Tensor, table: Tensor, gold: Tensor, k: int, *, first_row: int, **_: object) -> object:
    """Plain PyTorch in the operator's place."""
    found = naive(h, table[first_row:], (gold - first_row).clamp(min=0), k)
    return found._replace(topk_idx=found.topk_idx + first_row)


SEARCHES = {
    "no search": without_search,
    "plain PyTorch": naive_search,
    "tiled": partial(knn_entity_attention, backend="tiled"),
    "cpu": partial(knn_entity_attention, backend="cpu"),
}


def make_batch() -> Batch:
    """Random pieces, 15% of them masked, and mentions of two pieces each with a gold entity."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, VOCABULARY, (SEQUENCES, LENGTH), generator=generator)
    mlm_labels = ids.masked_fill(torch.rand(ids.shape, generator=generator) > 0.15, -100)
    starts = torch.arange(MENTIONS) * (LENGTH // MENTIONS) + 1
    spans = torch.cat([torch.stack([torch.full_like(starts, row), starts, starts + 2], 1) for row in range(SEQUENCES)])
    bio_labels = torch.zeros_like(ids)
    for row, start, _ in spans.tolist():
        bio_labels[row, start], bio_labels[row, start + 1] = 1, 2
    return {
        "input_ids": ids,
        "document_index": torch.ones_like(ids),
        "position_ids": torch.arange(LENGTH).expand_as(ids),
        "mlm_labels": mlm_labels,
        "mlm_positions": (mlm_labels.flatten() != -100).nonzero().squeeze(1),
        "segment_offsets": torch.arange(0, ids.numel() + 1, LENGTH),
        "bio_labels": bio_labels,
        "mention_spans": spans,
        "entity_labels": torch.randint(3, ENTITIES, (len(spans),), generator=generator),
    }


def make_step(layers: int, hidden: int) -> TrainStep:
    """The step of `kebiolm pretrain` around a model of the given size."""
    init_distributed()
    torch.manual_seed(0)
    config = KeBioLMConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_attention_heads=hidden // 64,
        num_hidden_layers=layers,
        num_context_layers=layers * 2 // 3,
        num_entities=ENTITIES,
        entity_size=SIZE,
        entity_row_size=104,
    )
    optimization = OptimizationSection(global_batch_size=SEQUENCES, micro_batch_size=SEQUENCES, max_steps=1000)
    engine = make_engine(KeBioLMForPreTraining(config), {"zero_optimization": {"stage": 1}}, optimization, 1)
    return TrainStep(engine, learning_rate=lambda step: 5e-5, seed=0, rank=0, world_size=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    machine = describe_machine(["torch", "deepspeed", "transformers"])
    seconds: dict[str, list[float]] = {name: [] for name in SEARCHES}
    train_step, batch = make_step(arguments.layers, arguments.hidden), make_batch()
    torch.set_num_threads(arguments.threads)  # after DeepSpeed, which sets its own number
    train_step.engine.train()
    for number in range(arguments.rounds + 1):
        for name, search in SEARCHES.items():
            with mock.patch.object(entity_memory, "knn_entity_attention", search):
                started = time.perf_counter()
                train_step(number, [batch])
            if number:  # the first round warms up
                seconds[name].append(time.perf_counter() - started)
    machine["load average at the end"] = f"{os.getloadavg()[0]:.1f}"
    write(seconds, machine, arguments)


def write(seconds: dict[str, list[float]], machine: dict[str, str], arguments: argparse.Namespace) -> None:
    """training_step.md and .json."""
    base = statistics.median(seconds["no search"])
    lines = ["# The entity search in a training step", "", *(f"- {name}: {said}" for name, said in machine.items())]
    lines += [
        f"- model: {arguments.layers} layers of {arguments.hidden}, {ENTITIES:,} entities of {SIZE}; a step has "
        f"{SEQUENCES} sequences of {LENGTH} pieces with {MENTIONS} linked mentions each; fp32, AdamW, ZeRO stage 1, "
        f"one process, {arguments.threads} threads",
        "",
        "| search | step, s (lowest - highest) | share of the step |",
        "| --- | --- | --- |",
    ]
    for name, of in seconds.items():
        median = statistics.median(of)
        share = f"{max(median - base, 0) / median:.1%}"
        lines.append(f"| {name} | {median:.2f} ({min(of):.2f} - {max(of):.2f}) | {share} |")
    lines += [
        "",
        f"Medians of {arguments.rounds} rounds in turns. Without a search nothing but the search is left out.",
    ]
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "training_step.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    text = json.dumps({"machine": machine, "seconds": seconds}, indent=1) + "\n"
    (arguments.out / "training_step.json").write_text(text, encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
