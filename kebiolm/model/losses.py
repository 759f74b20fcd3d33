"""The three pretraining losses (section 3.2), as sums with counts and as means.

A sum and its count let a trainer normalise over the global batch: add both over micro batches and processes, then
divide. Counts are fp32, like the sums, so that one tensor can carry all six numbers.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

IGNORED_LABEL = -100


class LossSum(NamedTuple):
    """A loss summed over its targets."""

    sum: Tensor
    """0-dim fp32, in nats."""
    count: Tensor
    """0-dim fp32, number of targets."""

    def mean(self) -> Tensor:
        """Mean over the targets; 0, with a graph, when there is none."""
        return self.sum / self.count.clamp(min=1.0)


def masked_language_modelling_loss(logits: Tensor, targets: Tensor) -> LossSum:
    """Eq. 7 and 8: cross-entropy of the original pieces.

    Args:
        logits: [K, V] at the K masked positions only.
        targets: [K] int64.
    """
    return _cross_entropy_sum(logits, targets)


def entity_detection_loss(bio_logits: Tensor, bio_labels: Tensor) -> LossSum:
    """Eq. 9: cross-entropy of the B/I/O labels over all tokens that are not padding.

    Args:
        bio_logits: [B, L, 3].
        bio_labels: [B, L] int64, 0 = O, 1 = B, 2 = I, -100 = padding.
    """
    return _cross_entropy_sum(bio_logits.flatten(0, 1), bio_labels.flatten())


def entity_linking_loss(lse: Tensor, gold_logit: Tensor, has_gold: Tensor) -> LossSum:
    """Eq. 10: cross-entropy of the gold entity over all entities, for the mentions that have one.

    Args:
        lse: [N] fp32, log-sum-exp of a mention's dot products with all entities.
        gold_logit: [N] fp32, its dot product with the gold entity.
        has_gold: [N] bool.
    """
    # where() after the difference keeps the graph of a batch in which no mention has a gold entity.
    return LossSum(torch.where(has_gold, lse - gold_logit, 0.0).sum(), has_gold.sum(dtype=torch.float32))


def sum_of_means(losses: Iterable[LossSum | None]) -> Tensor | None:
    """Eq. 6 with means in place of sums, weights 1/1/1: the mean of each given loss, added; None when none is given."""
    means = [loss.mean() for loss in losses if loss is not None]
    return torch.stack(means).sum() if means else None


def _cross_entropy_sum(logits: Tensor, targets: Tensor) -> LossSum:
    count = (targets != IGNORED_LABEL).sum(dtype=torch.float32)
    return LossSum(cross_entropy(logits.float(), targets, ignore_index=IGNORED_LABEL, reduction="sum"), count)
