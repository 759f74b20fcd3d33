from __future__ import annotations

import numpy as np
import pytest
import torch

from kebiolm.errors import UserError
from kebiolm.transe import evaluate as evaluate_module
from kebiolm.transe.evaluate import evaluate, heldout_ranks
from kebiolm.transe.model import TransE, distance, margin_loss
from kebiolm.transe.train import TransESettings, train
from kebiolm.transe.triples import split_heldout

LAYERS, GROUPS, MEMBERS = 3, 8, 4
SIZES = {"num_entities": LAYERS * GROUPS * MEMBERS, "num_relations": 3}


def planted_triples() -> np.ndarray:
    """Three layers of groups; each relation joins every member of a group to those of the same group in another layer.

    Relation 0 leads from layer 0 to layer 1, relation 1 from 1 to 2, relation 2 from 0 to 2: translations can do this.
    """
    number = np.arange(LAYERS * GROUPS * MEMBERS).reshape(LAYERS, GROUPS, MEMBERS)
    return np.array(
        [
            (subject, relation, object_)
            for relation, (start, end) in enumerate([(0, 1), (1, 2), (0, 2)])
            for group in range(GROUPS)
            for subject in number[start, group]
            for object_ in number[end, group]
        ]
    )


def random_model(seed: int = 0, num_entities: int = 15) -> TransE:
    generator = torch.Generator().manual_seed(seed)
    return TransE.random(num_entities, 3, 4, generator=generator, device=torch.device("cpu"))


def brute_force_ranks(model: TransE, heldout: np.ndarray, known: np.ndarray) -> list[float]:
    """Ranks by the definition, one candidate at a time, in double precision."""
    true, ranks = {tuple(triple) for triple in known.tolist()}, []
    entities, relations = model.entities.double().numpy(), model.relations.double().numpy()

    def length(s: int, r: int, o: int) -> float:
        return float(np.linalg.norm(entities[s] + relations[r] - entities[o]))

    for column in (2, 0):
        for triple in heldout.tolist():
            own, closer, equal = length(*triple), 0, 0
            for candidate in range(len(entities)):
                other = list(triple)
                other[column] = candidate
                if tuple(other) in true:
                    continue
                closer += length(*other) < own - 1e-9
                equal += abs(length(*other) - own) <= 1e-9
            ranks.append(1 + closer + equal / 2)
    return ranks


def test_ranks_follow_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    known = np.unique(rng.integers([15, 3, 15], size=(150, 3)), axis=0)
    heldout = rng.permutation(known)[:40]
    model = random_model()
    expected = brute_force_ranks(model, heldout, known)
    assert heldout_ranks(model, heldout, known).tolist() == expected
    monkeypatch.setattr(evaluate_module, "_CHUNK_BYTES", 4 * 15 * 7)  # 7 questions at a time
    assert heldout_ranks(model, heldout, known).tolist() == expected


def test_ties_count_half_so_that_a_blind_model_scores_as_chance() -> None:
    model = TransE(entities=torch.ones(9, 2), relations=torch.zeros(1, 2))
    heldout = np.array([[0, 0, 1]])
    assert heldout_ranks(model, heldout, heldout).tolist() == [5.0, 5.0]
    # Two other answers are known: seven candidates are left.
    known = np.array([[0, 0, 1], [0, 0, 2], [0, 0, 3]])
    assert heldout_ranks(model, heldout, known).tolist() == [4.0, 5.0]


def test_metrics_of_known_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate_module, "heldout_ranks", lambda *_: np.array([1.0, 2.0, 4.0, 20.0]))
    found = evaluate(random_model(), np.zeros((2, 3)), np.zeros((2, 3)))
    assert found.mrr == pytest.approx((1 + 0.5 + 0.25 + 0.05) / 4)
    assert (found.hits_at_1, found.hits_at_10, found.num_questions) == (0.25, 0.75, 4)


def test_distance_and_loss_of_small_numbers() -> None:
    s, r, o = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0]), torch.tensor([0.0, 0.0])
    assert distance(s, r, o) == 5.0
    # Pairs (1, 1.5) and (1, 3): max(0, 1 + 1 - 1.5) and max(0, 1 + 1 - 3).
    assert margin_loss(torch.tensor([1.0]), torch.tensor([[1.5, 3.0]]), 1.0) == 0.25


def test_learns_a_planted_graph() -> None:
    triples = planted_triples()
    used, heldout = split_heldout(triples, **SIZES, fraction=0.1, seed=0)
    settings = TransESettings(dim=16, epochs=30, batch_size=64, learning_rate=1e-2)
    result = train(used, **SIZES, settings=settings)
    untrained = train(used, **SIZES, settings=TransESettings(dim=16, epochs=1, learning_rate=1e-9))
    assert result.epoch_losses[-1] < 0.1 * result.epoch_losses[0]
    assert evaluate(untrained.model, heldout, triples).mrr < 0.15
    assert evaluate(result.model, heldout, triples).mrr > 0.9
    torch.testing.assert_close(result.model.entities.norm(dim=1), torch.ones(SIZES["num_entities"]))
    assert result.triples_per_second > 0


def test_same_seed_same_vectors() -> None:
    def vectors(seed: int) -> TransE:
        settings = TransESettings(dim=8, epochs=3, batch_size=100, negatives=2, seed=seed)
        return train(planted_triples(), **SIZES, settings=settings).model

    first, again, other = vectors(1), vectors(1), vectors(2)
    assert torch.equal(first.entities, again.entities) and torch.equal(first.relations, again.relations)
    assert not torch.equal(first.entities, other.entities)


def test_all_bad_settings_are_named_at_once() -> None:
    with pytest.raises(UserError, match=r"dim = 0, negatives = 0, learning_rate = nan, margin = -1"):
        TransESettings(dim=0, negatives=0, learning_rate=float("nan"), margin=-1.0)


def test_a_loss_that_is_not_finite_is_a_user_error() -> None:
    settings = TransESettings(dim=8, epochs=3, batch_size=100, margin=3e38)
    with pytest.raises(UserError, match="lower the margin"):
        train(planted_triples(), **SIZES, settings=settings)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_learns_and_repeats() -> None:
    triples = planted_triples()
    settings = TransESettings(dim=16, epochs=30, batch_size=64, learning_rate=1e-2)
    first, again = (train(triples, **SIZES, settings=settings, device="cuda") for _ in range(2))
    assert torch.equal(first.model.entities, again.model.entities)
    assert evaluate(first.model, triples[::7], triples).mrr > 0.9
