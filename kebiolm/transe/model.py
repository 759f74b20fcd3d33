"""TransE (Bordes et al., 2013): a relation is a translation between entity vectors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional


@dataclass(kw_only=True)
class TransE:
    """Vectors of a TransE model; the distance of (s, r, o) is the L2 norm of entity[s] + relation[r] - entity[o].

    Attributes:
        entities: [num_entities, dim] float32, every row of length 1 (as Bordes et al. constrain them: without it the
            margin could be met by growing all vectors).
        relations: [num_relations, dim] float32, free; of length 1 at the start only.
    """

    entities: torch.Tensor
    relations: torch.Tensor

    @classmethod
    def random(
        cls, num_entities: int, num_relations: int, dim: int, *, generator: torch.Generator, device: torch.device
    ) -> TransE:
        """Start vectors as by Bordes et al.: uniform in a cube around zero, then scaled to length 1."""
        entities, relations = (
            torch.rand(rows, dim, generator=generator, device=device).mul_(2).sub_(1)
            for rows in (num_entities, num_relations)
        )
        return cls(entities=unit_length(entities), relations=unit_length(relations))

    @property
    def num_entities(self) -> int:
        """Rows of `entities`."""
        return self.entities.shape[0]

    @property
    def num_relations(self) -> int:
        """Rows of `relations`."""
        return self.relations.shape[0]


def distance(subjects: torch.Tensor, relations: torch.Tensor, objects: torch.Tensor) -> torch.Tensor:
    """L2 norm of subject + relation - object over the last dimension: [..., dim] each, gives [...]."""
    return torch.linalg.vector_norm(subjects + relations - objects, dim=-1)


def margin_loss(positive: torch.Tensor, negative: torch.Tensor, margin: float) -> torch.Tensor:
    """Mean over all pairs of max(0, margin + positive distance - negative distance).

    Args:
        positive: [b] distances of true triples.
        negative: [b, n] distances of the negatives of each.
        margin: by how much a negative should be farther.
    """
    return functional.relu(margin + positive[:, None] - negative).mean()


def unit_length(vectors: torch.Tensor) -> torch.Tensor:
    """Scale the rows of [n, dim] to length 1."""
    return functional.normalize(vectors, dim=-1)
