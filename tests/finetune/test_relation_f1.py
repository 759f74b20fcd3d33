from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support

from kebiolm.finetune.relation_f1 import relation_scores

LABELS = ("false", "CPR:3", "CPR:4", "CPR:9")


@settings(max_examples=50, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40),
    negative=st.sampled_from(["false", "CPR:4", None]),
)
def test_all_figures_agree_with_scikit_learn(rows, negative) -> None:
    gold, predicted = map(list, zip(*rows, strict=True))
    scores = relation_scores(gold, predicted, LABELS, negative_label=negative)
    positive = [number for number, label in enumerate(LABELS) if label != negative]
    options = {"labels": positive, "zero_division": 0}
    micro = precision_recall_fscore_support(gold, predicted, average="micro", **options)[:3]
    assert (scores.micro.precision, scores.micro.recall, scores.micro.f1) == pytest.approx(micro)
    assert scores.macro_f1 == pytest.approx(f1_score(gold, predicted, average="macro", **options))
    everything = {"labels": range(4), "zero_division": 0}
    expected = f1_score(gold, predicted, average="macro", **everything)
    assert scores.macro_f1_with_negative == pytest.approx(expected)
    assert scores.accuracy == pytest.approx(accuracy_score(gold, predicted))
    each = zip(*precision_recall_fscore_support(gold, predicted, **everything), strict=True)
    for label, row in zip(LABELS, each, strict=True):
        score = scores.by_label[label]
        assert (score.precision, score.recall, score.f1, score.gold) == pytest.approx(row)


def test_rows_that_are_negative_and_predicted_so_count_for_accuracy_only() -> None:
    few = relation_scores([1, 0], [1, 1], ("0", "1"), negative_label="0")
    many = relation_scores([1, 0, 0, 0], [1, 1, 0, 0], ("0", "1"), negative_label="0")
    assert few.micro == many.micro
    assert few.micro.f1 == pytest.approx(2 / 3)
    assert (few.accuracy, many.accuracy) == (0.5, 0.75)


def test_metric_names_are_fit_for_mlflow() -> None:
    flat = relation_scores(np.array([1, 2]), np.array([1, 0]), LABELS, negative_label="false").flat()
    assert flat["CPR-3_f1"] == 1.0
    assert {"f1", "precision", "recall", "macro_f1", "macro_f1_with_negative", "accuracy"} < set(flat)
    assert not [name for name in flat if not name.replace("-", "").replace("_", "").isalnum()]


@pytest.mark.parametrize(("gold", "predicted"), [([0], []), ([], []), ([4], [0]), ([0], [-1])])
def test_ids_that_do_not_fit_are_refused(gold, predicted) -> None:
    with pytest.raises(ValueError, match="label"):
        relation_scores(gold, predicted, LABELS, negative_label="false")
