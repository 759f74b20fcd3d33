"""Held-out texts on the run's page: annotated mentions beside those that the model found, right and wrong in colour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

_ANNOTATED = {
    "right": ("right", "found, with its concept"),
    "concept": ("concept", "found, with another concept"),
    "span": ("span", "not found"),
}
_FOUND = {
    "right": ("right", "annotated too, with this concept"),
    "concept": ("concept", "annotated with another concept"),
    "span": ("extra", "not annotated"),
}


def linked_examples(examples: Sequence[Mapping[str, Any]]) -> str:
    """The texts as HTML, after a legend of the colours.

    Args:
        examples: as `evaluation_files` writes them: {"title", "text", "annotated", "found"}.
    """
    if not examples:
        return '<section class="plain">No mention in the first held-out sequences.</section>'
    said = (
        ("right", "span and concept agree"),
        ("concept", "only the span agrees"),
        ("span", "annotated, not found"),
        ("extra", "found, not annotated"),
    )
    legend = "".join(f'<li><span class="mention {kind}">{text}</span></li>' for kind, text in said)
    sections = "".join(_example(number, example) for number, example in enumerate(examples))
    return f'<ul class="verdicts">{legend}</ul>{sections}'


def _example(number: int, example: Mapping[str, Any]) -> str:
    sides = (("Annotated", "annotated", _ANNOTATED), ("Found by the model", "found", _FOUND))
    columns = "".join(
        f"<div><h4>{title}</h4>{_side(f'{number}{key[0]}', example['text'], example[key], verdicts)}</div>"
        for title, key, verdicts in sides
    )
    return f'<section><h3>{escape(example["title"])}</h3><div class="sides">{columns}</div></section>'


def _side(name: str, text: str, mentions: Sequence[Mapping[str, Any]], verdicts: Mapping[str, tuple[str, str]]) -> str:
    parts, cards, done = [], [], 0
    for place, mention in enumerate(mentions):
        kind, verdict = verdicts[mention["verdict"]]
        label = f"{name}-{place}"
        parts.append(escape(text[done : mention["start"]]))
        parts.append(
            f'<span class="mention {kind}" id="m{label}" role="button" tabindex="0" aria-expanded="false" '
            f'aria-controls="c{label}">{escape(text[mention["start"] : mention["end"]])}</span>'
        )
        cards.append(f'<article class="card {kind}" id="c{label}">{_card(mention["concepts"], verdict)}</article>')
        done = mention["end"]
    parts.append(escape(text[done:]))
    return f'<p class="text" dir="auto">{"".join(parts)}</p><div class="cards">{"".join(cards)}</div>'


def _card(concepts: Sequence[Mapping[str, Any]], verdict: str) -> str:
    best = concepts[0]
    about = " · ".join(escape(text) for text in (best["cui"], *best["types"], verdict) if text)
    rows = "".join(
        f'<tr><th scope="row">{escape(concept["name"])} <code>{escape(concept["cui"])}</code></th><td class="bar">'
        f'<span aria-hidden="true"><i style="width:{100 * concept["weight"]:.1f}%"></i></span></td>'
        f'<td class="weight">{concept["weight"]:.3f}</td></tr>'
        for concept in concepts
    )
    table = f"<table><caption>Attention weights</caption>{rows}</table>" if len(concepts) > 1 else ""
    return f'<h2>{escape(best["name"])}</h2><p class="about">{about}</p>{table}'
