"""What lies behind the held-out figures: confusion of labels, hits by entity; exact over processes."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from kebiolm.data.entity_vocab import NIL_ROW
from kebiolm.data.shard_format import PackedShards
from kebiolm.tracking.metric_log import RECORDS, read_records
from kebiolm.training.metrics import bio_confusion, entity_hits
from kebiolm.training.report.evaluation_files import BY_ENTITY, BY_TYPE, CONFUSION, LATEST


def one_hot(labels: list[list[int]]) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(labels), 3).float()


def test_confusion_counts_labelled_positions_only() -> None:
    output = SimpleNamespace(bio_logits=one_hot([[0, 1, 2, 2], [0, 0, 1, 1]]))
    batch = {"bio_labels": torch.tensor([[0, 1, 1, 2], [0, 2, 0, -100]])}
    assert bio_confusion(output, batch).tolist() == [[2, 1, 0], [0, 1, 1], [1, 0, 1]]


def test_hits_are_counted_at_the_gold_entity() -> None:
    ranked = torch.tensor([[5, *range(20, 31)], [4, 5, *range(20, 30)], [*range(20, 30), 7, 8], [6, 3, *range(20, 30)]])
    output = SimpleNamespace(entity_topk_rows=ranked)
    batch = {"entity_labels": torch.tensor([5, 5, 7, -100])}
    counts = entity_hits(output, batch, num_entities=9)
    assert counts[5].tolist() == [2, 1, 2]
    assert counts[7].tolist() == [1, 0, 0]  # ranked eleventh
    assert counts.sum().item() == 6


def read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_files_of_two_processes_count_every_held_out_target_once(trained_run: Path, sample_shards: Path) -> None:
    shards = PackedShards.load(sample_shards)
    rows = np.concatenate([sequence.mention_entities for sequence in shards.heldout])
    rows = rows[rows != NIL_ROW]
    by_entity = {row["cui"]: row for row in read_csv(trained_run / BY_ENTITY)}
    expected = {
        shards.entity_vocab.cui(row): count for row, count in zip(*np.unique(rows, return_counts=True), strict=True)
    }
    assert {cui: int(row["mentions"]) for cui, row in by_entity.items()} == expected

    labels = np.bincount(np.concatenate([sequence.bio_labels for sequence in shards.heldout]), minlength=3)
    confusion = [[int(row[f"predicted {label}"]) for label in "OBI"] for row in read_csv(trained_run / CONFUSION)]
    assert np.sum(confusion, axis=1).tolist() == labels.tolist()

    (*_, newest) = [record for record in read_records(trained_run / RECORDS) if record["kind"] == "heldout"]
    for column, figure in (("first", "linking_accuracy_at_1"), ("in_first_ten", "linking_accuracy_at_10")):
        right = sum(int(row[column]) for row in by_entity.values())
        assert abs(right / len(rows) - newest["metrics"][figure]) < 1e-12


def test_types_add_up_their_entities(trained_run: Path, sample_shards: Path) -> None:
    vocab = PackedShards.load(sample_shards).entity_vocab
    by_type = {row["semantic_type"]: row for row in read_csv(trained_run / BY_TYPE)}
    for name, row in by_type.items():
        of_type = [e for e in read_csv(trained_run / BY_ENTITY) if name in vocab.semantic_types(vocab.row(e["cui"]))]
        assert of_type
        for column in ("mentions", "first", "in_first_ten"):
            assert int(row[column]) == sum(int(entity[column]) for entity in of_type)
    counts = [int(row["mentions"]) for row in by_type.values()]
    assert counts == sorted(counts, reverse=True)


def test_examples_show_the_annotated_mentions_of_the_first_held_out_texts(
    trained_run: Path, sample_shards: Path
) -> None:
    shards = PackedShards.load(sample_shards)
    latest = json.loads((trained_run / LATEST).read_text(encoding="utf-8"))
    (sample, *_), example = shards.heldout, latest["examples"][0]
    end = int(sample.document_starts[1]) if len(sample.document_starts) > 1 else len(sample)
    entities = [
        shards.entity_vocab.cui(row)
        for start, row in zip(sample.mention_starts, sample.mention_entities, strict=True)
        if start < end
    ]
    assert [mention["concepts"][0]["cui"] for mention in example["annotated"]] == entities
    assert "[MASK]" not in example["text"]
