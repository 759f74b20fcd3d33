"""Linked texts as one self-contained page: mentions in colour, their concepts and weights on hover or click."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from kebiolm.files import write_text
from kebiolm.linking.linked_text import Candidate, LinkedMention, LinkedText
from kebiolm.linking.page_assets import SCRIPT, STYLE
from kebiolm.linking.type_groups import count_types, shown_type

# Hues that are told apart easily come first; after them, steps of the golden angle keep neighbours apart.
_HUES = (212, 30, 145, 325, 265, 185, 52, 0)
_GOLDEN_ANGLE = 137.5


def write_html_page(texts: Sequence[LinkedText], path: Path, *, model: str) -> None:
    """Write the page atomically; `model` is the name shown at its end."""
    write_text(path, make_html_page(texts, model=model))


def make_html_page(texts: Sequence[LinkedText], *, model: str) -> str:
    """One HTML document without references to other files; equal results give equal bytes."""
    types = count_types(texts)
    hues = {kind: _hue(place) for place, kind in enumerate(types)}
    legend = "".join(
        f'<li style="--h:{hues[kind]:g}"><i></i>{escape(kind)} <b>{count}</b></li>' for kind, count in types.items()
    )
    sections = "\n".join(_section(number, text, hues) for number, text in enumerate(texts))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>Linked mentions</title>
<style>{STYLE}</style>
</head>
<body>
<div class="page">
<header>
<h1>Linked mentions</h1>
<p class="summary">{_summary(texts)}</p>
</header>
<ul class="legend" aria-label="Semantic types and their numbers of mentions">{legend}</ul>
<main>
{sections}
</main>
<footer>Model: {escape(model)}. Click a mention: bars show its attention over its nearest entities.</footer>
</div>
<script>{SCRIPT}</script>
</body>
</html>
"""


def _summary(texts: Sequence[LinkedText]) -> str:
    mentions = [mention for text in texts for mention in text.mentions]
    concepts = len({mention.cui for mention in mentions})
    return f"{_number(len(mentions), 'mention')} of {_number(concepts, 'concept')} in {_number(len(texts), 'text')}"


def _section(number: int, text: LinkedText, hues: Mapping[str, float]) -> str:
    parts, cards, done = [], [], 0
    for place, mention in enumerate(text.mentions):
        name, hue = f"{number}-{place}", f"--h:{hues[shown_type(mention)]:g}"
        parts.append(escape(text.text[done : mention.start]))
        parts.append(
            f'<span class="mention" id="m{name}" role="button" tabindex="0" aria-expanded="false" '
            f'aria-controls="c{name}" style="{hue}">{escape(mention.text)}</span>'
        )
        cards.append(f'<article class="card" id="c{name}" style="{hue}">{_card(mention)}</article>')
        done = mention.end
    parts.append(escape(text.text[done:]))
    body = f'<p class="text">{"".join(parts)}</p>'
    below = f'<div class="cards">{"".join(cards)}</div>' if cards else '<p class="none">No mention detected.</p>'
    return f"<section>{body}{below}</section>"


def _card(mention: LinkedMention) -> str:
    best = Candidate(cui=mention.cui, name=mention.name, weight=mention.score)
    shown = [best, *mention.alternatives]
    rows = "".join(_row(candidate, "best" if candidate is best else "") for candidate in shown)
    rest = max(0.0, 1.0 - sum(candidate.weight for candidate in shown))
    rows += f'<tr class="rest"><th scope="row">all other entities</th>{_bar(rest)}</tr>'
    about = " · ".join([f"<code>{escape(mention.cui)}</code>", *map(escape, mention.semantic_types)])
    return (
        f'<h2>{escape(mention.name or mention.cui)}</h2><p class="about">{about}</p>'
        f"<table><caption>Attention of “{escape(mention.text)}”, characters {mention.start} to {mention.end}</caption>"
        f"{rows}</table>"
    )


def _row(candidate: Candidate, kind: str) -> str:
    label = f"{escape(candidate.name)} <code>{escape(candidate.cui)}</code>".strip()
    return f'<tr class="{kind}"><th scope="row">{label}</th>{_bar(candidate.weight)}</tr>'


def _bar(share: float) -> str:
    """A bar and its number, 0 to 1."""
    width = f"{100 * share:.1f}"
    return (
        f'<td class="bar"><span aria-hidden="true"><i style="width:{width}%"></i></span></td>'
        f'<td class="weight">{share:.3f}</td>'
    )


def _hue(place: int) -> float:
    return _HUES[place] if place < len(_HUES) else (place * _GOLDEN_ANGLE) % 360


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
