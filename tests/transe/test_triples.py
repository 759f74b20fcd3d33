from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch

from kebiolm.errors import UserError
from kebiolm.transe.negatives import TripleSet, corrupt
from kebiolm.transe.triples import index_triples, split_heldout, triple_keys

ENTITIES, RELATIONS = 60, 5


def random_triples(count: int = 400, seed: int = 0) -> np.ndarray:
    """Distinct triples without self-loops; each second one also in the other direction, as relation + 1."""
    rng = np.random.default_rng(seed)
    triples = np.stack([rng.integers(ENTITIES, size=count), rng.integers(RELATIONS - 1, size=count),
                        rng.integers(ENTITIES, size=count)], axis=1)  # fmt: skip
    triples = triples[triples[:, 0] != triples[:, 2]]
    inverse = triples[::2][:, [2, 1, 0]] + [0, 1, 0]
    return np.unique(np.concatenate([triples, inverse]), axis=0)


def table(*rows: tuple[str, str, str]) -> pa.Table:
    return pa.table({name: [row[i] for row in rows] for i, name in enumerate(("subject", "relation", "object"))})


def test_numbers_follow_sorted_names_and_duplicates_are_dropped() -> None:
    indexed = index_triples(table(("C3", "treats", "C1"), ("C2", "causes", "C3"), ("C3", "treats", "C1")))
    assert indexed.entities == ["C1", "C2", "C3"]
    assert indexed.relations == ["causes", "treats"]
    assert indexed.triples.tolist() == [[1, 0, 2], [2, 1, 0]]


def test_restriction_needs_both_ends() -> None:
    rows = (("C1", "r", "C2"), ("C2", "r", "C3"), ("C3", "q", "C1"))
    indexed = index_triples(table(*rows), among=["C1", "C2", "C9"])
    assert (indexed.entities, indexed.relations) == (["C1", "C2"], ["r"])
    assert indexed.triples.tolist() == [[0, 0, 1]]
    assert len(index_triples(table(*rows), among=["C9"]).triples) == 0


def test_keys_are_distinct_and_ordered() -> None:
    triples = random_triples()
    keys = triple_keys(triples, ENTITIES, RELATIONS)
    assert len(set(keys.tolist())) == len(triples)
    assert (np.diff(keys) > 0).all()  # np.unique sorted the triples


def test_whole_umls_fits_into_keys() -> None:
    assert triple_keys(np.array([[4_399_999, 999, 4_399_999]]), 4_400_000, 1000) == 4_400_000**2 * 1000 - 1


@pytest.mark.parametrize("seed", range(5))
def test_split_leaks_nothing(seed: int) -> None:
    triples = random_triples()
    sizes = {"num_entities": ENTITIES, "num_relations": RELATIONS}
    used, heldout = split_heldout(triples, **sizes, fraction=0.1, seed=seed)
    assert 0.08 * len(triples) <= len(heldout) <= 0.1 * len(triples)
    both = np.concatenate([used, heldout])
    assert sorted(map(tuple, both)) == sorted(map(tuple, triples))
    pairs_used = {frozenset((s, o)) for s, _, o in used.tolist()}
    assert not pairs_used & {frozenset((s, o)) for s, _, o in heldout.tolist()}
    assert set(heldout[:, [0, 2]].ravel()) <= set(used[:, [0, 2]].ravel())
    assert set(heldout[:, 1]) <= set(used[:, 1])


def test_split_is_repeatable_and_follows_the_seed() -> None:
    sizes = {"num_entities": ENTITIES, "num_relations": RELATIONS}
    first, again, other = (split_heldout(random_triples(), **sizes, fraction=0.1, seed=seed)[1] for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_star_has_nothing_to_hold_out() -> None:
    star = np.array([[leaf, 0, 0] for leaf in range(1, 30)])
    used, heldout = split_heldout(star, num_entities=30, num_relations=1, fraction=0.5, seed=0)
    assert (len(used), len(heldout)) == (29, 0)


def test_membership_agrees_with_a_python_set() -> None:
    triples = random_triples()
    known = TripleSet(torch.from_numpy(triples), num_entities=ENTITIES, num_relations=RELATIONS)
    every = torch.cartesian_prod(torch.arange(ENTITIES), torch.arange(RELATIONS), torch.arange(ENTITIES))
    assert len(known) == len(triples)
    found = known.contains(every.view(-1, 2, 3)).flatten()
    assert {tuple(triple) for triple in every[found].tolist()} == {tuple(triple) for triple in triples.tolist()}


def test_negatives_are_false_and_differ_in_one_end() -> None:
    # Every subject is related to all but three objects: most first draws are true triples.
    grid = np.stack(np.meshgrid(np.arange(20), [0], np.arange(20), indexing="ij"), axis=-1).reshape(-1, 3)
    dense = torch.from_numpy(grid[(grid[:, 0] + grid[:, 2]) % 20 > 2])
    known = TripleSet(dense, num_entities=20, num_relations=1)
    negatives = corrupt(dense, known, count=3, generator=torch.Generator().manual_seed(0))
    assert negatives.shape == (len(dense), 3, 3)
    assert not known.contains(negatives).any()
    changed = negatives != dense[:, None]
    assert (changed.sum(-1) == 1).all() and not changed[..., 1].any()
    assert 0.4 < changed[..., 0].float().mean() < 0.6


def test_a_complete_graph_is_refused() -> None:
    complete = torch.cartesian_prod(torch.arange(3), torch.arange(1), torch.arange(3))
    known = TripleSet(complete, num_entities=3, num_relations=1)
    with pytest.raises(UserError, match="without a false neighbour"):
        corrupt(complete, known, count=1, generator=torch.Generator().manual_seed(0))
