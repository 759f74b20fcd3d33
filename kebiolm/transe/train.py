"""Train TransE on integer triples."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from kebiolm.console import progress
from kebiolm.errors import UserError
from kebiolm.transe.model import TransE, distance, margin_loss, unit_length
from kebiolm.transe.negatives import TripleSet, corrupt
from kebiolm.transe.row_adam import RowAdam


@dataclass(frozen=True, kw_only=True)
class TransESettings:
    """Settings of a training; the defaults are the paper's (section 4.1), except where a field says "ours".

    Attributes:
        dim: length of the vectors.
        epochs: passes over the training triples.
        batch_size: true triples per step.
        learning_rate: of Adam, constant.
        margin: by how much a negative should be farther than its true triple. Ours: the paper gives none.
        negatives: negatives per true triple. Ours: the paper gives none.
        seed: of start vectors, order and negatives.
    """

    dim: int = 100
    epochs: int = 30
    batch_size: int = 2048
    learning_rate: float = 1e-3
    margin: float = 1.0
    negatives: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise a UserError that names every setting out of range."""
        counts = {"dim": self.dim, "epochs": self.epochs, "batch_size": self.batch_size, "negatives": self.negatives}
        bad = [f"{name} = {value}" for name, value in counts.items() if value < 1]
        if not 0 < self.learning_rate <= 1:
            bad.append(f"learning_rate = {self.learning_rate}")
        if not 0 < self.margin < math.inf:
            bad.append(f"margin = {self.margin}")
        if bad:
            expected = "counts of at least 1, a learning rate in (0, 1] and a positive margin"
            raise UserError("TransE settings", got=", ".join(bad), expected=expected, mend="change these options")


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """A trained model and how the training went.

    Attributes:
        model: on the device of the training.
        epoch_losses: mean margin loss of each epoch.
        triples_per_second: true triples trained on per second of the epochs' wall time.
    """

    model: TransE
    epoch_losses: list[float]
    triples_per_second: float


def train(
    triples: np.ndarray, *, num_entities: int, num_relations: int, settings: TransESettings, device: str = "cpu"
) -> TrainingResult:
    """Train TransE with Adam, margin ranking loss and filtered negatives.

    The same input, settings and kind of device give the same vectors.

    Args:
        triples: [n, 3] int64 true triples, n >= 1.
        num_entities: number of entities; numbers in `triples` are below it.
        num_relations: number of relations, likewise.
        settings: see `TransESettings`.
        device: "cpu" or "cuda".

    Raises:
        UserError: the loss is not finite any more.
    """
    generator = torch.Generator(device).manual_seed(settings.seed)
    positives = torch.as_tensor(triples, device=device)
    true = TripleSet(positives, num_entities=num_entities, num_relations=num_relations)
    start = TransE.random(num_entities, num_relations, settings.dim, generator=generator, device=torch.device(device))
    steps_per_epoch = math.ceil(len(positives) / settings.batch_size)
    entities = RowAdam(
        start.entities,
        learning_rate=settings.learning_rate,
        total_steps=settings.epochs * steps_per_epoch,
        project=unit_length,
    )
    relations = start.relations.requires_grad_()
    del start  # its entities were copied; at 477,039 entities they are 191 MB
    relation_adam = torch.optim.Adam([relations], lr=settings.learning_rate)

    epoch_losses = []
    started = time.perf_counter()
    with progress("Training TransE", settings.epochs * len(positives), "triples") as advance:
        for _ in range(settings.epochs):
            loss_sum = torch.zeros((), dtype=torch.float64, device=device)
            order = torch.randperm(len(positives), generator=generator, device=device)
            for batch in order.split(settings.batch_size):
                positive = positives[batch]
                negative = corrupt(positive, true, count=settings.negatives, generator=generator)
                loss = _step(
                    positive,
                    negative,
                    entities=entities,
                    relations=relations,
                    relation_adam=relation_adam,
                    margin=settings.margin,
                )
                loss_sum += loss * len(batch)
                advance(len(batch))
            epoch_losses.append(_finite_mean(loss_sum, len(positives), settings))
            advance(0, f"loss {epoch_losses[-1]:.4f}")
    seconds = time.perf_counter() - started

    model = TransE(entities=entities.table(), relations=relations.detach())
    triples_per_second = settings.epochs * len(positives) / seconds
    return TrainingResult(model=model, epoch_losses=epoch_losses, triples_per_second=triples_per_second)


def _step(
    positive: torch.Tensor,
    negative: torch.Tensor,
    *,
    entities: RowAdam,
    relations: torch.Tensor,
    relation_adam: torch.optim.Adam,
    margin: float,
) -> torch.Tensor:
    """Update the vectors of one batch: positive [b, 3], negative [b, n, 3]; returns the loss before the update."""
    triples = torch.cat([positive[:, None], negative], dim=1)  # [b, 1 + n, 3]
    # Gradients of an entity that occurs several times in the batch must be summed before Adam sees them.
    rows, row_of = torch.unique(triples[..., [0, 2]], return_inverse=True)
    values = entities.read(rows).requires_grad_()
    # `embedding` and not indexing: its backward is deterministic on CUDA too.
    ends = functional.embedding(row_of, values)  # [b, 1 + n, 2, dim]
    translation = functional.embedding(positive[:, 1], relations)[:, None]
    distances = distance(ends[:, :, 0], translation, ends[:, :, 1])
    loss = margin_loss(distances[:, 0], distances[:, 1:], margin)
    value_gradients, relations.grad = torch.autograd.grad(loss, [values, relations])
    entities.step(value_gradients)
    relation_adam.step()
    return loss.detach()


def _finite_mean(loss_sum: torch.Tensor, count: int, settings: TransESettings) -> float:
    mean = loss_sum.item() / count
    if not math.isfinite(mean):
        got = f"a loss of {mean}"
        mend = f"lower the margin (now {settings.margin}) or the learning rate (now {settings.learning_rate})"
        raise UserError("TransE training", got=got, expected="a finite loss", mend=mend)
    return mean
