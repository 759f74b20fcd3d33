"""A plan as a person reads it."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kebiolm.planning.flops import TRAINING, Range, training_flops
from kebiolm.planning.memory import PARTS
from kebiolm.planning.memory import RUNTIME as LIBRARIES
from kebiolm.planning.plan import Plan

MIB, GIB = 2**20, 2**30
_BAR = 32
_STYLES = ("blue", "cyan", "magenta", "green", "bright_green", "yellow", "bright_yellow", "red", "bright_red")
_WHAT = {
    "weights": "as the model computes with them",
    "fp32 master weights": "this process's share",
    "AdamW's moments": "two fp32 numbers for each of these",
    "gradients": "summed, and on their way",
    "gradient buckets": "to send many at a time",
    "activations": "of one micro batch",
    "attention weights": "kept on CPUs with dropout; else sums",
    "language-model head": "scores at the masked positions",
    "entity search": "work space of its backward pass",
    "libraries": "context and communication (assumed)",
    "allocator": "10% of what comes and goes (assumed)",
}


def print_plan(made: Plan, console: Console) -> None:
    """Print tables of memory and of time, and what they rest on."""
    console.print(memory_table(made))
    console.print(time_table(made))
    for warning in made.warnings:
        console.print(f"[yellow]{warning}[/]", soft_wrap=False)
    for source in sources(made):
        console.print(source, style="dim", soft_wrap=False, highlight=False)


def memory_table(made: Plan) -> Table:
    """Parts of a card's memory, with bars against the whole of it."""
    memory, card, workload = made.memory, made.card, made.workload
    whole = card.memory or memory.total
    title = (
        f"Memory of one {'process' if card.is_cpu else card.name} of {workload.processes}: "
        f"ZeRO-{workload.zero.stage}, {workload.zero.precision}, micro batch "
        f"{workload.config.optimization.micro_batch_size} x {workload.data.length}"
    )
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(style="dim")
    before = 0
    for part, size in memory.parts.items():
        style = _STYLES[PARTS.index(part) % len(_STYLES)]
        note = _WHAT[part]
        if card.is_cpu and part == LIBRARIES:
            note = "loaded at first use (measured)"
        table.add_row(part, _size(size, whole), _bar(before, size, whole, style), note)
        before += size
    table.add_section()
    free = "" if card.memory is None else f"{before / whole:.0%} of {card.memory / GIB:.1f} GiB that programs see"
    table.add_row("[bold]highest[/]", f"[bold]{_size(before, whole)}[/]", _bar(0, before, whole, "white"), free)
    table.add_row("    when", "", Text(memory.moment), "")
    table.add_row(
        "    of it, entity table", _size(memory.entity_table, whole), "", f"{made.parameters.entities:,} numbers"
    )
    if memory.host:
        table.add_row("host memory, offloaded", _size(memory.host, whole), "", "of each process, not checked")
    return table


def time_table(made: Plan) -> Table:
    """Steps, tokens, hours and cost."""
    workload, config = made.workload, made.workload.config
    optimization = config.optimization
    table = Table(title=f"Run on {workload.processes} x {made.card.name}", title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column(style="dim")
    trained = made.parameters.trained(freeze_entities=config.entities.freeze)
    table.add_row("parameters", f"{made.parameters.total / 1e6:,.1f} M", f"{trained / 1e6:,.1f} M trained")
    table.add_row(
        "global batch",
        f"{optimization.global_batch_size:,}",
        f"{workload.processes} x micro batch {optimization.micro_batch_size} x {workload.micro_batches} accumulated",
    )
    epochs = workload.steps * optimization.global_batch_size / workload.data.sequences
    table.add_row("steps", f"{workload.steps:,}", f"{epochs:.2g} passes over {workload.data.sequences:,} sequences")
    table.add_row("tokens", _tokens(made.real_tokens), f"{workload.data.fill:.1%} of positions filled")
    operations = training_flops(workload, made.flops, executed=False)
    table.add_row("operations", f"{operations:.3g} FLOPs", _shares(made), end_section=True)
    table.add_row(*_row_of_hours("training", made.training, "likely (from fast to slow)"))
    if workload.data.heldout is None:
        table.add_row("evaluation", "not counted", "without shards the held-out sequences are not known")
    if made.evaluation.high > 0:
        table.add_row(*_row_of_hours("evaluation", made.evaluation, f"every {config.evaluation.every_steps:,} steps"))
    likely = made.training.likely * 3600
    table.add_row("tokens/s, all cards", f"{made.real_tokens / likely:,.0f}", "real tokens, likely")
    table.add_row("seconds per step", f"{likely / workload.steps:,.2f}", "likely")
    if made.cost is not None:
        table.add_row("cost", _span(made.cost), "in the unit of the price")
    return table


def sources(made: Plan) -> Iterator[str]:
    """What the figures rest on, a sentence each."""
    workload, card = made.workload, made.card
    precision = workload.zero.precision
    share = card.utilisation[precision]
    yield f"Data: {workload.data.source}."
    start = workload.config.model.init_from
    if start and not (start / "config.json").is_file():
        yield f"{start} is not there: sizes of the recipe, which are BERT-base's where it names none."
    if card.is_cpu:
        yield "Memory: arithmetic, within 15% of what such runs took when measured (tests/benchmarks/results/plan.md)."
    else:
        yield (
            "Memory: arithmetic after DeepSpeed 0.19 and the model's own operations; the same arithmetic is within 15% "
            "of what runs on a CPU were measured to take. No GPU was measured."
        )
    yield (
        f"Time: {card.tflops[precision]:g} TFLOPS peak in {precision} (data sheet) at {share.low:.0%} - "
        f"{share.likely:.0%} - {share.high:.0%} utilisation ({share.source}). No GPU was measured."
        if not card.is_cpu
        else f"Time: {share.low:.0%} - {share.likely:.0%} - {share.high:.0%} {share.source}."
    )
    if workload.processes > 1 and not card.is_cpu:
        yield "Gradients are taken to travel while others are computed: a slow network between nodes adds to this."
    yield "Not counted: start, checkpoints, waiting for a queue."


def _shares(made: Plan) -> str:
    """How the operations are divided."""
    flops = made.flops
    parts = {"layers": flops.layers, "attention": flops.attention, "head": flops.head, "entities": flops.entities}
    shares = ", ".join(f"{name} {part / flops.total:.0%}" for name, part in parts.items())
    return f"{shares}; {TRAINING * flops.total:.3g} a sequence"


def _bar(before: int, size: int, whole: int, style: str) -> Text:
    """A piece of a bar as wide as the card's memory, at its place."""
    start = round(_BAR * before / whole)
    end = max(round(_BAR * (before + size) / whole), start + 1)
    return Text.assemble(" " * start, ("\u2588" * (end - start), style), ("\u00b7" * max(_BAR - end, 0), "dim"))


def _size(size: float, whole: float) -> str:
    """In GiB, or MiB where all of it is little."""
    return f"{size / GIB:,.2f} GiB" if whole >= GIB else f"{size / MIB:,.0f} MiB"


def _tokens(count: float) -> str:
    return f"{count / 1e9:,.3g} billion" if count >= 1e9 else f"{count / 1e6:,.3g} million"


def _row_of_hours(what: str, value: Range, note: str) -> tuple[str, str, str]:
    """Hours, or minutes where they are few."""
    if value.high >= 1:
        return f"hours of {what}", _span(value), note
    minutes = Range(low=value.low * 60, likely=value.likely * 60, high=value.high * 60)
    return f"minutes of {what}", _span(minutes), note


def _span(value: Range) -> str:
    """A likely value with its range."""

    def form(number: float) -> str:
        return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"

    return f"{form(value.likely)} ({form(value.low)} to {form(value.high)})"
