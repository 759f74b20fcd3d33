"""Filtered negatives: corrupted triples that are not triples of the knowledge base."""

from __future__ import annotations

import torch

from kebiolm.errors import UserError
from kebiolm.transe.triples import triple_keys

# A redraw fails as often as the triple's neighbourhood is complete; after this many only a complete graph is left.
_MAX_REDRAWS = 1000


class TripleSet:
    """A set of triples with vectorised membership: sorted 64-bit keys and binary search.

    Exact, 8 bytes per triple, on any device.
    """

    def __init__(self, triples: torch.Tensor, *, num_entities: int, num_relations: int) -> None:
        """Take the distinct rows of `triples` [n, 3] int64."""
        self.num_entities, self.num_relations = num_entities, num_relations
        self._keys = triple_keys(triples, num_entities, num_relations).unique(sorted=True)

    def __len__(self) -> int:
        return len(self._keys)

    def contains(self, triples: torch.Tensor) -> torch.Tensor:
        """Which of `triples` [..., 3] int64 are in the set: [...] bool."""
        keys = triple_keys(triples, self.num_entities, self.num_relations)
        place = torch.searchsorted(self._keys, keys).clamp_(max=len(self._keys) - 1)
        return self._keys[place] == keys


def corrupt(positives: torch.Tensor, true: TripleSet, *, count: int, generator: torch.Generator) -> torch.Tensor:
    """Draw `count` negatives per positive: its subject or its object (even odds) replaced by a uniform entity.

    A draw that is a true triple, the positive itself included, is drawn again, side and entity, until none is left.

    Args:
        positives: [b, 3] int64.
        true: the triples that a negative must not be. Training passes only training triples: had the held-out ones
            been spared as negatives, the training would have been told about them.
        count: negatives per positive, at least 1.
        generator: source of randomness, on the device of `positives`.

    Returns:
        [b, count, 3] int64, none of them in `true`.

    Raises:
        UserError: the triples connect (nearly) everything with everything, so that no false triple was found.
    """
    originals = positives.repeat_interleave(count, dim=0)
    negatives = _replace_one_side(originals, true.num_entities, generator)
    to_redraw = true.contains(negatives).nonzero().squeeze(1)
    for _ in range(_MAX_REDRAWS):
        if len(to_redraw) == 0:
            return negatives.view(len(positives), count, 3)
        redrawn = _replace_one_side(originals[to_redraw], true.num_entities, generator)
        negatives[to_redraw] = redrawn
        to_redraw = to_redraw[true.contains(redrawn)]
    raise UserError(
        "the knowledge base's triples",
        got=f"a triple without a false neighbour after {_MAX_REDRAWS} draws among {true.num_entities} entities",
        expected="a relation that leaves some pairs of entities unrelated",
        mend="give a larger knowledge base",
    )


def _replace_one_side(triples: torch.Tensor, num_entities: int, generator: torch.Generator) -> torch.Tensor:
    """Copy `triples` [n, 3] with the subject or the object of each replaced by a random entity."""
    n, device = len(triples), triples.device
    side = torch.randint(2, (n,), generator=generator, device=device) * 2  # column 0 or 2
    entity = torch.randint(num_entities, (n,), generator=generator, device=device)
    return triples.scatter(1, side[:, None], entity[:, None])
