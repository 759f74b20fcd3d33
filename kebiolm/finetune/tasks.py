"""What a data set is: labels, markers, length limit, sizes; the eight BLURB sets of the paper, and a user's own.

Sources: lengths of section 4.3, sizes of Table 1, labels and markers as the BLURB preprocessing writes them.
"""

from __future__ import annotations

import difflib
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from kebiolm.errors import UserError

Split = Literal["train", "dev", "test"]
_FILES: dict[Split, str] = {"train": "train.tsv", "dev": "dev.tsv", "test": "test.tsv"}


class TaskConfig(BaseModel):
    """What both kinds of data sets have."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1)
    max_length: int = Field(512, ge=8, description="pieces of an input, [CLS] and [SEP] included")
    files: dict[Split, str] = Field(_FILES, description="file of each split, in the data folder, where not SPLIT.tsv")
    expected_sizes: dict[Split, int] = Field({}, description="mentions (NER) or rows (RE) of each split")
    public_sizes: dict[Split, int] = Field({}, description="the same, counted in the public files where they differ")

    @field_validator("files")
    @classmethod
    def _fill_in_files(cls, files: dict[Split, str]) -> dict[Split, str]:
        return _FILES | files


class NerTask(TaskConfig):
    """Entity recognition: a word, a tab and a B/I/O label on each line, an empty line after a sentence."""

    kind: Literal["ner"] = "ner"
    entity_types: tuple[str, ...] = Field((), description="none: types are ignored, B-protein is read as B")
    long_sentences: Literal["windows", "truncate"] = Field(
        "windows", description="words beyond max_length: in further windows, or (as in the paper) not read"
    )

    @field_validator("entity_types")
    @classmethod
    def _check_types(cls, types: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(types)) < len(types) or not all(types):
            raise ValueError("types must differ and not be empty")
        return types

    @property
    def labels(self) -> tuple[str, ...]:
        """All labels in the order of their ids: O first, then B and I (of each type)."""
        if not self.entity_types:
            return ("O", "B", "I")
        return ("O", *(f"{prefix}-{name}" for name in self.entity_types for prefix in "BI"))


class RelationTask(TaskConfig):
    """Relation extraction: id, sentence with markers in place of the two entities, label; tabs between them."""

    kind: Literal["re"] = "re"
    markers: tuple[str, ...] = Field(min_length=1, description="texts that stand for entities, such as @GENE$")
    shared_markers: tuple[str, ...] = Field(
        (), description="markers that stand for both entities at once, where their mentions overlap"
    )
    negative_label: str | None = Field(None, description="no relation: not counted by micro-F1")
    known_labels: tuple[str, ...] = Field((), description="labels that may occur; none: any")

    @property
    def all_markers(self) -> tuple[str, ...]:
        """`markers` and `shared_markers`, sorted: the order in which they enter the vocabulary."""
        return tuple(sorted({*self.markers, *self.shared_markers}))

    @field_validator("markers", "shared_markers")
    @classmethod
    def _check_markers(cls, markers: tuple[str, ...]) -> tuple[str, ...]:
        for marker in markers:
            if not marker or marker != "".join(marker.split()):
                raise ValueError(f"marker {marker!r} is empty or holds white space")
        return markers

    @model_validator(mode="after")
    def _check_negative(self) -> RelationTask:
        if self.known_labels and self.negative_label not in (None, *self.known_labels):
            raise ValueError(f"negative_label {self.negative_label} is none of known_labels")
        return self


def _sizes(train: int, dev: int, test: int) -> dict[str, int]:
    return {"train": train, "dev": dev, "test": test}


_BLURB_TASKS: tuple[dict[str, Any], ...] = (
    {"kind": "ner", "name": "BC5CDR-chem", "expected_sizes": _sizes(5203, 5347, 5385)},
    {
        "kind": "ner",
        "name": "BC5CDR-disease",
        "expected_sizes": _sizes(4182, 4244, 4424),
        "public_sizes": {"dev": 4246},
    },
    {
        "kind": "ner",
        "name": "NCBI-disease",
        "expected_sizes": _sizes(5137, 787, 960),
        "public_sizes": {"train": 5134},
    },
    {"kind": "ner", "name": "BC2GM", "expected_sizes": _sizes(15197, 3061, 6325)},
    {"kind": "ner", "name": "JNLPBA", "expected_sizes": _sizes(46750, 4551, 8662)},
    {
        "kind": "re",
        "name": "ChemProt",
        "max_length": 256,
        "markers": ("@CHEMICAL$", "@GENE$"),
        "shared_markers": ("@CHEM-GENE$",),
        "negative_label": "false",
        "known_labels": ("false", "CPR:3", "CPR:4", "CPR:5", "CPR:6", "CPR:9"),
        "expected_sizes": _sizes(18035, 11268, 15745),
    },
    {
        # Section 4.2.2 names four labels; the files have DDI-int as well.
        "kind": "re",
        "name": "DDI",
        "max_length": 256,
        "markers": ("@DRUG$",),
        "shared_markers": ("@DRUG-DRUG$",),
        "negative_label": "DDI-false",
        "known_labels": ("DDI-false", "DDI-advise", "DDI-effect", "DDI-int", "DDI-mechanism"),
        "expected_sizes": _sizes(25296, 2496, 5716),
    },
    {
        "kind": "re",
        "name": "GAD",
        "max_length": 128,
        "markers": ("@GENE$", "@DISEASE$"),
        "negative_label": "0",
        "known_labels": ("0", "1"),
        "expected_sizes": _sizes(4261, 535, 534),
    },
)

BLURB_TASKS: dict[str, NerTask | RelationTask] = {
    fields["name"]: (NerTask if fields["kind"] == "ner" else RelationTask).model_validate(fields)
    for fields in _BLURB_TASKS
}
"""The paper's data sets by their names in BLURB, in the order of Table 1."""


def blurb_task(name: str) -> NerTask | RelationTask:
    """A BLURB data set by its name, in upper or lower case.

    Raises:
        UserError: there is none of this name.
    """
    by_folded_name = {task.name.casefold(): task for task in BLURB_TASKS.values()}
    if name.casefold() in by_folded_name:
        return by_folded_name[name.casefold()]
    close = difflib.get_close_matches(name.casefold(), by_folded_name, n=1)
    hint = f"did you mean {by_folded_name[close[0]].name}?" if close else "for a set of your own, give task.kind too"
    raise UserError("task", got=f"the unknown name {name}", expected=f"one of {', '.join(BLURB_TASKS)}", mend=hint)


def complete_task(settings: Any) -> Any:
    """Settings of a task with those of BLURB filled in.

    Args:
        settings: the name of a BLURB set; or a mapping. One without `kind` changes the BLURB set that it names.

    Returns:
        A mapping that describes a task in full; other values as they are, for pydantic to refuse.

    Raises:
        UserError: no BLURB set has that name.
    """
    if isinstance(settings, str):
        return blurb_task(settings).model_dump()
    if isinstance(settings, dict) and "kind" not in settings:
        base = blurb_task(str(settings.get("name")))
        return base.model_dump() | settings | {"name": base.name}
    return settings
