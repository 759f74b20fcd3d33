"""Floating-point operations of training, and the hours they take.

A product of [m, k] and [k, n] counts 2 m k n. The backward pass costs twice the forward pass, because each product has
two gradients; with activation checkpointing the layers' forward pass is done once more, which takes time but does not
count as use of the card. Element-wise work is left out: the utilisation stands for it.
"""

from __future__ import annotations

from dataclasses import dataclass

from kebiolm.planning.activations import has_segment_kernel
from kebiolm.planning.cards import Card, Utilisation
from kebiolm.planning.workload import Workload

TRAINING = 3  # forward and backward, in forward passes


@dataclass(frozen=True, kw_only=True)
class Flops:
    """Operations of one sequence's forward pass."""

    layers: float
    """Matrix products with the layers' weights."""
    attention: float
    """Query times key, weights times value."""
    head: float
    """Language-model head at the masked positions."""
    entities: float
    """Mention detection, projections and the search of the whole table."""

    @property
    def total(self) -> float:
        """All of them."""
        return self.layers + self.attention + self.head + self.entities


@dataclass(frozen=True, kw_only=True)
class Range:
    """A figure that is not known exactly."""

    low: float
    likely: float
    high: float


def count_flops(workload: Workload) -> Flops:
    """Count one sequence's forward pass; padding is computed like pieces."""
    model, data = workload.model, workload.data
    length, hidden = data.length, model.hidden
    squared = data.squared_segments if has_segment_kernel(workload) else length**2
    masked = length * data.fill * workload.config.masking.probability
    detection = 2 * length * hidden * 3
    projections = 2 * data.mentions * 3 * hidden * model.entity_size
    # The gradient of the log-sum-exp makes the scores again: in all four products forward and backward, not three.
    search = 2 * data.mentions * data.entities * model.entity_columns * 4 / TRAINING
    return Flops(
        layers=2 * length * model.layers * (4 * hidden**2 + 2 * hidden * model.intermediate),
        attention=4 * squared * hidden * model.layers,
        head=2 * masked * (hidden**2 + hidden * data.pieces),
        entities=detection + projections + search,
    )


def training_flops(workload: Workload, flops: Flops, *, executed: bool) -> float:
    """Operations of the whole run's training.

    Args:
        workload: the run.
        flops: of one sequence's forward pass.
        executed: with what activation checkpointing computes again.
    """
    sequences = workload.steps * workload.config.optimization.global_batch_size
    again = 0.0
    if executed and workload.config.optimization.activation_checkpointing:
        again = flops.layers + flops.attention
    return sequences * (TRAINING * flops.total + again)


def evaluation_flops(workload: Workload, flops: Flops) -> float:
    """Operations of the run's evaluations: before the first step, at intervals, and at the end; 0 if not known."""
    section = workload.config.evaluation
    heldout = workload.data.heldout or 0
    sequences = min(heldout, section.max_sequences or heldout)
    times = 1 + -(-workload.steps // section.every_steps)
    return sequences * times * flops.total


def hours(operations: float, workload: Workload, card: Card) -> Range:
    """Hours of the whole job, all processes at work.

    Args:
        operations: executed by all processes together.
        workload: the run.
        card: what each process computes on.
    """
    precision = workload.zero.precision
    share: Utilisation = card.utilisation[precision]
    at_peak = operations / (workload.processes * card.tflops[precision] * 1e12) / 3600
    return Range(low=at_peak / share.high, likely=at_peak / share.likely, high=at_peak / share.low)
