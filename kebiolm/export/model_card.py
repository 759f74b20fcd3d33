"""README.md of an exported model: where it comes from, how good it is, what it may be used for, how to use it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from kebiolm.data.entity_vocab import NUM_SPECIAL_ROWS, EntityVocab
from kebiolm.model import KeBioLMConfig

FILE_NAME = "README.md"

_UMLS_LICENCE = "https://www.nlm.nih.gov/databases/umls.html"

# Figures on the held-out sequences, in the order in which the card shows them: (name, type for the metadata, meaning).
_METRICS = {
    "masked_accuracy": ("accuracy", "masked pieces predicted right"),
    "detection_precision": ("precision", "detected spans that are annotated mentions"),
    "detection_recall": ("recall", "annotated mentions whose exact span is detected"),
    "detection_f1": ("f1", "harmonic mean of the two"),
    "linking_accuracy_at_1": ("accuracy", "annotated mentions whose entity is ranked first"),
    "linking_accuracy_at_10": ("accuracy", "annotated mentions whose entity is among the first ten"),
}
_LOSSES = {
    "loss": "sum of the three (equation 6)",
    "loss_mlm": "masked language modelling (equation 8)",
    "loss_detection": "entity detection (equation 9)",
    "loss_linking": "entity linking (equation 10)",
}
_COUNTS = {
    "documents": "documents",
    "sequences": "packed sequences",
    "pieces": "word pieces",
    "mentions_kept": "mentions with their entity",
    "mentions_nil": "of these, entity outside the table",
}


def make_model_card(
    config: KeBioLMConfig, vocabulary: EntityVocab, training: Mapping[str, Any], *, step: int, title: str
) -> str:
    """Write the card of a model.

    Paths of the training machine are left out; of the checkpoint that training started from, the last part is named.

    Args:
        config: the model's.
        vocabulary: its entity vocabulary.
        training: {"settings": {"section.key": value}, "shards": {"counts": {split: {name: number}}, "settings"},
            "latest_metrics": {"heldout": {name: value}}} as the trainer saved it beside the checkpoint.
        step: optimizer steps done.
        title: the model's name.

    Returns:
        Markdown with YAML front matter in the form that the Hugging Face Hub reads.
    """
    metrics = training["latest_metrics"].get("heldout", {})
    sections = [
        f"---\n{yaml.safe_dump(_metadata(title, metrics), sort_keys=False, allow_unicode=True)}---",
        f"# {title}",
        _INTRODUCTION,
        "## Use",
        _USE,
        "## Model",
        _table(("", ""), _model_rows(config, vocabulary, training)),
        "## Training data",
        _data_table(training["shards"]["counts"]),
        "Mentions and their concepts were found by an automatic annotator, not by people: its mistakes are in the "
        "training data and in the figures below.",
        "## Training",
        f"{step:,} optimizer steps.",
        _table(("setting", "value"), _setting_rows(training["settings"])),
        "## Evaluation",
        _evaluation(metrics),
        "## Licence",
        _LICENCE,
        "## Limits",
        _LIMITS,
    ]
    return "\n\n".join(sections) + "\n"


def _metadata(title: str, metrics: Mapping[str, float]) -> dict[str, Any]:
    metadata: dict[str, Any] = {
        "language": ["en"],
        "license": "other",
        "license_name": "umls-metathesaurus-license",
        "license_link": _UMLS_LICENCE,
        "library_name": "kebiolm",
        "tags": ["biomedical", "entity-linking", "named-entity-recognition", "knowledge-enhanced", "umls", "kebiolm"],
    }
    if shown := [name for name in _METRICS if name in metrics]:
        results = [
            {"type": _METRICS[name][0], "name": name.replace("_", " "), "value": round(metrics[name], 4)}
            for name in shown
        ]
        metadata["model-index"] = [
            {
                "name": title,
                "results": [
                    {
                        "task": {"type": "token-classification", "name": "entity detection and linking"},
                        "dataset": {"type": "held-out", "name": "held-out part of the training corpus"},
                        "metrics": results,
                    }
                ],
            }
        ]
    return metadata


def _model_rows(
    config: KeBioLMConfig, vocabulary: EntityVocab, training: Mapping[str, Any]
) -> list[tuple[object, ...]]:
    settings = training["settings"]
    start = settings.get("model.init_from")
    fusion_layers = config.num_hidden_layers - config.num_context_layers
    return [
        ("text-only layers + fusion layers", f"{config.num_context_layers} + {fusion_layers}"),
        ("hidden size, attention heads", f"{config.hidden_size}, {config.num_attention_heads}"),
        ("word pieces in the vocabulary", config.vocab_size),
        ("longest input, in pieces", config.max_position_embeddings),
        ("longest sequence in training, in pieces", training["shards"]["settings"]["max_length"]),
        ("concepts in the entity table", len(vocabulary) - NUM_SPECIAL_ROWS),
        ("length of an entity vector", config.entity_size),
        ("entities that a mention attends to (k)", config.max_candidate_entities),
        ("entity vectors", "frozen" if config.freeze_entity_embeddings else "trained"),
        ("semantics", config.semantics),
        ("started from", Path(start).name if start else "random weights"),
        ("entity vectors started from", "TransE" if settings.get("entities.init_from") else "random vectors"),
    ]


def _data_table(counts: Mapping[str, Mapping[str, Any]]) -> str:
    splits = sorted(counts, key=lambda split: split != "train")
    rows = [(label, *(counts[split].get(name, 0) for split in splits)) for name, label in _COUNTS.items()]
    return _table(("", *splits), rows)


def _setting_rows(settings: Mapping[str, Any]) -> list[tuple[object, ...]]:
    shown = ("optimization.", "masking.", "seed")
    # As written in a recipe, so that they can be copied back: no thousands separators.
    return [(f"`{name}`", f"`{value}`") for name, value in settings.items() if name.startswith(shown)]


def _evaluation(metrics: Mapping[str, float]) -> str:
    if not metrics:
        return "No sequences were held out, so there are no figures."
    rows = [(name, f"{metrics[name]:.4f}", meaning) for name, (_, meaning) in _METRICS.items() if name in metrics]
    rows += [(name, f"{metrics[name]:.4f}", meaning) for name, meaning in _LOSSES.items() if name in metrics]
    lead = "Newest figures on the held-out sequences when the checkpoint was saved."
    return "\n\n".join([lead, _table(("figure", "value", "meaning"), [(f"`{row[0]}`", *row[1:]) for row in rows])])


def _table(header: tuple[str, ...], rows: list[tuple[object, ...]]) -> str:
    """A Markdown table; columns whose cells are all numbers are aligned to the right."""
    is_number = [all(isinstance(row[column], int | float) for row in rows) for column in range(len(header))]
    lines = [header, ["--:" if number else "---" for number in is_number]]
    lines += [
        [f"{cell:,}" if isinstance(cell, int | float) else str(cell).replace("|", "\\|") for cell in row]
        for row in rows
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


_INTRODUCTION = """\
A biomedical language model with a memory of entities, in the manner of *Improving Biomedical Pretrained Language
Models with Knowledge* (Yuan, Liu, Tan, Huang and Huang, BioNLP 2021): it reads a text, detects mentions of biomedical
concepts, looks each of them up among the concepts of its entity table, and reads on with what it found. The concepts
are those of the Unified Medical Language System (UMLS), or of the knowledge base given in its place, named by their
CUIs."""

_USE = """\
```python
from kebiolm import KeBioLM

model = KeBioLM.from_pretrained("path/to/this/folder")
for mention in model.link(["Metformin lowers blood glucose in type 2 diabetes."])[0].mentions:
    print(mention.text, mention.cui, mention.name, mention.score)
```

`model.encode(texts)` gives a vector for each text. For fine-tuning, `import kebiolm.model` and load the folder with
`AutoModelForTokenClassification`, `AutoModelForSequenceClassification` or `KeBioLMForRelationExtraction`. On the
command line: `kebiolm link path/to/this/folder "your text"`."""

_LICENCE = f"""\
The code is under the Apache License 2.0. The entity table and `entity_vocab.tsv` are made from a knowledge base:
names, identifiers and relations of UMLS are under the [UMLS Metathesaurus License]({_UMLS_LICENCE}), and some of its
sources have terms of their own. Whoever receives this folder with UMLS content needs that licence. If you trained on
another knowledge base, its terms take this place: change the lines at the top of this file."""

_LIMITS = """\
- For research. Not a medical device: do not decide on a patient with it.
- It knows the concepts of its entity table only. A mention of any other concept is linked to the nearest one it
  knows, and the attention weight does not show that: it compares the k nearest entities with each other.
- English text in the manner of PubMed abstracts; clinical notes, full text or social media were not tried.
- Nested and discontinuous mentions are not detected."""
