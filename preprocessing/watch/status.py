"""`kebiolm status`: what a job's manifests say, as a table, a line or JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from kebiolm.console import console as default_console
from preprocessing.packing.units import GROUPS, HELDOUT_GROUPS
from preprocessing.watch.read_status import FINISHED, RUNNING, STOPPED, JobStatus, StageStatus, read_status
from preprocessing.watch.readable import printable, readable_duration
from preprocessing.watch.screen import UNIT_NAMES as ANNOTATION_UNITS

WATCH_EVERY_S = 5.0

_UNIT_NAMES = {**ANNOTATION_UNITS, GROUPS: "shards", HELDOUT_GROUPS: "shards"}


def show_status(
    folder: Path, *, as_json: bool = False, watch: bool = False, console: Console = default_console
) -> None:
    """Print how far a job is.

    Args:
        folder: of a job that runs, was interrupted, or is finished.
        as_json: print JSON; with `watch`, a line of it every 5 seconds.
        watch: go on until the job is finished or the user interrupts.
        console: where to print.

    Raises:
        UserError: the folder is none of ours.
    """
    if not watch:
        status = read_status(folder)
        if as_json:
            _print_line(console, _json(status, indent=2))
        else:
            console.print(draw_status(status), soft_wrap=False)
        return
    try:
        if as_json or not console.is_terminal:
            for status in _until_finished(folder):
                _print_line(console, _json(status, indent=None) if as_json else status_line(status))
        else:
            with Live(console=console, auto_refresh=False) as live:
                for status in _until_finished(folder):
                    live.update(draw_status(status), refresh=True)
    except KeyboardInterrupt:
        return


def draw_status(status: JobStatus) -> RenderableType:
    """A status as a person reads it."""
    colour = {FINISHED: "green", RUNNING: "cyan", STOPPED: "yellow"}[status.state]
    title = Text.assemble((printable(status.folder), "bold"), f"  {status.kind}, ", (status.state, f"bold {colour}"))
    figures = Table.grid(padding=(0, 2))
    figures.add_column(style="dim")
    figures.add_column(overflow="fold")
    for name, value in _rows(status):
        figures.add_row(name, value)
    return Padding(Group(title, _stage_table(status), figures), (0, 0, 1, 0))


def status_line(status: JobStatus) -> str:
    """A status on one line, for a log."""
    parts = [status.state]
    if status.stage is not None:
        parts.append(f"{status.stage.name} {_units(status.stage)}")
    parts += [f"{count:,} {name.replace('_', ' ')}" for name, count in status.counts.items()]
    if status.left_s is not None:
        parts.append(f"{readable_duration(status.left_s)} left for this stage")
    return ", ".join(parts)


def _rows(status: JobStatus) -> Iterator[tuple[str, str]]:
    for name, count in status.counts.items():
        yield name.replace("_", " "), f"{count:,}"
    if status.state != FINISHED or status.set_aside:
        reasons = ", ".join(f"{count:,} {printable(reason)}" for reason, count in status.set_aside.items())
        total = sum(status.set_aside.values())
        yield "set aside", f"{total:,}" + (f" ({reasons})" if total else "")
    if status.stage is not None and status.stage.per_second and status.driver:
        yield "documents/s", f"{status.stage.per_second:,.1f} over the last minutes"
    if status.left_s is not None:
        yield "left", f"{readable_duration(status.left_s)} for this stage"
    if status.last_manifest_s is not None:
        yield "last manifest", f"{readable_duration(status.last_manifest_s)} ago"
    if status.state != FINISHED:
        held = {True: "holds the folder", False: "none", None: "unknown: this file system has no locks"}
        yield "driver", held[status.driver]
    yield "next", status.next


def _stage_table(status: JobStatus) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(width=24)
    table.add_column(no_wrap=True)
    at_work = status.stage
    for stage in status.stages:
        bar = ProgressBar(total=stage.total, completed=stage.done) if stage.total else ""
        style = "dim" if not stage.done and stage is not at_work else "bold" if stage is at_work else ""
        table.add_row(Text(stage.name, style), bar, Text(_units(stage), style))
    return table


def _units(stage: StageStatus) -> str:
    name = _UNIT_NAMES[stage.name]
    return f"{stage.done:,} {name}" if stage.total is None else f"{stage.done:,} of {stage.total:,} {name}"


def _until_finished(folder: Path) -> Iterator[JobStatus]:
    while True:
        status = read_status(folder)
        yield status
        if status.state == FINISHED:
            return
        time.sleep(WATCH_EVERY_S)


def _print_line(console: Console, line: str) -> None:
    """Print a text as it is, however long and whatever is in it."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def _json(status: JobStatus, *, indent: int | None) -> str:
    stage = status.stage
    return json.dumps({**asdict(status), "stage": stage and stage.name}, indent=indent, ensure_ascii=False)
