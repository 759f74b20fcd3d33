from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import classification_report, precision_recall_fscore_support
from seqeval.scheme import IOB2

from kebiolm.finetune.entity_f1 import Entity, entity_scores, find_entities
from kebiolm.finetune.score import Score

PLAIN = ("O", "B", "I")
TYPED = ("O", "B-Gene", "I-Gene", "B-Drug-like", "I-Drug-like")


def pairs_of_sequences(labels: Sequence[str]) -> st.SearchStrategy:
    """Gold and predicted labels of a few sentences; each pair of sequences is of one length."""
    word = st.tuples(st.sampled_from(labels), st.sampled_from(labels))
    return st.lists(st.lists(word, min_size=1, max_size=12), min_size=1, max_size=5).map(
        lambda sentences: tuple([[pair[side] for pair in words] for words in sentences] for side in (0, 1))
    )


def conlleval_counts(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> Score:
    """Chunks as the CoNLL-2000 script defines them, counted in one pass over the words of all sentences.

    A chunk begins at B, and at I after O or after another type; it ends before a word that is O or begins a chunk. A
    predicted chunk is correct if it begins and ends together with a gold one of its type.
    """
    gold_chunks = predicted_chunks = correct = 0
    both_open = False
    before = ["O", "O"]
    for now in [
        pair for sides in zip(gold, predicted, strict=True) for pair in [*zip(*sides, strict=True), ("O", "O")]
    ]:
        types = [label[2:] for label in now]
        begins = [
            label != "O" and (label[0] == "B" or last == "O" or last[2:] != label[2:])
            for label, last in zip(now, before, strict=True)
        ]
        ends = [last != "O" and (label == "O" or begin) for label, last, begin in zip(now, before, begins, strict=True)]
        correct += both_open and all(ends)
        both_open = both_open and not any(ends)
        if all(begins):
            both_open = types[0] == types[1]
        gold_chunks += begins[0]
        predicted_chunks += begins[1]
        before = list(now)
    return Score(correct=correct, predicted=predicted_chunks, gold=gold_chunks)


# seqeval averages over types too, where there may be none.
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@settings(max_examples=80, deadline=None)
@given(st.sampled_from((PLAIN, TYPED)).flatmap(pairs_of_sequences))
def test_both_readings_agree_with_seqeval_on_random_labels(pair) -> None:
    gold, predicted = pair
    scores = entity_scores(gold, predicted)
    for ours, options in ((scores.overall, {}), (scores.strict, {"mode": "strict", "scheme": IOB2})):
        report = classification_report(gold, predicted, output_dict=True, zero_division=0, **options)["micro avg"]
        assert ours.gold == report["support"]
        assert (ours.precision, ours.recall, ours.f1) == pytest.approx(
            (report["precision"], report["recall"], report["f1-score"])
        )


@settings(max_examples=40, deadline=None)
@given(pairs_of_sequences(TYPED))
def test_scores_of_each_type_agree_with_seqeval(pair) -> None:
    gold, predicted = pair
    by_type = entity_scores(gold, predicted).by_type
    expected = precision_recall_fscore_support(gold, predicted, zero_division=0)
    found = [(score.precision, score.recall, score.f1, score.gold) for score in by_type.values()]
    assert found == [pytest.approx(row) for row in zip(*expected, strict=True)]


@settings(max_examples=120, deadline=None)
@given(st.sampled_from((PLAIN, TYPED)).flatmap(pairs_of_sequences))
def test_the_papers_figure_agrees_with_the_definition_of_conlleval(pair) -> None:
    assert entity_scores(*pair).overall == conlleval_counts(*pair)


@pytest.mark.parametrize(
    ("labels", "usual", "strict"),
    [
        ("B I I", [(0, 3)], [(0, 3)]),  # one entity since seqeval 1; two in 0.0.12 (requirement D22)
        ("B B I O B", [(0, 1), (1, 3), (4, 5)], [(0, 1), (1, 3), (4, 5)]),
        ("O I I O B", [(1, 3), (4, 5)], [(4, 5)]),
        ("I", [(0, 1)], []),
        ("O O", [], []),
        ("B-x I-y I-y", [(0, 1), (1, 3)], [(0, 1)]),
        ("I-x B-x I-x", [(0, 1), (1, 3)], [(1, 3)]),
    ],
)
def test_the_two_readings_differ_only_where_an_i_continues_nothing(labels, usual, strict) -> None:
    assert [(entity.start, entity.end) for entity in find_entities(labels.split())] == usual
    assert [(entity.start, entity.end) for entity in find_entities(labels.split(), strict=True)] == strict


def test_entities_have_their_type_and_entities_of_another_type_are_wrong() -> None:
    assert find_entities(["B-a-b", "I-a-b"]) == [Entity(0, 2, "a-b")]
    scores = entity_scores([["B-a", "O"]], [["B-b", "O"]])
    assert scores.overall == Score(correct=0, predicted=1, gold=1)
    assert scores.flat()["a_recall"] == scores.flat()["f1"] == 0.0


def test_sequences_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="sentence 1: 2 gold labels, 1 predicted"):
        entity_scores([["O"], ["O", "B"]], [["O"], ["O"]])
    with pytest.raises(ValueError):
        entity_scores([["O"]], [])
