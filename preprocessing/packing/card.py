"""The dataset card of a shards folder, and what `datasets.load_dataset(FOLDER)` reads to open it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from kebiolm.data.entity_vocab import NUM_SPECIAL_ROWS
from kebiolm.data.shard_format import MADE_BY, SCHEMA, SPLITS
from kebiolm.files import write_json, write_text

CARD_FILE, INFO_FILE = "README.md", "dataset_info.json"

_LICENCE = (
    "Texts and links come from whoever ran the command. Where the knowledge base is made of UMLS, the CUIs, names and "
    "links in this folder are derived from licensed content, and abstracts can be under copyright: do not publish this "
    "folder before you have checked the licences of both."
)
_COLUMNS = (
    ("input_ids", "piece ids, [CLS] and [SEP] around each segment"),
    ("word_starts", "1 where a word begins and at special pieces"),
    ("bio_labels", "0 = O, 1 = B, 2 = I, of all mentions"),
    ("document_starts", "position of each segment's [CLS]"),
    ("document_ids", "document of each segment"),
    ("mention_starts", "first position of each listed mention"),
    ("mention_ends", "position after its last one"),
    ("mention_entities", "its row in entity_vocab.tsv; 2 = a concept outside the vocabulary"),
)


def write_card(folder: Path, manifest: dict[str, Any]) -> None:
    """Write the card and the description of a shards folder; they follow from the manifest alone.

    Args:
        folder: the shards folder.
        manifest: its manifest; splits without a sequence are left out, because they have no file to open.
    """
    splits = [split for split in SPLITS if manifest["counts"][split]["sequences"]]
    write_json(folder / INFO_FILE, _info(manifest, splits))
    write_text(folder / CARD_FILE, _card(manifest, splits))


def _info(manifest: dict[str, Any], splits: list[str]) -> dict[str, Any]:
    """The fields of `datasets.DatasetInfo`."""
    return {
        "description": "Packed sequences for KeBioLM pretraining: word pieces, BIO labels and linked mentions.",
        "license": _LICENCE,
        "features": {field.name: {"_type": "Sequence", "feature": _value(field.type.value_type)} for field in SCHEMA},
        "splits": {
            split: {
                "name": split,
                "num_bytes": sum(
                    file["bytes"] for name, file in manifest["files"].items() if name.startswith(f"{split}-")
                ),
                "num_examples": manifest["counts"][split]["sequences"],
            }
            for split in splits
        },
    }


def _value(type_: pa.DataType) -> dict[str, str]:
    return {"_type": "Value", "dtype": str(type_)}


def _card(manifest: dict[str, Any], splits: list[str]) -> str:
    settings, counts, tokenizer = manifest["settings"], manifest["counts"], manifest["tokenizer"]
    lines = ["---", "license: other", "configs:", "- config_name: default", "  data_files:"]
    for split in splits:
        lines += [f"  - split: {split}", f"    path: {split}-*.arrow"]
    lines += ["---", "", "# Packed biomedical abstracts with linked mentions", ""]
    lines += [
        f"Made by `{MADE_BY}`: annotated abstracts cut into segments, and several segments packed into each sequence "
        f"of at most {settings['max_length']} word pieces. Attention stays inside a segment. Every mention has BIO "
        f"labels; the first {settings['max_mentions']} of a segment are listed with their concept.",
        "",
        "```python",
        "from datasets import load_dataset",
        "",
        'shards = load_dataset("path/to/this/folder")',
        "```",
        "",
        "## Counts",
        "",
        f"| | {' | '.join(SPLITS)} |",
        f"| --- |{' ---: |' * len(SPLITS)}",
    ]
    for name in counts[SPLITS[0]]:
        cells = [
            f"{counts[split][name]:.2%}" if name == "fill_rate" else f"{counts[split][name]:,}" for split in SPLITS
        ]
        lines.append(f"| {name.replace('_', ' ')} | {' | '.join(cells)} |")
    lines += [
        "",
        "mentions in = kept + beyond cap + unaligned + overlapping + broken.",
        "",
        "## Columns",
        "",
        "One row is a sequence. Positions count from its beginning.",
        "",
        *(f"- `{name}`: {meaning}" for name, meaning in _COLUMNS),
        "",
        f"`entity_vocab.tsv` has {manifest['entity_vocab']['rows'] - NUM_SPECIAL_ROWS:,} concepts with CUI, name, "
        "number of mentions and semantic types.",
        "",
        "## Settings",
        "",
        *(f"- {name}: {value}" for name, value in sorted(settings.items())),
        f"- tokenizer: {tokenizer['class']}, {tokenizer['vocab_size']:,} pieces, in `tokenizer/`; SHA-256 of the "
        f"pieces {tokenizer['vocab_sha256']}",
        f"- annotated corpus: SHA-256 of its manifest {manifest['source']['annotated_manifest_sha256']}",
        f"- knowledge base: {manifest['source']['knowledge_base'] or 'none'}",
        "",
        "## Licence",
        "",
        _LICENCE,
        "",
    ]
    return "\n".join(lines)
