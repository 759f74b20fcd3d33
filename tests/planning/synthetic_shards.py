"""Shards of random pieces, for models that are too large for the built-in sample to fill."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from kebiolm.data import entity_vocab
from kebiolm.data.entity_vocab import NUM_SPECIAL_ROWS, EntityVocab
from kebiolm.data.shard_format import FORMAT, SCHEMA, SPLITS, TOKENIZER_FOLDER, VERSION, shard_name, write_shard
from kebiolm.files import describe_file, write_json

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_WORD, _MENTION_EVERY = 2, 14
"""Pieces of a word and of a mention; a mention begins at every so many pieces: 36 in a sequence of 512."""


def write_synthetic_shards(
    folder: Path, *, length: int, pieces: int, entities: int, sequences: int = 16, heldout: int = 0
) -> Path:
    """Write a shards folder whose sequences are full.

    Args:
        folder: where; it must not exist.
        length: pieces of every sequence.
        pieces: size of the vocabulary.
        entities: rows of the entity table, special rows included.
        sequences: to train on.
        heldout: to evaluate on.

    Returns:
        The folder.
    """
    (folder / TOKENIZER_FOLDER).mkdir(parents=True)
    vocabulary = [*_SPECIAL, *(f"w{number}" for number in range(pieces - len(_SPECIAL)))]
    (folder / TOKENIZER_FOLDER / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    concepts = EntityVocab.build({f"C{number:07d}": 1 for number in range(entities - NUM_SPECIAL_ROWS)})
    concepts.save(folder / entity_vocab.FILE_NAME)
    files = {entity_vocab.FILE_NAME: describe_file(folder / entity_vocab.FILE_NAME)}
    rng, counts = np.random.default_rng(0), {}
    for split, number in zip(SPLITS, (sequences, heldout), strict=True):
        rows = [_sequence(rng, length, pieces, entities, f"{split}-{row}") for row in range(number)]
        if rows:
            name = shard_name(split, 0, 1)
            files[name] = write_shard(folder / name, pa.RecordBatch.from_pylist(rows, schema=SCHEMA))
        counts[split] = {
            "sequences": number,
            "pieces": number * length,
            "fill_rate": 1.0,
            "mentions_kept": sum(len(row["mention_starts"]) for row in rows),
        }
    write_json(
        folder / "manifest.json",
        {
            "format": FORMAT,
            "version": VERSION,
            "settings": {"max_length": length, "max_mentions": 50},
            "counts": counts,
            "tokenizer": {
                "class": "BertTokenizer",
                "vocab_size": pieces,
                **{f"{name}_id": row for row, name in enumerate(("pad", "unk", "cls", "sep", "mask"))},
                "special_ids": list(range(len(_SPECIAL))),
            },
            "entity_vocab": {"rows": len(concepts), "sha256": concepts.sha256},
            "files": files,
        },
    )
    return folder


def _sequence(rng: np.random.Generator, length: int, pieces: int, entities: int, name: str) -> dict[str, object]:
    """One document of full length with mentions at equal distances."""
    ids = rng.integers(len(_SPECIAL), pieces, length)
    ids[0], ids[-1] = 2, 3
    places = np.arange(length)
    is_word_start = (places % _WORD == 1) | (places == 0) | (places == length - 1)
    starts = np.arange(1, length - 1 - _WORD, _MENTION_EVERY)
    bio = np.zeros(length, dtype=np.uint8)
    bio[starts], bio[starts + 1] = 1, 2
    return {
        "input_ids": ids.tolist(),
        "word_starts": is_word_start.astype(np.uint8).tolist(),
        "bio_labels": bio.tolist(),
        "document_starts": [0],
        "document_ids": [name],
        "mention_starts": starts.tolist(),
        "mention_ends": (starts + _WORD).tolist(),
        "mention_entities": rng.integers(NUM_SPECIAL_ROWS, entities, len(starts)).tolist(),
    }
