"""Text that knows its mentions and its inline markup while it is put together."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from xml.sax.saxutils import escape

from preprocessing.sample.concepts import Concept

_PART = re.compile(r"\{(?P<slot>\w+)\}|<(?P<tag>sup|sub|i)>(?P<inner>[^<]*)</(?P=tag)>")
# Whose scientific names are printed in italics: bacteria, fungi, eukaryotes.
_ITALIC_TUIS = frozenset({"T004", "T007", "T204"})


@dataclass(frozen=True, kw_only=True)
class GoldMention:
    """Characters [start, end) of a text name a concept."""

    start: int
    end: int
    concept: Concept


@dataclass(frozen=True, kw_only=True)
class Markup:
    """Characters [start, end) of a text stand in an inline element such as <sup>."""

    start: int
    end: int
    tag: str


@dataclass(frozen=True, kw_only=True)
class Passage:
    """A piece of text with its mentions and markup, both sorted by start and without overlaps."""

    text: str
    mentions: tuple[GoldMention, ...] = ()
    markup: tuple[Markup, ...] = ()

    @property
    def xml(self) -> str:
        """The text as XML, with its inline elements."""
        parts, position = [], 0
        for mark in self.markup:
            inner = escape(self.text[mark.start : mark.end])
            parts += [escape(self.text[position : mark.start]), f"<{mark.tag}>{inner}</{mark.tag}>"]
            position = mark.end
        return "".join(parts) + escape(self.text[position:])


def fill(template: str, name_concept: Callable[[str], list[str | tuple[Concept, str]]]) -> Passage:
    """Fill the slots of a template.

    Args:
        template: text with {slots} and inline <sup>, <sub>, <i>.
        name_concept: what a slot becomes: plain strings and (concept, name) pairs, in order.
    """
    pieces: list[Passage] = []
    position = 0
    for match in _PART.finditer(template):
        pieces.append(Passage(text=template[position : match.start()]))
        position = match.end()
        if match["tag"]:
            mark = Markup(start=0, end=len(match["inner"]), tag=match["tag"])
            pieces.append(Passage(text=match["inner"], markup=(mark,)))
        else:
            pieces += [
                Passage(text=p) if isinstance(p, str) else _name_passage(*p) for p in name_concept(match["slot"])
            ]
    pieces.append(Passage(text=template[position:]))
    return _capitalise(join(pieces, separator=""))


def join(passages: Iterable[Passage], separator: str = " ") -> Passage:
    """One passage after the other; mentions and markup move along."""
    text, mentions, markup = "", [], []
    for index, passage in enumerate(passages):
        shift = len(text) + (len(separator) if index else 0)
        text += (separator if index else "") + passage.text
        mentions += [GoldMention(start=m.start + shift, end=m.end + shift, concept=m.concept) for m in passage.mentions]
        markup += [Markup(start=m.start + shift, end=m.end + shift, tag=m.tag) for m in passage.markup]
    return Passage(text=text, mentions=tuple(mentions), markup=tuple(markup))


def _name_passage(concept: Concept, name: str) -> Passage:
    is_scientific = concept.tui in _ITALIC_TUIS and name[0].isupper() and " " in name and name.split()[1].islower()
    markup = (Markup(start=0, end=len(name), tag="i"),) if is_scientific else ()
    return Passage(text=name, mentions=(GoldMention(start=0, end=len(name), concept=concept),), markup=markup)


def _capitalise(passage: Passage) -> Passage:
    """Begin with a capital letter, as a sentence does; the length stays the same."""
    text = passage.text[:1].upper() + passage.text[1:]
    return Passage(text=text, mentions=passage.mentions, markup=passage.markup)
