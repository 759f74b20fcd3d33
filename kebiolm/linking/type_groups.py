"""Semantic types as colours: which type a mention is shown under, and in which order types get their colours."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from kebiolm.linking.linked_text import LinkedMention, LinkedText

NO_TYPE = "no semantic type"


def shown_type(mention: LinkedMention) -> str:
    """The type that gives a mention its colour: the first of its concept's."""
    return mention.semantic_types[0] if mention.semantic_types else NO_TYPE


def count_types(texts: Sequence[LinkedText]) -> dict[str, int]:
    """Mentions of each shown type; the most frequent first, equal ones by name. The place in it decides the colour."""
    counts = Counter(shown_type(mention) for text in texts for mention in text.mentions)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
