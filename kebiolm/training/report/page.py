"""The run's page as one self-contained HTML document; every text of the data is escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from kebiolm.linking import page_assets
from kebiolm.tracking.metric_names import HELDOUT, TRAIN
from kebiolm.tracking.summary import BASELINE
from kebiolm.training.report.evaluation_files import LABELS
from kebiolm.training.report.line_chart import Curve, legend, line_chart
from kebiolm.training.report.linked_texts import linked_examples
from kebiolm.training.report.style import STYLE

_LOSSES = {"loss": "sum", "loss_mlm": "masked words", "loss_detection": "detection", "loss_linking": "linking"}
_ACCURACIES = {
    "masked_accuracy": "masked words right",
    "detection_f1": "detection F1",
    "linking_accuracy_at_1": "linking, ranked first",
    "linking_accuracy_at_10": "linking, first ten",
}
_SMALL = {
    "learning_rate": ("Learning rate", "of AdamW"),
    "gradient_norm": ("Gradient norm", "L2 over all parameters, before clipping"),
    "tokens_per_second": ("Speed", "tokens per second of all processes, without padding"),
    "loss_scale": ("Loss scale", "fp16; falls by half when gradients overflow"),
}
_TYPES_SHOWN = 40

Records = Sequence[Mapping[str, Any]]


def make_report_page(name: str, records: Records, latest: Mapping[str, Any], parameters: Mapping[str, str]) -> str:
    """One HTML document without references to other files; equal figures give equal bytes.

    Args:
        name: of the run.
        records: all figures, oldest first, as the spool has them.
        latest: the newest evaluation, as `evaluation_files.LATEST` holds it; empty where nothing is held out.
        parameters: settings and environment.
    """
    curves = _section("Losses", "means per target; training as it went, held out without dropout", _losses(records))
    parts = [
        _part("Figures", _tiles(records, latest, parameters)),
        _part("Curves", f'{curves}<div class="columns">{_accuracies(records)}{_small_charts(records)}</div>'),
    ]
    if latest:
        parts += [
            _part("Labels of the held-out words", _confusion(latest["confusion"])),
            _part("Linking by semantic type", _types(latest["by_type"])),
            _part("Held-out texts", linked_examples(latest["examples"])),
        ]
    parts.append(_part("Settings", _settings(parameters)))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>{escape(name)}: pretraining report</title>
<style>{page_assets.STYLE}{STYLE}</style>
</head>
<body>
<div class="page">
<header>
<h1>Pretraining run {escape(name)}</h1>
<p class="summary">{_summary(records, latest, parameters)}</p>
</header>
<main>
{"".join(parts)}
</main>
<footer>Made by kebiolm pretrain from metrics.jsonl and the newest evaluation in the run's folder.</footer>
</div>
<script>{page_assets.SCRIPT}</script>
</body>
</html>
"""


def _summary(records: Records, latest: Mapping[str, Any], parameters: Mapping[str, str]) -> str:
    total = parameters.get("run.steps_total")
    said = [f"step {records[-1]['step']:,}" + (f" of {int(total):,}" if total else "")]
    if latest:
        said.append(f"newest evaluation after step {latest['step']:,}")
    if "deepspeed.zero_stage" in parameters:
        stage, precision = parameters["deepspeed.zero_stage"], parameters["deepspeed.precision"]
        processes = int(parameters["environment.world_size"])
        said.append(f"ZeRO {stage}, {precision}, {processes} process{'es' if processes > 1 else ''}")
    return escape(", ".join(said))


def _tiles(records: Records, latest: Mapping[str, Any], parameters: Mapping[str, str]) -> str:
    tiles = []
    for key, name in _LOSSES.items():
        if (curve := _points(records, HELDOUT, key)) and latest:
            tiles.append((f"{curve[-1][1]:.3f}", f"held-out loss, {name} (began at {curve[0][1]:.3f})"))
    for key, name in _ACCURACIES.items():
        if latest:
            tiles.append((f"{latest['metrics'][key]:.1%}", name))
    if BASELINE in parameters:
        tiles.append((f"{float(parameters[BASELINE]):.1%}", "linking, if always the most frequent entity"))
    if speed := _points(records, TRAIN, "tokens_per_second"):
        middle = sorted(value for _, value in speed)[len(speed) // 2]
        tiles.append((f"{middle:,.0f}", "tokens per second, median"))
    if memory := _points(records, TRAIN, "peak_memory_mib"):
        tiles.append((f"{memory[-1][1]:,.0f} MiB", "most memory of the first process"))
    if skipped := _points(records, TRAIN, "skipped_steps"):
        tiles.append((f"{skipped[-1][1]:,.0f}", "steps left out (gradients not finite)"))
    return f'<ul class="tiles">{"".join(f"<li><b>{value}</b><span>{name}</span></li>" for value, name in tiles)}</ul>'


def _losses(records: Records) -> str:
    curves = []
    for colour, (key, name) in enumerate(_LOSSES.items()):
        if points := _points(records, TRAIN, key):
            curves.append(Curve(name=f"{name}, training", points=points, colour=colour))
        if points := _points(records, HELDOUT, key):
            curves.append(Curve(name=f"{name}, held out", points=points, colour=colour, is_dotted=True))
    return legend(curves) + line_chart(curves, title="Losses over optimizer steps") if curves else ""


def _accuracies(records: Records) -> str:
    curves = [
        Curve(name=name, points=points, colour=colour, is_dotted=True)
        for colour, (key, name) in enumerate(_ACCURACIES.items())
        if (points := _points(records, HELDOUT, key))
    ]
    if not curves:
        return ""
    body = legend(curves) + line_chart(curves, title="Accuracies over optimizer steps", is_small=True)
    return _section("Held-out accuracies", "0 to 1, over optimizer steps", body)


def _small_charts(records: Records) -> str:
    charts = []
    for key, (title, about) in _SMALL.items():
        if points := _points(records, TRAIN, key):
            curve = Curve(name=title.lower(), points=points, colour=1)
            charts.append(_section(title, about, line_chart([curve], title=title, is_small=True)))
    return "".join(charts)


def _confusion(confusion: Sequence[Sequence[int]]) -> str:
    head = "".join(f'<th scope="col">predicted {label}</th>' for label in LABELS)
    rows = []
    for label, counts in zip(LABELS, confusion, strict=True):
        total = max(sum(counts), 1)
        cells = "".join(
            f'<td style="--share:{0.6 * count / total:.3f}">{count:,}<small>{count / total:.1%}</small></td>'
            for count in counts
        )
        rows.append(f'<tr><th scope="row">{label}</th>{cells}</tr>')
    about = "word pieces by gold label (rows) and predicted label: B begins a mention, I is inside one, O is outside"
    table = f'<table class="confusion"><thead><tr><th></th>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    return _section("Confusion of labels", about, f'<div class="scroll">{table}</div>')


def _types(by_type: Sequence[tuple[str, Sequence[int]]]) -> str:
    rows = []
    for name, (mentions, first, ten) in by_type[:_TYPES_SHOWN]:
        share = first / max(mentions, 1)
        bar = f'<td class="bar" aria-hidden="true"><span><i style="width:{100 * share:.1f}%"></i></span></td>'
        rows.append(
            f'<tr><th scope="row">{escape(name)}</th>{bar}<td class="number">{share:.1%}</td>'
            f'<td class="number">{ten / max(mentions, 1):.1%}</td><td class="number">{mentions:,}</td></tr>'
        )
    hidden = len(by_type) - len(rows)
    about = "share of the annotated mentions whose entity is ranked first; an entity of two types counts for both"
    about += f"; {hidden} rarer types are in linking_by_type.csv" if hidden > 0 else ""
    head = '<th>type</th><th class="bar"></th><th class="number">ranked first</th><th class="number">in first ten</th>'
    table = (
        f'<table><thead><tr>{head}<th class="number">mentions</th></tr></thead><tbody>{"".join(rows)}</tbody></table>'
    )
    return _section("Linking accuracy", about, f'<div class="scroll">{table}</div>')


def _settings(parameters: Mapping[str, str]) -> str:
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in sorted(parameters.items()))
    details = f"<details><summary>{len(parameters)} settings</summary><dl>{rows}</dl></details>"
    return f'<section class="plain">{details}</section>'


def _points(records: Records, kind: str, name: str) -> tuple[tuple[int, float], ...]:
    return tuple(
        (record["step"], record["metrics"][name])
        for record in records
        if record["kind"] == kind and name in record["metrics"]
    )


def _part(title: str, body: str) -> str:
    return f'<h2 class="part">{title}</h2>\n{body}\n'


def _section(title: str, about: str, body: str) -> str:
    return f'<section class="plain"><h3>{escape(title)}</h3><p class="about">{escape(about)}</p>{body}</section>'
