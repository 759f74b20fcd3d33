"""Entity vocabulary: which row of the entity table stands for which concept (CUI)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from kebiolm.errors import UserError
from kebiolm.files import write_text

FILE_NAME = "entity_vocab.tsv"
HEADER = ("row", "cui", "name", "count", "semantic_type")
# Between the semantic types of a concept; no UMLS name has it, because it ends the fields of UMLS files.
_TYPE_SEPARATOR = "|"

# The first rows of every entity table are no concepts: padding, an unknown concept, and "linked to nothing".
PAD_ROW, UNK_ROW, NIL_ROW = 0, 1, 2
SPECIAL_CUIS = ("[PAD_ENT]", "[UNK_ENT]", "[NIL_ENT]")
NUM_SPECIAL_ROWS = len(SPECIAL_CUIS)


class EntityVocab:
    """Maps CUIs to rows of the entity table and back.

    Rows 0, 1 and 2 are [PAD_ENT], [UNK_ENT] and [NIL_ENT]; concepts follow in a random order that is fixed by their
    CUIs, so that the same set of concepts always gives the same rows.

    Args:
        entries: (cui, name, count, semantic types joined by "|") of each row in order, the special rows first.
    """

    def __init__(self, entries: Iterable[tuple[str, str, int, str]]) -> None:
        self._entries = list(entries)
        self._rows = {entry[0]: row for row, entry in enumerate(self._entries)}
        if tuple(entry[0] for entry in self._entries[:NUM_SPECIAL_ROWS]) != SPECIAL_CUIS:
            raise ValueError(f"the first rows must be {SPECIAL_CUIS}")
        if len(self._rows) != len(self._entries):
            raise ValueError("a CUI has two rows")

    @classmethod
    def build(
        cls,
        counts: Mapping[str, int],
        *,
        min_count: int = 1,
        names: Mapping[str, str] | None = None,
        semantic_types: Mapping[str, Sequence[str]] | None = None,
    ) -> EntityVocab:
        """Make the vocabulary of a corpus.

        Args:
            counts: number of mentions of each CUI.
            min_count: CUIs with fewer mentions get no row; their mentions are counted on the [NIL_ENT] row.
            names: preferred name of each CUI; absent ones are empty.
            semantic_types: names of each CUI's semantic types; absent ones have none.
        """
        names, semantic_types = names or {}, semantic_types or {}
        # Random, because concepts with neighbouring CUIs are often alike: side by side, they would be near a mention
        # together, and a search by blocks of rows would have few blocks to look at but much to look at in each.
        kept = sorted((cui for cui, count in counts.items() if count >= min_count), key=_shuffled)
        nil_count = sum(counts.values()) - sum(counts[cui] for cui in kept)
        special = [(cui, "", nil_count if row == NIL_ROW else 0, "") for row, cui in enumerate(SPECIAL_CUIS)]
        concepts = [
            (cui, _one_line(names.get(cui, "")), counts[cui], _joined(semantic_types.get(cui, ()))) for cui in kept
        ]
        return cls(special + concepts)

    @classmethod
    def load(cls, path: Path) -> EntityVocab:
        """Read `entity_vocab.tsv`.

        Raises:
            UserError: the file is missing or is not an entity vocabulary.
        """
        mend = "run `kebiolm pack` again"
        try:
            lines = path.read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(path, got=error, expected="an entity vocabulary", mend=mend) from None
        header = "\t".join(HEADER)
        if lines[0] != header:
            raise UserError(f"{path}:1", got=repr(lines[0][:80]), expected=repr(header), mend=mend)
        entries = []
        for row, line in enumerate(lines[1:-1]):
            fields = line.split("\t")
            if len(fields) != len(HEADER) or fields[0] != str(row) or not fields[3].isdecimal():
                raise UserError(
                    f"{path}:{row + 2}", got=repr(line[:80]), expected=f"the fields of row {row}", mend=mend
                )
            entries.append((fields[1], fields[2], int(fields[3]), fields[4]))
        try:
            return cls(entries)
        except ValueError as error:
            raise UserError(path, got=error, expected="an entity vocabulary", mend=mend) from None

    def save(self, path: Path) -> None:
        """Write `entity_vocab.tsv` atomically; equal vocabularies are equal bytes."""
        write_text(path, self._text())

    @property
    def sha256(self) -> str:
        """SHA-256 of the saved file's bytes: two entity tables fit together when these are equal."""
        return hashlib.sha256(self._text().encode("utf-8")).hexdigest()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, cui: str) -> bool:
        return cui in self._rows

    def row(self, cui: str) -> int:
        """Row of a CUI, `NIL_ROW` where the vocabulary does not have it."""
        return self._rows.get(cui, NIL_ROW)

    def cui(self, row: int) -> str:
        """CUI of a row, or "[PAD_ENT]", "[UNK_ENT]", "[NIL_ENT]"."""
        return self._entries[row][0]

    def name(self, row: int) -> str:
        """Preferred name of a row's concept; empty where no knowledge base was given."""
        return self._entries[row][1]

    def count(self, row: int) -> int:
        """Number of mentions of a row's concept in the annotated corpus."""
        return self._entries[row][2]

    def semantic_types(self, row: int) -> tuple[str, ...]:
        """Names of the semantic types of a row's concept; none where no knowledge base was given."""
        return tuple(filter(None, self._entries[row][3].split(_TYPE_SEPARATOR)))

    def _text(self) -> str:
        lines = ["\t".join(HEADER)]
        lines += ["\t".join(map(str, (row, *entry))) for row, entry in enumerate(self._entries)]
        return "\n".join(lines) + "\n"


def _shuffled(cui: str) -> tuple[bytes, str]:
    """Sorts CUIs in an order that has nothing to do with them, and is the same everywhere."""
    return hashlib.sha256(cui.encode("utf-8")).digest(), cui


def _joined(types: Sequence[str]) -> str:
    """Semantic types as one field."""
    return _TYPE_SEPARATOR.join(map(_one_line, types))


def _one_line(text: str) -> str:
    """A name that fits one field of a tab-separated line."""
    return " ".join(text.split())
