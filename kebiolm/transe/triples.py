"""Triples as integers, and a held-out part that no inverse row gives away."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

# More held-out triples than this only take training data away: the standard error of MRR is then below 0.004.
MAX_HELDOUT = 20_000


@dataclass(frozen=True, kw_only=True)
class IndexedTriples:
    """Distinct triples over numbered entities and relations.

    Attributes:
        triples: [n, 3] int64 rows (subject, relation, object), sorted by `triple_keys`.
        entities: CUI of each entity number, sorted; every one occurs in a triple.
        relations: name of each relation number, sorted; every one occurs in a triple.
    """

    triples: np.ndarray
    entities: list[str]
    relations: list[str]


def index_triples(table: pa.Table, *, among: Sequence[str] | None = None) -> IndexedTriples:
    """Number the entities and relations of a triple table.

    Args:
        table: columns subject, relation, object (strings), such as `KnowledgeBase.triples()`.
        among: keep only the triples whose subject and object are both in this list; None keeps all.
    """
    subjects, relations, objects = (table.column(name).combine_chunks() for name in ("subject", "relation", "object"))
    if among is not None:
        allowed = pa.array(among, pa.string())
        keep = pc.and_(pc.is_in(subjects, value_set=allowed), pc.is_in(objects, value_set=allowed))
        subjects, relations, objects = (column.filter(keep) for column in (subjects, relations, objects))
    entity_names = _sorted_unique(pa.chunked_array([subjects, objects]))
    relation_names = _sorted_unique(relations)
    columns = [(subjects, entity_names), (relations, relation_names), (objects, entity_names)]
    numbers = [pc.index_in(column, value_set=names).to_numpy(zero_copy_only=False) for column, names in columns]
    triples = np.stack(numbers, axis=1).astype(np.int64)
    keys = triple_keys(triples, len(entity_names), len(relation_names))
    _, first = np.unique(keys, return_index=True)
    return IndexedTriples(
        triples=triples[first], entities=entity_names.to_pylist(), relations=relation_names.to_pylist()
    )


def triple_keys(triples: np.ndarray, num_entities: int, num_relations: int) -> np.ndarray:
    """One int64 per triple, different for different triples: (subject, relation, object) read as mixed-radix digits.

    Works on NumPy arrays and on tensors alike.

    Args:
        triples: [..., 3] int64.

    Returns:
        [...] int64, in the order of (subject, relation, object).
    """
    # 4.4 million concepts and 1,000 relations of a whole UMLS reach 2e16, far below 2^63.
    assert num_entities**2 * num_relations < 2**63, "too many entities and relations for 64-bit keys"
    return (triples[..., 0] * num_relations + triples[..., 1]) * num_entities + triples[..., 2]


def split_heldout(
    triples: np.ndarray, *, num_entities: int, num_relations: int, fraction: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Split triples into a training part and a held-out part that has to be inferred, not looked up.

    UMLS states nearly every relation twice, once in each direction (`may_treat` / `may_be_treated_by`), and often
    twice in one direction under a wider name. A held-out triple whose twin is trained on would be trivially ranked
    first. So the unit of the split is the unordered pair of entities: all triples between two entities, in both
    directions and of all relations, are held out together.

    Every held-out entity and relation also occurs in the training part: in a random order of the pairs, the first
    pair of each entity and of each relation is kept for training; held-out pairs come from the rest. Where too few
    pairs are left (of a star none), fewer triples are held out than asked for.

    Args:
        triples: [n, 3] int64, distinct.
        fraction: share of triples to hold out, in [0, 1); never more than MAX_HELDOUT triples.
        seed: of the random order; the same seed gives the same split.

    Returns:
        training triples [t, 3] and held-out triples [h, 3], both in their order in `triples`.
    """
    limit = min(int(len(triples) * fraction), MAX_HELDOUT)
    low, high = np.minimum(triples[:, 0], triples[:, 2]), np.maximum(triples[:, 0], triples[:, 2])
    pairs, pair_of_triple, pair_sizes = np.unique(low * num_entities + high, return_inverse=True, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(pairs))
    place = np.empty_like(order)  # place of each pair in the random order
    place[order] = np.arange(len(order))

    place_of_triple = place[pair_of_triple]
    kept = np.zeros(len(pairs), dtype=bool)  # by place
    for numbers, size in ((triples[:, [0, 2]], num_entities), (triples[:, [1]], num_relations)):
        first_place = np.full(size, len(pairs), dtype=np.int64)
        np.minimum.at(first_place, numbers, place_of_triple[:, None])
        kept[first_place[first_place < len(pairs)]] = True

    free = np.flatnonzero(~kept)
    chosen = free[np.cumsum(pair_sizes[order[free]]) <= limit]
    heldout_place = np.zeros(len(pairs), dtype=bool)
    heldout_place[chosen] = True
    is_heldout = heldout_place[place_of_triple]
    return triples[~is_heldout], triples[is_heldout]


def _sorted_unique(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    names = pc.unique(column)
    return names.take(pc.sort_indices(names))
