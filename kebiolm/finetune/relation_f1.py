"""Micro-F1 over the positive classes, the paper's figure (section 4.2.2); macro averages and each class beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kebiolm.finetune.score import Score


@dataclass(frozen=True, kw_only=True, slots=True)
class RelationScores:
    """Scores over all rows of a split."""

    micro: Score
    """All positive classes together; a row whose gold and predicted label are both negative counts nowhere."""
    macro_f1: float
    """Mean F1 of the positive classes; one that neither occurs nor is predicted counts as 0."""
    macro_f1_with_negative: float
    """Mean F1 of all classes."""
    accuracy: float
    by_label: dict[str, Score]
    """All classes, the negative one included, in the order of their ids."""

    def flat(self) -> dict[str, float]:
        """Metrics by name: f1, precision, recall, macro_f1, macro_f1_with_negative, accuracy, CPR-3_f1, ..."""
        values = self.micro.flat()
        values |= {"macro_f1": self.macro_f1, "macro_f1_with_negative": self.macro_f1_with_negative}
        values["accuracy"] = self.accuracy
        for label, score in self.by_label.items():
            values |= score.flat(f"{label}_")
        return values


def relation_scores(
    gold: Sequence[int], predicted: Sequence[int], labels: Sequence[str], *, negative_label: str | None
) -> RelationScores:
    """Compare predicted labels with gold ones.

    Args:
        gold: [N] ids of the rows' labels, at least one row.
        predicted: [N] ids.
        labels: C names by id.
        negative_label: the one of them that says "no relation"; None where all are positive.

    Raises:
        ValueError: numbers of rows differ, there is no row, or an id is outside 0 to C - 1.
    """
    if len(gold) != len(predicted) or not len(gold):
        raise ValueError(f"{len(gold)} gold labels and {len(predicted)} predicted ones")
    pairs = np.stack([np.asarray(gold), np.asarray(predicted)])
    if pairs.min() < 0 or pairs.max() >= len(labels):
        raise ValueError(f"label ids from {pairs.min()} to {pairs.max()}, but {len(labels)} labels")
    # [C, C]: rows with gold label i and predicted label j.
    confusion = np.zeros((len(labels), len(labels)), dtype=np.int64)
    np.add.at(confusion, tuple(pairs), 1)
    by_label = {
        label: Score(
            correct=int(confusion[number, number]),
            predicted=int(confusion[:, number].sum()),
            gold=int(confusion[number].sum()),
        )
        for number, label in enumerate(labels)
    }
    positive = [score for label, score in by_label.items() if label != negative_label]
    return RelationScores(
        micro=sum(positive, start=Score(correct=0, predicted=0, gold=0)),
        macro_f1=float(np.mean([score.f1 for score in positive])),
        macro_f1_with_negative=float(np.mean([score.f1 for score in by_label.values()])),
        accuracy=float(np.trace(confusion) / confusion.sum()),
        by_label=by_label,
    )
