"""What training shards must satisfy: columns that fit together, ids in range, counts that add up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kebiolm.data import entity_vocab
from kebiolm.data.entity_vocab import NIL_ROW, EntityVocab
from kebiolm.data.shard_format import BEGIN, HELDOUT, INSIDE, OUTSIDE, SCHEMA, SPLITS, TRAIN

_LOSSES = ("mentions_beyond_cap", "mentions_unaligned", "mentions_overlapping", "mentions_broken")


class ShardsCheck:
    """Checks a shards folder file by file, then as a whole; one file is in memory at a time.

    Args:
        folder: the folder.
        manifest: its manifest.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self._folder, self._manifest = folder, manifest
        self._sums: dict[str, Counter[str]] = {split: Counter() for split in SPLITS}
        # Files are checked by name: those of the held-out documents come before those to train on.
        self._heldout_ids: pa.Array = pa.array([], pa.string())

    def file_problems(self, name: str) -> Iterator[str]:
        """What is wrong with one file's content."""
        if name == entity_vocab.FILE_NAME:
            yield from self._vocabulary_problems()
        for split in SPLITS:
            if name.startswith(f"{split}-") and name.endswith(".arrow"):
                yield from self._sequence_problems(name, split)

    def folder_problems(self) -> Iterator[str]:
        """What is wrong with the counts."""
        for split in SPLITS:
            counts, sums = self._manifest["counts"][split], self._sums[split]
            for name in ("sequences", "pieces", "segments", "mentions_kept", "mentions_nil"):
                if counts.get(name) != sums[name]:
                    yield f"manifest.json: {name} of {split} is {counts.get(name)}, its files have {sums[name]:,}"
            lost = sum(counts.get(name, 0) for name in _LOSSES)
            if counts["mentions_in"] != counts["mentions_kept"] + lost:
                yield f"manifest.json: mentions_in of {split} is not mentions_kept + those lost"
            positions = sums["sequences"] * self._manifest["settings"]["max_length"]
            fill = sums["pieces"] / positions if positions else 0.0
            if abs(counts["fill_rate"] - fill) > 1e-6:
                yield f"manifest.json: fill_rate of {split} is {counts['fill_rate']}, its files have {fill:.6f}"
        for path in sorted(self._folder.glob("*-of-*.arrow")):
            if path.name not in self._manifest["files"]:
                yield f"{path.name}: a file that the manifest does not name"

    def _vocabulary_problems(self) -> Iterator[str]:
        vocab, recorded = EntityVocab.load(self._folder / entity_vocab.FILE_NAME), self._manifest["entity_vocab"]
        if (len(vocab), vocab.sha256) != (recorded["rows"], recorded["sha256"]):
            yield f"{entity_vocab.FILE_NAME}: {len(vocab):,} rows, not the vocabulary that manifest.json records"

    def _sequence_problems(self, name: str, split: str) -> Iterator[str]:
        with pa.memory_map(str(self._folder / name)) as source:
            reader = pa.ipc.open_file(source)
            if reader.schema != SCHEMA:
                yield f"{name}: columns {', '.join(reader.schema.names)}, not those of a shard"
                return
            if reader.num_record_batches != 1:
                yield f"{name}: {reader.num_record_batches} record batches, not one"
                return
            batch = reader.get_batch(0)
            rows = self._manifest["files"][name].get("rows")
            if batch.num_rows != rows:
                yield f"{name}: {batch.num_rows:,} sequences, not {rows} as recorded"
            lengths = {field: pc.list_value_length(batch[field]).to_numpy() for field in SCHEMA.names}
            values = {
                field: batch[field].flatten() if field == "document_ids" else batch[field].flatten().to_numpy()
                for field in SCHEMA.names
            }
            if misfits := _misfits(lengths):
                yield from (f"{name}: {misfit}" for misfit in misfits)
                return
            self._count(split, lengths, values)
            checks = {**self._piece_checks(lengths, values), **self._mention_checks(lengths, values)}
            for what, (is_wrong, field) in checks.items():
                if is_wrong.any():
                    row = int(np.searchsorted(np.cumsum(lengths[field]), np.argmax(is_wrong), side="right"))
                    yield f"{name}: {what} ({int(is_wrong.sum()):,}; the first in sequence {row})"
            yield from self._split_problems(name, split, values["document_ids"])

    def _count(self, split: str, lengths: dict[str, np.ndarray], values: dict[str, Any]) -> None:
        self._sums[split].update(
            sequences=len(lengths["input_ids"]),
            pieces=len(values["input_ids"]),
            segments=len(values["document_starts"]),
            mentions_kept=len(values["mention_starts"]),
            mentions_nil=int((values["mention_entities"] == NIL_ROW).sum()),
        )

    def _piece_checks(
        self, lengths: dict[str, np.ndarray], values: dict[str, Any]
    ) -> dict[str, tuple[np.ndarray, str]]:
        """What may be wrong -> (flags over a column's values, the column)."""
        ids, bio, starts = values["input_ids"], values["bio_labels"], values["document_starts"]
        most, vocabulary = self._manifest["settings"]["max_length"], self._manifest["tokenizer"]["vocab_size"]
        position = _positions(lengths["input_ids"])
        before = np.append(OUTSIDE, bio[:-1])
        first_of_row = _positions(lengths["document_starts"]) == 0
        row_length = np.repeat(lengths["input_ids"], lengths["document_starts"])
        return {
            f"sequences longer than {most}": (position == most, "input_ids"),
            "pieces outside the vocabulary": ((ids < 0) | (ids >= vocabulary), "input_ids"),
            "BIO labels that are none": (bio > INSIDE, "bio_labels"),
            "I labels that follow no mention": (
                (bio == INSIDE) & ((before == OUTSIDE) | (position == 0)),
                "bio_labels",
            ),
            "segments that begin nowhere": (
                np.where(first_of_row, starts != 0, starts <= np.append(-1, starts[:-1])) | (starts >= row_length),
                "document_starts",
            ),
        }

    def _mention_checks(
        self, lengths: dict[str, np.ndarray], values: dict[str, Any]
    ) -> dict[str, tuple[np.ndarray, str]]:
        start, end, entity = (values[f"mention_{field}"] for field in ("starts", "ends", "entities"))
        per_row = lengths["mention_starts"]
        row_start = np.repeat(np.cumsum(lengths["input_ids"]) - lengths["input_ids"], per_row)
        is_inside = (start >= 0) & (start < end) & (end <= np.repeat(lengths["input_ids"], per_row))
        begins = np.zeros(len(start), dtype=bool)
        begins[is_inside] = values["bio_labels"][(row_start + start)[is_inside]] == BEGIN
        follows = _positions(per_row) > 0
        return {
            "mentions outside their sequence": (~is_inside, "mention_starts"),
            "mentions that overlap or are out of order": (
                follows & (start < np.append(0, end[:-1])[: len(start)]),
                "mention_starts",
            ),
            "mentions without a B label": (is_inside & ~begins, "mention_starts"),
            "entities outside the vocabulary": (
                (entity < 0) | (entity >= self._manifest["entity_vocab"]["rows"]),
                "mention_entities",
            ),
        }

    def _split_problems(self, name: str, split: str, ids: pa.Array) -> Iterator[str]:
        """Documents for evaluation must not be trained on."""
        if split == HELDOUT:
            self._heldout_ids = pc.unique(pa.concat_arrays([self._heldout_ids, ids]))
        elif split == TRAIN and len(self._heldout_ids):
            both = ids.filter(pc.is_in(ids, value_set=self._heldout_ids))
            if len(both):
                yield f"{name}: {len(pc.unique(both)):,} documents are held out, too; the first is {both[0]}"


def _misfits(lengths: dict[str, np.ndarray]) -> list[str]:
    """Columns that must be as long as another, row by row, and are not."""
    pairs = (
        ("word_starts", "input_ids"),
        ("bio_labels", "input_ids"),
        ("document_ids", "document_starts"),
        ("mention_ends", "mention_starts"),
        ("mention_entities", "mention_starts"),
    )
    return [f"{one} and {other} differ in length" for one, other in pairs if (lengths[one] != lengths[other]).any()]


def _positions(lengths: np.ndarray) -> np.ndarray:
    """0, 1, ... anew in each row of these lengths."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - lengths, lengths)
