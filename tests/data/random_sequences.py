"""Makers of packed sequences with random pieces, and of shards folders of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from kebiolm.data import entity_vocab
from kebiolm.data.entity_vocab import EntityVocab
from kebiolm.data.shard_format import (
    FORMAT,
    SCHEMA,
    SPLITS,
    VERSION,
    PackedSequence,
    PackedShards,
    shard_name,
    write_shard,
)
from kebiolm.files import describe_file, write_json

TOKENIZER = {
    "class": "BertTokenizer",
    "vocab_size": 1000,
    "cls_id": 2,
    "sep_id": 3,
    "mask_id": 4,
    "pad_id": 0,
    "special_ids": [0, 1, 2, 3, 4],
}
NUM_CONCEPTS = 20


def make_sequence(rng: np.random.Generator, segment_lengths: list[int], name: str = "doc") -> PackedSequence:
    """A sequence with random pieces, words of 1-4 pieces, and an entity over every third word or two."""
    ids, words, bio, starts, spans = [], [], [], [], []
    for length in segment_lengths:
        starts.append(len(ids))
        ids.append(TOKENIZER["cls_id"])
        words.append(1)
        bio.append(0)
        while len(ids) < starts[-1] + length - 1:
            left = starts[-1] + length - 1 - len(ids)
            size = min(int(rng.integers(1, 5)), left)
            is_entity = rng.random() < 0.3
            if is_entity:
                spans.append((len(ids), len(ids) + size))
            bio += [1 if is_entity else 0] + [2 if is_entity else 0] * (size - 1)
            # An entity may hold a word border.
            words += [1] + [int(is_entity and rng.random() < 0.5) for _ in range(size - 1)]
            ids += rng.integers(5, TOKENIZER["vocab_size"], size).tolist()
        ids.append(TOKENIZER["sep_id"])
        words.append(1)
        bio.append(0)
    array = np.array(spans, dtype=np.int32).reshape(-1, 2)
    return PackedSequence(
        input_ids=np.array(ids, dtype=np.int32),
        word_starts=np.array(words, dtype=np.uint8),
        bio_labels=np.array(bio, dtype=np.uint8),
        document_starts=np.array(starts, dtype=np.int32),
        document_ids=tuple(f"{name}-{number}" for number in range(len(starts))),
        mention_starts=array[:, 0],
        mention_ends=array[:, 1],
        mention_entities=rng.integers(2, 3 + NUM_CONCEPTS, len(array)).astype(np.int32),
    )


def make_sequences(count: int, seed: int = 0, longest: int = 64) -> list[PackedSequence]:
    rng = np.random.default_rng(seed)
    lengths = [rng.integers(3, longest // 2, 2).tolist() for _ in range(count)]
    return [make_sequence(rng, length, f"doc{number}") for number, length in enumerate(lengths)]


def write_shards(
    folder: Path, train: list[PackedSequence], heldout: list[PackedSequence], per_shard: int = 7
) -> PackedShards:
    folder.mkdir(parents=True)
    vocab = EntityVocab.build({f"C{number:07d}": number + 1 for number in range(NUM_CONCEPTS)})
    vocab.save(folder / entity_vocab.FILE_NAME)
    files = {entity_vocab.FILE_NAME: describe_file(folder / entity_vocab.FILE_NAME)}
    for split, sequences in zip(SPLITS, (train, heldout), strict=True):
        starts = range(0, len(sequences), per_shard)
        for number, start in enumerate(starts):
            rows = [
                {name: list(getattr(sequence, name)) for name in SCHEMA.names}
                for sequence in sequences[start : start + per_shard]
            ]
            name = shard_name(split, number, len(starts))
            files[name] = write_shard(folder / name, pa.RecordBatch.from_pylist(rows, schema=SCHEMA))
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "settings": {"max_length": 64},
        "counts": {},
        "tokenizer": TOKENIZER,
        "entity_vocab": {"rows": len(vocab), "sha256": vocab.sha256},
        "files": files,
    }
    write_json(folder / "manifest.json", manifest)
    return PackedShards.load(folder, verify=True)
