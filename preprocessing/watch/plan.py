"""`kebiolm plan-annotation`: what a large corpus will cost, from a measured sample of it."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from kebiolm.console import console as default_console
from kebiolm.errors import UserError
from preprocessing.annotation.job import list_inputs
from preprocessing.watch.plan_arithmetic import (
    CHARACTERS_PER_PIECE,
    FILL_RATE,
    MAX_LENGTH,
    Growth,
    Plan,
    Range,
    fit_growth,
    make_plan,
    seconds_per_document,
)
from preprocessing.watch.plan_measure import SampleCosts, measure
from preprocessing.watch.readable import readable_bytes, readable_duration

PER_NODE = (8, 16, 32, 64)


def plan_annotation(
    docs: int,
    sample: Sequence[Path],
    kb: Path,
    model: str,
    *,
    workers: int = 16,
    tokenizer: Path | None = None,
    as_json: bool = False,
    console: Console = default_console,
) -> dict[str, Any]:
    """Measure a sample, extrapolate, and print both.

    Args:
        docs: documents of the corpus.
        sample: files of abstracts like the corpus's, or folders of them; at most 2,000 documents are annotated.
        kb: folder of the knowledge base.
        model: spaCy pipeline, or "dictionary".
        workers: workers to plan for.
        tokenizer: folder of the shards' tokenizer, for their number of word pieces.
        as_json: print the figures as JSON instead.
        console: where to print.

    Returns:
        {"machine", "measured", "predicted"} as JSON has it.

    Raises:
        UserError: a number is too small, a file cannot be read, or the sample has too few documents.
    """
    for option, value in (("--docs", docs), ("--workers", workers)):
        if value < 1:
            raise UserError(option, got=value, expected="at least 1", mend=f"give another {option}")
    machine = describe_machine()
    costs = measure(list_inputs(sample), kb, model, tokenizer=tokenizer)
    plan = make_plan(costs, docs=docs, workers=workers, per_node=(*PER_NODE, workers))
    figures = {"machine": machine, "measured": asdict(costs), "predicted": asdict(plan)}
    if as_json:
        console.print_json(json.dumps(figures))
        return figures
    console.print(measured_table(costs, machine))
    console.print(predicted_table(plan))
    for caution in cautions(costs, plan, machine):
        console.print(caution, style="dim", soft_wrap=False)
    return figures


def describe_machine() -> dict[str, Any]:
    """Processor, cores that this process may use, and how busy they were a minute ago."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": models[0] if models else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 1),
    }


def measured_table(costs: SampleCosts, machine: dict[str, Any]) -> Table:
    """What the sample cost."""
    title = f"Measured: {costs.documents:,} abstracts, one core of {machine['processor']}"
    table = _table(f"{title} ({machine['cores']} cores, load {machine['load']})")
    seconds = seconds_per_document(costs)
    growth = fit_growth(costs.curve)
    table.add_row("finding mentions", f"{1 / seconds.likely:,.1f} abstracts/s on a core")
    if costs.link_s:
        table.add_row("linking", f"{costs.texts / costs.link_s:,.0f} texts/s on a core, {costs.names:,} names")
    table.add_row("reading and joining", f"{1e3 * (costs.read_s + costs.join_s) / costs.documents:,.2f} ms/abstract")
    table.add_row("mentions", f"{costs.mentions / costs.documents:,.1f} per abstract")
    table.add_row("distinct texts", f"{costs.texts:,} of {costs.mentions:,} mentions")
    if growth is not None:
        table.add_row("their growth", _growth(growth))
    if costs.pieces is not None:
        table.add_row("word pieces", f"{costs.pieces / costs.documents:,.1f} per abstract")
    table.add_row("annotated documents", f"{readable_bytes(costs.part_bytes / costs.documents)} per abstract")
    table.add_row("memory of a worker", readable_bytes(costs.worker_bytes))
    table.add_row("link index, shared by a node", readable_bytes(costs.index_bytes))
    table.add_row("start of a worker", readable_duration(costs.start_s))
    return table


def predicted_table(plan: Plan) -> Table:
    """What the corpus will need."""
    table = _table(f"Predicted: {plan.docs:,} abstracts, {plan.workers:,} workers")
    table.add_row("core-hours", _span(plan.core_hours, "{:,.1f}"))
    table.add_row("    of these, linking", _span(plan.link_core_hours, "{:,.2f}"))
    table.add_row(f"hours with {plan.workers:,} free cores", _span(plan.wall_hours, "{:,.2f}"), end_section=True)
    table.add_row("mentions", f"{plan.mentions:,.0f}")
    table.add_row("distinct texts to link", _span(plan.texts, "{:,.0f}"), end_section=True)
    for number, size in plan.node_bytes.items():
        table.add_row(f"memory of a node with {number:,} worker{'s' * (number != 1)}", readable_bytes(size))
    table.add_row("memory of the driver, beside", readable_bytes(plan.driver_bytes), end_section=True)
    work = plan.work_bytes
    table.add_row("disk for work files", f"{readable_bytes(work.high)} at most, {plan.work_files:,} files")
    table.add_row("annotated documents", f"{readable_bytes(plan.annotated_bytes)}, {plan.annotated_files:,} files")
    table.add_row("training shards", f"{readable_bytes(plan.shard_bytes)}, {plan.shard_files:,} files")
    table.add_row(f"    sequences of {MAX_LENGTH}", f"{plan.sequences:,.0f}")
    return table


def cautions(costs: SampleCosts, plan: Plan, machine: dict[str, Any]) -> Iterator[str]:
    """What the prediction rests on, a sentence each."""
    if machine["load"] > machine["cores"] / 2:
        yield f"The machine was busy (load {machine['load']} on {machine['cores']} cores): it looks slower than it is."
    factor = plan.docs / costs.documents
    yield f"Extrapolated {factor:,.0f}-fold: ranges cover the sample's spread, not that it may be unlike the corpus."
    yield "Cores must be free and as fast when all work; a hyper-thread is about half a core."
    yield f"The index is that of this knowledge base ({costs.names:,} names); a larger one is slower and larger."
    if costs.pieces is None:
        yield f"No --tokenizer: a word piece is taken as {CHARACTERS_PER_PIECE} characters."
    yield f"Shards: {FILL_RATE:.0%} of the positions filled."


def _table(title: str) -> Table:
    table = Table(title=title, show_header=False, title_justify="left")
    table.add_column()
    table.add_column(justify="right")
    return table


def _growth(growth: Growth) -> str:
    low, high = growth.exponent - growth.doubt_below, growth.exponent + growth.doubt_above
    return f"mentions to the power of {growth.exponent:.2f} ({low:.2f} to {high:.2f})"


def _span(value: Range, form: str) -> str:
    """A likely value with its range."""
    return f"{form.format(value.likely)} ({form.format(value.low)} to {form.format(value.high)})"
