"""What the newest evaluation came to, as files of the run's folder; the run's page is made of them.

OUTPUT/evaluation/
    bio_confusion.csv       held-out positions by gold label and predicted label
    linking_by_type.csv     linking accuracy of each semantic type
    linking_by_entity.csv   of each entity that occurs
    latest.json             all of it, with the example texts
"""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kebiolm.data.entity_vocab import EntityVocab
from kebiolm.files import write_json, write_text
from kebiolm.training.evaluation import Evaluation
from kebiolm.training.report.linked_examples import Example, ShownMention, concept_title, make_examples

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

FOLDER = "evaluation"
CONFUSION, BY_TYPE, BY_ENTITY, LATEST = (
    f"{FOLDER}/bio_confusion.csv",
    f"{FOLDER}/linking_by_type.csv",
    f"{FOLDER}/linking_by_entity.csv",
    f"{FOLDER}/latest.json",
)
LABELS = ("O", "B", "I")
NO_TYPE = "no semantic type"


def write_evaluation(
    output: Path, step: int, evaluation: Evaluation, vocab: EntityVocab, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Replace the files of the last evaluation.

    Args:
        output: the run's folder.
        step: optimizer steps done.
        evaluation: what it came to.
        vocab: names and semantic types of the entity table's rows.
        tokenizer: the shards'.
    """
    confusion = evaluation.confusion.tolist()
    by_type, by_entity = count_by_type(evaluation, vocab), _count_by_entity(evaluation, vocab)
    examples = [_describe(example, vocab) for example in make_examples(evaluation.predictions, tokenizer)]
    rows = [[label, *counts] for label, counts in zip(LABELS, confusion, strict=True)]
    _write_csv(output / CONFUSION, ["gold label", *(f"predicted {label}" for label in LABELS)], rows)
    counts = ["mentions", "first", "in_first_ten"]
    _write_csv(output / BY_TYPE, ["semantic_type", *counts], [[name, *values] for name, values in by_type.items()])
    _write_csv(output / BY_ENTITY, ["cui", "name", *counts], by_entity)
    latest: dict[str, Any] = {"step": step, "metrics": evaluation.metrics, "confusion": confusion}
    # As a list: a mapping would be sorted by its keys.
    write_json(output / LATEST, latest | {"by_type": list(by_type.items()), "examples": examples})


def count_by_type(evaluation: Evaluation, vocab: EntityVocab) -> dict[str, list[int]]:
    """[mentions, ranked first, among the first ten] by semantic type, the most frequent first.

    A mention of a concept with two types counts for both.
    """
    totals: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    for row, counts in _occurring(evaluation):
        for name in vocab.semantic_types(row) or (NO_TYPE,):
            totals[name] = [total + count for total, count in zip(totals[name], counts, strict=True)]
    return dict(sorted(totals.items(), key=lambda item: (-item[1][0], item[0])))


def _count_by_entity(evaluation: Evaluation, vocab: EntityVocab) -> list[list[Any]]:
    rows = [[vocab.cui(row), vocab.name(row), *counts] for row, counts in _occurring(evaluation)]
    return sorted(rows, key=lambda row: (-row[2], row[0]))


def _occurring(evaluation: Evaluation) -> list[tuple[int, list[int]]]:
    """(row, counts) of the entities that occur in the held-out sequences."""
    rows = evaluation.entity_hits[:, 0].nonzero().flatten()
    return list(zip(rows.tolist(), evaluation.entity_hits[rows].tolist(), strict=True))


def _describe(example: Example, vocab: EntityVocab) -> dict[str, Any]:
    """An example as JSON, with names in place of rows."""

    def with_names(mentions: tuple[ShownMention, ...]) -> list[dict[str, Any]]:
        return [
            asdict(mention)
            | {
                "concepts": [
                    {
                        "cui": vocab.cui(row) if row >= 0 else "",
                        "name": concept_title(vocab, row),
                        "types": list(vocab.semantic_types(row)) if row >= 0 else [],
                        "weight": round(weight, 4),
                    }
                    for row, weight in mention.concepts
                ]
            }
            for mention in mentions
        ]

    sides = {"annotated": with_names(example.annotated), "found": with_names(example.found)}
    return {"title": example.title, "text": example.text} | sides


def _write_csv(path: Path, header: list[str], rows: list[list[Any]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    write_text(path, text.getvalue())
