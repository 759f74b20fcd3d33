"""The records that preprocessing steps pass to each other."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Mention:
    """A piece of a document's text that names a concept.

    Attributes:
        start: first character, counted from the beginning of the text.
        end: one past the last character.
        cui: the concept.
        score: cosine of the mention and the concept's nearest name, in (0, 1].
    """

    start: int
    end: int
    cui: str
    score: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """One abstract; `mentions` is empty until it is annotated, then sorted by start and without overlaps.

    Attributes:
        doc_id: PubMed id, or whatever the source calls it; never used as a file name.
        text: title and abstract joined by one space.
        mentions: the linked mentions.
    """

    doc_id: str
    text: str
    mentions: tuple[Mention, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Reject:
    """One input record that was set aside, and why. Every record ends as a `Document` or as one of these.

    Attributes:
        doc_id: the record's id, empty where none could be read.
        source: where it stood: file name and, if known, line.
        reason: a short word to count by, such as "empty-abstract".
        detail: what was found there, for a person to read.
    """

    doc_id: str
    source: str
    reason: str
    detail: str
