"""Link prediction on held-out triples: filtered mean reciprocal rank and Hits@k."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from kebiolm.console import progress
from kebiolm.transe.model import TransE

# Scores of one chunk of queries against all entities, in bytes: bounds the memory of the evaluation.
_CHUNK_BYTES = 1 << 28


@dataclass(frozen=True, kw_only=True)
class LinkPrediction:
    """How well held-out triples are found, over both questions (s, r, ?) and (?, r, o) of every triple.

    Attributes:
        mrr: mean of 1 / rank, in (0, 1].
        hits_at_1: share of ranks <= 1.
        hits_at_10: share of ranks <= 10.
        num_questions: 2 x the number of held-out triples.
    """

    mrr: float
    hits_at_1: float
    hits_at_10: float
    num_questions: int


def evaluate(model: TransE, heldout: np.ndarray, known: np.ndarray) -> LinkPrediction:
    """Rank the answer of each held-out question among all entities of the model.

    Filtered as by Bordes et al. (2013): entities that answer the question rightly by another known triple are left
    out. Ties count half ("realistic" rank: the mean of the best and the worst place that the answer can take), so a
    model with equal scores for all entities gets the MRR of chance.

    Args:
        model: a trained model.
        heldout: [h, 3] int64, h >= 1.
        known: [n, 3] int64: every true triple, the held-out ones included.
    """
    ranks = heldout_ranks(model, heldout, known)
    return LinkPrediction(
        mrr=float((1.0 / ranks).mean()),
        hits_at_1=float((ranks <= 1).mean()),
        hits_at_10=float((ranks <= 10).mean()),
        num_questions=len(ranks),
    )


def heldout_ranks(model: TransE, heldout: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Realistic filtered ranks: [2h] float64, first those of the objects, then those of the subjects."""
    chunk = max(1, _CHUNK_BYTES // (4 * model.num_entities))
    ranks = []
    with progress("Ranking held-out triples", 2 * len(heldout), "questions") as advance, torch.no_grad():
        for answer_column, given_column in ((2, 0), (0, 2)):
            answers = _Answers(known, given_column, answer_column, model.num_relations)
            for start in range(0, len(heldout), chunk):
                questions = heldout[start : start + chunk]
                ranks.append(_ranks_of_chunk(model, questions, answers, given_column, answer_column))
                advance(len(questions))
    return np.concatenate(ranks)


def _ranks_of_chunk(
    model: TransE, questions: np.ndarray, answers: _Answers, given_column: int, answer_column: int
) -> np.ndarray:
    device = model.entities.device
    given, relation, answer = (
        torch.as_tensor(questions[:, column], device=device) for column in (given_column, 1, answer_column)
    )
    sign = 1.0 if given_column == 0 else -1.0  # object = subject + relation; subject = object - relation
    points = model.entities[given] + sign * model.relations[relation]
    # |p - e|^2 = |p|^2 - 2 p.e + |e|^2 as one matrix product; |p|^2 does not change the order and is left out.
    distances = torch.addmm(model.entities.square().sum(1), points, model.entities.T, alpha=-2.0)
    own = distances.gather(1, answer[:, None])
    rows, columns = answers.other_than_asked(questions)
    distances[torch.as_tensor(rows, device=device), torch.as_tensor(columns, device=device)] = torch.inf
    closer = (distances < own).sum(1)
    equal = (distances == own).sum(1) - 1  # less the answer itself, which is never filtered
    return (1.0 + closer + 0.5 * equal).cpu().numpy()


class _Answers:
    """All known answers of each question, as ranges of one array sorted by question."""

    def __init__(self, known: np.ndarray, given_column: int, answer_column: int, num_relations: int) -> None:
        self._given_column, self._answer_column, self._num_relations = given_column, answer_column, num_relations
        keys = self._question_keys(known)
        order = np.argsort(keys, kind="stable")
        self._keys, self._answers = keys[order], known[order, answer_column]

    def other_than_asked(self, questions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Indices (row of `questions`, entity) of all known answers except the one asked for in that row."""
        keys = self._question_keys(questions)
        begin, end = np.searchsorted(self._keys, keys, "left"), np.searchsorted(self._keys, keys, "right")
        counts = end - begin
        rows = np.repeat(np.arange(len(questions)), counts)
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        entities = self._answers[begin[rows] + within]
        other = entities != questions[rows, self._answer_column]
        return rows[other], entities[other]

    def _question_keys(self, triples: np.ndarray) -> np.ndarray:
        return triples[:, self._given_column] * self._num_relations + triples[:, 1]
