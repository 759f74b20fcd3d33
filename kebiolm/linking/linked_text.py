"""What linking returns: texts with their mentions, and the JSON form of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

FORMAT, VERSION = "kebiolm-links", 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A concept that a mention attends to."""

    cui: str
    name: str
    """Preferred name; empty where the model was trained without a knowledge base's names."""
    weight: float
    """Attention weight a_j over the k nearest entities, 0 to 1 (paper, equation 3)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LinkedMention:
    """A detected mention and the concept it attends to most."""

    start: int
    """First character in the text."""
    end: int
    """Character after the last one."""
    text: str
    cui: str
    name: str
    """Preferred name; empty where the model was trained without a knowledge base's names."""
    semantic_types: tuple[str, ...]
    score: float
    """Attention weight a_j of this concept over the k nearest entities, 0 to 1 (paper, equation 3)."""
    probability: float | None
    """Softmax over all entities of the table, 0 to 1 (paper, equation 10); None with an entity index, which does not
    look at all of them."""
    alternatives: tuple[Candidate, ...]
    """The next concepts, largest weight first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LinkedText:
    """A text with its mentions in text order; they do not overlap."""

    text: str
    mentions: tuple[LinkedMention, ...]


def to_json(texts: Sequence[LinkedText]) -> dict[str, Any]:
    """The form that `kebiolm link --json` prints: {"format", "version", "texts": [{"text", "mentions": [...]}]}."""
    return {"format": FORMAT, "version": VERSION, "texts": [asdict(text) for text in texts]}
