"""Losses and accuracies as sums over targets, so that they add up exactly over micro batches and processes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from kebiolm.model.mentions import OUTSIDE, spans_of_labels
from kebiolm.model.modeling_kebiolm import KeBioLMPreTrainingOutput

TASKS = ("mlm", "detection", "linking")

CLOCK_FIGURES = ("tokens_per_second", "step_seconds", "peak_memory_mib")
"""Training figures that depend on the machine and its load: two runs that compute the same differ in these."""


def count_targets(batch: Mapping[str, Tensor]) -> Tensor:
    """Targets of the three tasks and real tokens of a batch: [masked tokens, labelled tokens, mentions, tokens]."""
    counts = [
        (batch["mlm_labels"] != -100).sum(),
        (batch["bio_labels"] != -100).sum(),
        (batch["entity_labels"] != -100).sum(),
        (batch["document_index"] > 0).sum(),
    ]
    return torch.stack(counts).to(torch.float64)


def loss_sums(output: KeBioLMPreTrainingOutput) -> Tensor:
    """The three summed losses of one forward pass, in the order of `TASKS`; shape [3]."""
    return torch.stack([output.mlm_loss_sum, output.detection_loss_sum, output.linking_loss_sum])


def hits(output: KeBioLMPreTrainingOutput, batch: Mapping[str, Tensor]) -> Tensor:
    """What was predicted right, as float64 counts.

    Returns:
        [masked tokens right, spans right, spans predicted, spans of gold, mentions whose entity is first, ... among the
        first ten].
    """
    masked_right = (output.mlm_logits.argmax(-1) == batch["mlm_labels"][batch["mlm_labels"] != -100]).sum()
    gold = _span_keys(batch["bio_labels"], batch["document_index"])
    unlabelled = batch["bio_labels"] == -100  # all positions of a batch that only keeps the processes in step
    predicted = _span_keys(output.bio_logits.argmax(-1).masked_fill(unlabelled, OUTSIDE), batch["document_index"])
    labels = batch["entity_labels"]
    ranked = output.entity_topk_rows[labels != -100] == labels[labels != -100].unsqueeze(-1)
    counts = [
        masked_right,
        torch.isin(predicted, gold).sum(),
        torch.tensor(predicted.numel(), device=gold.device),
        torch.tensor(gold.numel(), device=gold.device),
        ranked[:, :1].any(-1).sum(),
        ranked[:, :10].any(-1).sum(),
    ]
    return torch.stack(counts).to(torch.float64)


def bio_confusion(output: KeBioLMPreTrainingOutput, batch: Mapping[str, Tensor]) -> Tensor:
    """[3, 3] int64 labelled positions by gold label and predicted label, in the order O, B, I."""
    gold = batch["bio_labels"].flatten()
    # Positions without a label are counted in a tenth place, because choosing the others would wait for the device.
    places = torch.where(gold >= 0, 3 * gold + output.bio_logits.argmax(-1).flatten(), 9)
    return (
        torch.zeros(10, dtype=torch.int64, device=gold.device)
        .index_add_(0, places, torch.ones_like(places))[:9]
        .view(3, 3)
    )


def entity_hits(output: KeBioLMPreTrainingOutput, batch: Mapping[str, Tensor], num_entities: int) -> Tensor:
    """[E, 3] int64 by gold entity: its mentions, those with it ranked first, those with it among the first ten."""
    labels = batch["entity_labels"]
    has_label = labels >= 0
    is_it = output.entity_topk_rows == labels.unsqueeze(-1)
    counts = torch.stack([has_label, is_it[:, :1].any(-1), is_it[:, :10].any(-1)], dim=1) & has_label.unsqueeze(-1)
    totals = torch.zeros(num_entities, 3, dtype=torch.int64, device=labels.device)
    return totals.index_add_(0, labels.clamp(min=0), counts.long())


def summarize_losses(sums: Tensor, counts: Tensor) -> dict[str, float]:
    """Mean losses of the three tasks (equations 8, 9, 10) and their sum (equation 6).

    Args:
        sums: [3] summed losses over all processes.
        counts: [3 or more] targets, as `count_targets` returns.
    """
    means = [float(total) / max(float(count), 1.0) for total, count in zip(sums, counts, strict=False)]
    return {"loss": sum(means)} | {f"loss_{task}": mean for task, mean in zip(TASKS, means, strict=True)}


def summarize_hits(right: Tensor, counts: Tensor) -> dict[str, float]:
    """Accuracies in 0..1 from summed `hits` and summed `count_targets`."""
    masked, both, predicted, gold, first, ten = (float(value) for value in right)
    precision, recall = _share(both, predicted), _share(both, gold)
    return {
        "masked_accuracy": _share(masked, float(counts[0])),
        "detection_precision": precision,
        "detection_recall": recall,
        "detection_f1": _share(2 * precision * recall, precision + recall),
        "linking_accuracy_at_1": _share(first, float(counts[2])),
        "linking_accuracy_at_10": _share(ten, float(counts[2])),
    }


def sum_over_processes(values: Tensor) -> Tensor:
    """All-reduce a tensor of sums in place and return it."""
    dist.all_reduce(values)
    return values


def _span_keys(labels: Tensor, document_index: Tensor) -> Tensor:
    """One integer per span (batch row, start, end), so that sets of spans can be compared on the device."""
    positions = labels.shape[1] + 1
    spans = spans_of_labels(labels, document_index, max_mentions=positions)
    return (spans[:, 0] * positions + spans[:, 1]) * positions + spans[:, 2]


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
