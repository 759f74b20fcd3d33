"""Texts out of word pieces, with annotated and found mentions compared."""

from __future__ import annotations

from pathlib import Path

import torch

from kebiolm.data.tokenizer import load_tokenizer
from kebiolm.training.evaluation import Predictions
from kebiolm.training.report.linked_examples import MAX_PIECES, Example, make_examples


def examples_of(tokenizer_folder: Path, words: str, gold: dict, found: dict) -> list[Example]:
    """One sequence of one document; gold and found: (start, end) -> row, positions counted from [CLS]."""
    tokenizer = load_tokenizer(tokenizer_folder)
    ids = torch.tensor([tokenizer(words)["input_ids"]])
    batch = {
        "input_ids": ids,
        "document_index": torch.ones_like(ids),
        "mention_spans": torch.tensor([[0, *span] for span in gold]).reshape(-1, 3),
        "entity_labels": torch.tensor(list(gold.values()), dtype=torch.int64),
        "sample_ids": torch.tensor([7]),
    }
    predictions = Predictions(
        batch=batch,
        spans=torch.tensor([[0, *span] for span in found]).reshape(-1, 3),
        entity_rows=torch.tensor([[row, row + 1] for row in found.values()]).reshape(-1, 2),
        entity_weights=torch.tensor([[0.75, 0.25]] * len(found)).reshape(-1, 2),
    )
    return make_examples(predictions, tokenizer)


def test_mentions_lie_at_their_words_and_are_compared(tiny_tokenizer_folder: Path) -> None:
    # [CLS] asp ##irin treats head ##ache , pain . [SEP]
    words = "aspirin treats headache, pain."
    gold = {(1, 3): 11, (4, 6): 12, (7, 8): 13}
    found = {(1, 3): 11, (3, 4): 20, (4, 6): 30}
    (example,) = examples_of(tiny_tokenizer_folder, words, gold, found)
    assert example.text == words
    assert "sequence 7" in example.title
    shown = {
        side: [(words[m.start : m.end], m.verdict) for m in getattr(example, side)] for side in ("annotated", "found")
    }
    assert shown["annotated"] == [("aspirin", "right"), ("headache", "concept"), ("pain", "span")]
    assert shown["found"] == [("aspirin", "right"), ("treats", "span"), ("headache", "concept")]
    assert example.found[0].concepts == ((11, 0.75), (12, 0.25))


def test_long_document_is_cut_between_words(tiny_tokenizer_folder: Path) -> None:
    (example,) = examples_of(tiny_tokenizer_folder, "x " + "aspirin " * MAX_PIECES, {(2, 4): 11}, {})
    assert example.text.endswith("aspirin")
    assert len(example.text.split()) <= MAX_PIECES // 2 + 2


def test_text_without_mentions_is_left_out(tiny_tokenizer_folder: Path) -> None:
    assert examples_of(tiny_tokenizer_folder, "of the patients", {}, {}) == []
