"""The splits of a data set, and whether they are as large as the paper says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kebiolm.finetune.counted_warnings import CountedWarnings
from kebiolm.finetune.entity_f1 import find_entities
from kebiolm.finetune.read_ner import NerSentence, read_ner
from kebiolm.finetune.read_relations import RelationRow, read_relations
from kebiolm.finetune.tasks import BLURB_TASKS, NerTask, RelationTask, Split

ALL_SPLITS: tuple[Split, ...] = ("train", "dev", "test")


def read_ner_splits(
    task: NerTask, folder: Path, warnings: CountedWarnings, splits: Sequence[Split] = ALL_SPLITS
) -> dict[Split, list[NerSentence]]:
    """Read splits of an entity recognition set and compare their numbers of mentions with Table 1.

    Raises:
        UserError: as `read_ner`.
    """
    read = {split: read_ner(folder / task.files[split], task, warnings) for split in splits}
    mentions = {split: sum(len(find_entities(s.labels)) for s in sentences) for split, sentences in read.items()}
    _compare_sizes(task, mentions, "mentions", folder, warnings)
    return read


def read_relation_splits(
    task: RelationTask, folder: Path, warnings: CountedWarnings, splits: Sequence[Split] = ALL_SPLITS
) -> dict[Split, list[RelationRow]]:
    """Read splits of a relation set and compare their numbers of rows with Table 1.

    Raises:
        UserError: as `read_relations`.
    """
    read = {split: read_relations(folder / task.files[split], task, warnings) for split in splits}
    _compare_sizes(task, {split: len(rows) for split, rows in read.items()}, "rows", folder, warnings)
    return read


def _compare_sizes(
    task: NerTask | RelationTask, found: dict[Split, int], unit: str, folder: Path, warnings: CountedWarnings
) -> None:
    """Count a warning for each split whose size is not the expected one (U4)."""
    for split, size in found.items():
        expected = task.expected_sizes.get(split, size)
        if size != expected:
            source = "Table 1 of the paper" if task.name in BLURB_TASKS else "task.expected_sizes"
            known = ", as in the public BLURB files," if size == task.public_sizes.get(split) else ""
            what = f"{split} split with {size} {unit}{known} where {source} says {expected}"
            warnings.add(what, folder / task.files[split])
