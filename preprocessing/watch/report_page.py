"""The annotation report as one self-contained page; every text of the data is escaped."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from html import escape
from typing import Any

import numpy as np

from kebiolm.linking import page_assets
from kebiolm.linking.type_groups import NO_TYPE
from preprocessing.document import Document, Mention
from preprocessing.watch import report_style
from preprocessing.watch.charts import Column, bar, column_chart, columns_of_tally
from preprocessing.watch.readable import readable_bytes
from preprocessing.watch.report_figures import SCORE_BINS, Concept, ReportFigures

TYPES_SHOWN = 25
INPUTS_SHOWN = 12
EXAMPLE_CHARACTERS = 3000
_DETAIL_CHARACTERS = 160
_FIRST_HUE, _GOLDEN_ANGLE = 212, 137.5
# HTML knows no such characters; a browser would show nothing or stop.
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffe\uffff]")


def make_report_page(figures: ReportFigures) -> str:
    """One HTML document without references to other files; equal figures give equal bytes."""
    parts = [
        _part("Documents and mentions", _tiles(figures)),
        _part("Mentions", f'<div class="charts">{_charts(figures)}</div>'),
        _part("Concepts", f'<div class="charts two">{_types(figures)}{_entities(figures)}</div>'),
        _part("Set aside", _rejects(figures)),
        _part("Training shards", _shards(figures.shards)) if figures.shards else "",
        _part("Examples", _examples(figures)),
        _part("Settings and inputs", _settings(figures)),
    ]
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>Annotation report</title>
<style>{page_assets.STYLE}{report_style.STYLE}</style>
</head>
<body>
<div class="page">
<header>
<h1>Annotation report</h1>
<p class="summary">{_summary(figures)}</p>
</header>
<main>
{"".join(parts)}
</main>
<footer>Made by kebiolm annotate. Figures count the mentions that were kept: those linked above the threshold.</footer>
</div>
<script>{page_assets.SCRIPT}</script>
</body>
</html>
"""


def _summary(figures: ReportFigures) -> str:
    manifest = figures.manifest
    settings, inputs = manifest.get("settings", {}), manifest.get("inputs", [])
    model = settings.get("model", {})
    said = [f"{len(inputs):,} input files"] if len(inputs) != 1 else [_text(inputs[0]["name"])]
    if model:
        said.append(f"mentions found by {_text(' '.join(filter(None, (model.get('name'), model.get('version')))))}")
    concepts = figures.knowledge_base.get("counts", {}).get("concepts")
    if concepts:
        said.append(f"linked to a knowledge base of {concepts:,} concepts")
    return ", ".join(said)


def _tiles(figures: ReportFigures) -> str:
    counts = figures.manifest["counts"]
    documents, aside = counts["documents_out"], counts["rejects"]
    kept = int(figures.lengths.sum())
    found, texts = counts.get("mentions_found"), counts.get("distinct_texts")
    tiles = [
        (f"{documents:,}", "documents"),
        (f"{aside:,}", f"set aside ({_share(aside, counts['documents_in'])} of the records)"),
        (f"{kept:,}", "linked mentions"),
        (_share(kept, documents, as_number=True), "linked mentions per document"),
        (f"{figures.concepts_used:,}", "concepts linked to"),
        (_share(figures.score_ones, kept), "of the links by an equal name (score 1)"),
    ]
    if found:
        tiles.insert(3, (_share(kept, found), f"of {found:,} found mentions linked"))
    if found and texts:
        tiles.append(
            (_share(found - texts, found), "of the found mentions repeat a text, so that it was searched once")
        )
    if figures.shards:
        tiles.append((f"{figures.shards['counts']['train']['fill_rate']:.1%}", "of the training positions filled"))
    return f'<ul class="tiles">{"".join(f"<li><b>{value}</b><span>{name}</span></li>" for value, name in tiles)}</ul>'


def _charts(figures: ReportFigures) -> str:
    step = (1 - figures.score_from) / SCORE_BINS
    lows = [figures.score_from + place * step for place in range(SCORE_BINS)]
    below_one = figures.scores.copy()
    below_one[-1] -= figures.score_ones
    ones = _share(figures.score_ones, int(figures.scores.sum()))
    scores = [
        Column(label=f"{low:.3f} to {low + step:.3f}", count=count, edge=f"{low:.2f}")
        for low, count in zip(lows, below_one.tolist(), strict=True)
    ]
    charts = (
        ("Length of mentions", _typical(figures.lengths, "characters"), columns_of_tally(figures.lengths, first=1)),
        ("Score of links", f"cosine to the nearest name; not drawn: {ones} that equal a name (score 1)", scores),
        ("Mentions per document", _typical(figures.per_document, "mentions"), columns_of_tally(figures.per_document)),
    )
    units = ("mentions", "mentions", "documents")
    return "".join(
        f"<section>{_headline(title, about)}{column_chart(columns, title=title, unit=unit)}</section>"
        for (title, about, columns), unit in zip(charts, units, strict=True)
    )


def _types(figures: ReportFigures) -> str:
    total = max(int(figures.lengths.sum()), 1)
    shown = list(figures.semantic_types.items())[:TYPES_SHOWN]
    most = max((count for _, count in shown), default=1)
    rows = [
        f'<tr><th scope="row">{_text(name)}</th>{bar(count / most)}<td class="number">{_share(count, total)}</td>'
        f'<td class="number soft">{count:,}</td></tr>'
        for name, count in shown
    ]
    rest = len(figures.semantic_types) - len(shown)
    about = "share of the linked mentions; a concept of two types counts for both"
    about += f"; {rest} rarer types are not shown" if rest else ""
    head = '<tr><th>type</th><th class="bar"></th><th class="number">share</th><th class="number">mentions</th></tr>'
    return _table("Semantic types", about, head, rows)


def _entities(figures: ReportFigures) -> str:
    most = max((count for _, count in figures.top), default=1)
    rows = [
        f'<tr><th scope="row">{_text(concept.name or concept.cui)}</th>'
        f'<td class="code"><code>{_text(concept.cui)}</code></td>{bar(count / most)}{_number_cell(count)}</tr>'
        for concept, count in figures.top
    ]
    about = f"the {len(figures.top)} of {figures.concepts_used:,} that are linked to most"
    if figures.unknown_concepts:
        about += f"; {figures.unknown_concepts:,} are not in this knowledge base"
    head = '<tr><th>concept</th><th>CUI</th><th class="bar"></th><th class="number">mentions</th></tr>'
    return _table("Most frequent concepts", about, head, rows)


def _rejects(figures: ReportFigures) -> str:
    reasons = figures.manifest.get("rejects_by_reason", {})
    if not reasons:
        return '<section class="plain">Every record of the input became a document.</section>'
    rows = []
    for reason, count in Counter(reasons).most_common():
        if reason not in figures.rejects:
            continue
        examples = "<br>".join(
            f"{_text(reject.source)} {_text(reject.doc_id)}: {_text(_cut(reject.detail, _DETAIL_CHARACTERS))}"
            for reject in figures.rejects[reason]
        )
        rows.append(
            f'<tr><th scope="row">{_text(reason)}</th>{_number_cell(count)}<td class="soft">{examples}</td></tr>'
        )
    hidden = len(reasons) - len(rows)
    about = "records that are no document of the result, with the first of each reason"
    about += f"; {hidden:,} rarer reasons are not shown" if hidden else ""
    head = '<tr><th>reason</th><th class="number">records</th><th>for example</th></tr>'
    return _table("Reasons", about, head, rows)


def _shards(shards: Mapping[str, Any]) -> str:
    names = ("documents", "sequences", "pieces", "fill_rate", "mentions_kept", "mentions_nil")
    splits = list(shards["counts"])
    rows = []
    for name in names:
        cells = []
        for split in splits:
            value = shards["counts"][split].get(name, 0)
            cells.append(f'<td class="number">{value:.2%}</td>' if isinstance(value, float) else _number_cell(value))
        rows.append(f'<tr><th scope="row">{name.replace("_", " ")}</th>{"".join(cells)}</tr>')
    lost = []
    for split in splits:
        counts = shards["counts"][split]
        lost.append(_number_cell(counts.get("mentions_in", 0) - counts.get("mentions_kept", 0)))
    rows.append(f'<tr><th scope="row">mentions without a link there</th>{"".join(lost)}</tr>')
    head = f"<tr><th></th>{''.join(f'<th class=number>{_text(split)}</th>' for split in splits)}</tr>"
    length = shards.get("settings", {}).get("max_length")
    about = f"sequences of at most {length:,} word pieces" if length else "packed from these documents"
    return _table("What was packed", about, head, rows)


def _examples(figures: ReportFigures) -> str:
    types = Counter(
        _shown_type(figures.example_concepts[mention.cui])
        for document in figures.examples
        for mention in document.mentions
    )
    ordered = sorted(types, key=lambda kind: (-types[kind], kind))
    hues = {kind: (_FIRST_HUE + place * _GOLDEN_ANGLE) % 360 for place, kind in enumerate(ordered)}
    legend = "".join(
        f'<li style="--h:{hues[kind]:g}"><i></i>{_text(kind)} <b>{types[kind]}</b></li>' for kind in ordered
    )
    sections = "".join(
        _example(number, document, figures.example_concepts, hues) for number, document in enumerate(figures.examples)
    )
    return (
        f'<ul class="legend" aria-label="Semantic types and their numbers of mentions">{legend}</ul>{sections}'
        if figures.examples
        else '<section class="plain">There is no document.</section>'
    )


def _example(number: int, document: Document, concepts: Mapping[str, Concept], hues: Mapping[str, float]) -> str:
    shown, cut = document.text[:EXAMPLE_CHARACTERS], len(document.text) > EXAMPLE_CHARACTERS
    parts, cards, done = [], [], 0
    for place, mention in enumerate(m for m in document.mentions if m.end <= len(shown)):
        concept, name = concepts[mention.cui], f"{number}-{place}"
        style = f"--h:{hues[_shown_type(concept)]:g}"
        parts.append(_text(shown[done : mention.start]))
        parts.append(
            f'<span class="mention" id="m{name}" role="button" tabindex="0" aria-expanded="false" '
            f'aria-controls="c{name}" style="{style}">{_text(shown[mention.start : mention.end])}</span>'
        )
        cards.append(f'<article class="card" id="c{name}" style="{style}">{_card(mention, concept)}</article>')
        done = mention.end
    parts.append(_text(shown[done:]) + (" …" if cut else ""))
    return (
        f'<section class="example"><h3>{_text(document.doc_id)}</h3><p class="text" dir="auto">{"".join(parts)}</p>'
        f'<div class="cards">{"".join(cards)}</div></section>'
    )


def _card(mention: Mention, concept: Concept) -> str:
    about = " · ".join([f"<code>{_text(concept.cui)}</code>", *map(_text, concept.semantic_types)])
    return (
        f'<h2>{_text(concept.name or concept.cui)}</h2><p class="about">{about}</p>'
        f"<table><tr><th scope=row>score</th>{bar(mention.score)}"
        f'<td class="weight">{mention.score:.3f}</td></tr></table>'
    )


def _settings(figures: ReportFigures) -> str:
    manifest = figures.manifest
    inputs = manifest.get("inputs", [])
    facts = [
        *_flat(manifest.get("settings", {})),
        *((f"knowledge base: {key}", str(value)) for key, value in _flat(figures.knowledge_base.get("settings", {}))),
    ]
    for given in inputs[:INPUTS_SHOWN]:
        facts.append((f"input {given['name']}", f"{readable_bytes(given['bytes'])}, SHA-256 {given['sha256']}"))
    if len(inputs) > INPUTS_SHOWN:
        total = sum(given["bytes"] for given in inputs)
        facts.append(("further inputs", f"{len(inputs) - INPUTS_SHOWN:,}; all together {readable_bytes(total)}"))
    rows = "".join(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in facts)
    return f'<section class="plain"><dl>{rows}</dl></section>'


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """The leaves of nested settings as (name, value)."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}, {key}" if name else str(key).replace("_", " "))
    elif value is not None:
        yield name, str(value)


def _part(title: str, body: str) -> str:
    return f'<h2 class="part">{title}</h2>\n{body}\n'


def _table(title: str, about: str, head: str, rows: Iterable[str]) -> str:
    return (
        f'<section class="plain">{_headline(title, about)}<div class="scroll"><table>'
        f"<thead>{head}</thead><tbody>{''.join(rows)}</tbody></table></div></section>"
    )


def _headline(title: str, about: str) -> str:
    return f'<h3>{title}</h3><p class="about">{about}</p>'


def _number_cell(value: int) -> str:
    return f'<td class="number">{value:,}</td>'


def _typical(tally: np.ndarray, unit: str) -> str:
    """Middle and 95th percentile of a tally, in words."""
    reached = np.cumsum(tally)
    if not reached[-1]:
        return f"no {unit}"
    middle, high = (int(np.searchsorted(reached, share * reached[-1])) for share in (0.5, 0.95))
    return f"half have up to {middle} {unit}, 95% up to {high}"


def _shown_type(concept: Concept) -> str:
    return concept.semantic_types[0] if concept.semantic_types else NO_TYPE


def _share(part: int, whole: int, *, as_number: bool = False) -> str:
    if not whole:
        return "-"
    return f"{part / whole:,.1f}" if as_number else f"{part / whole:.1%}"


def _cut(text: str, characters: int) -> str:
    return text if len(text) <= characters else f"{text[:characters]}…"


def _text(text: str) -> str:
    """Text of the data as HTML."""
    return escape(_CONTROL.sub("\N{REPLACEMENT CHARACTER}", text))
