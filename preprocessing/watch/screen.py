"""What the terminal shows while abstracts are annotated: one screen, or plain lines where there is no terminal.

The driver says which stage begins, which units ended and what they counted; everything shown follows from that, so the
figures are right after a job was interrupted, too: totals hold the work of earlier runs, speeds only that of this one.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from kebiolm.console import PLAIN_LINE_EVERY_S, error_console
from preprocessing.watch.readable import printable, readable_duration
from preprocessing.watch.speed import MovingRate, cache_hits, job_seconds_left, seconds_left

READ, FIND, LINK, JOIN = "read", "find", "link", "join"
# The stages in their order, each with its usual share of a job's time; only the time left for the whole job needs them.
TIME_SHARES = {READ: 0.03, FIND: 0.90, LINK: 0.04, JOIN: 0.03}

UNIT_NAMES = {READ: "files", FIND: "parts", LINK: "buckets", JOIN: "parts"}
# Counts whose speed is worth seeing in each stage, and what they are called.
_SPEEDS = {
    READ: {"documents": "documents/s"},
    FIND: {"documents": "documents/s", "mentions_found": "mentions/s"},
    LINK: {"texts": "texts/s"},
    JOIN: {"documents": "documents/s"},
}
_REFRESHES_PER_SECOND = 2
_WIDE = 100  # from this width on a stage's documents have a column


@dataclass(kw_only=True)
class StageProgress:
    """One stage of this run.

    Attributes:
        units: units in all.
        units_done: units that are done, by this run or an earlier one.
        documents: documents in all, None where that is not known yet.
        documents_done: documents of the units that are done.
        counts: sums over the units that are done, as far as the driver said.
        rate: speed of this run.
        began: when this run began it.
        ended: when its last unit ended.
    """

    units: int
    units_done: int
    documents: int | None
    documents_done: int
    counts: Counter[str]
    rate: MovingRate
    began: float
    ended: float | None = None
    units_before: int = field(init=False)

    def __post_init__(self) -> None:
        self.units_before = self.units_done

    def add(self, now: float, counts: Mapping[str, int]) -> None:
        """Count one unit that ended."""
        self.units_done += 1
        self.documents_done += documents_of(counts)
        self.counts.update(counts)
        self.rate.add(now, {**counts, "documents": documents_of(counts), "units": 1})
        if self.units_done >= self.units:
            self.ended = now

    def seconds_left(self, now: float) -> float | None:
        """Time left, by documents where their number is known, else by units."""
        if self.documents:
            return seconds_left(self.documents, self.documents_done, self.rate.per_second("documents", now))
        return seconds_left(self.units, self.units_done, self.rate.per_second("units", now))

    def seconds_in_all(self, now: float) -> float | None:
        """Time that this stage would have taken this run, had none of it been done before."""
        done_now = self.units_done - self.units_before
        left = self.seconds_left(now)
        if not done_now or left is None:
            return None
        spent = (self.ended or now) - self.began
        return (spent + left) * self.units / (self.units - self.units_before)


class JobScreen:
    """The driver's view of an annotation job.

    On a terminal it is drawn twice a second; elsewhere it is one plain line every 10 seconds, at the end of a stage and
    for each note.

    Args:
        files: input files of the job.
        files_done: those that earlier runs have read.
        console: where to draw.
        clock: seconds, ever rising.
    """

    def __init__(
        self,
        *,
        files: int,
        files_done: int = 0,
        console: Console = error_console,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._files, self._files_done = files, files_done
        self._console, self._clock = console, clock
        self._began = self._last_line = clock()
        self._stages: dict[str, StageProgress] = {}
        self._line_is_due = False
        self._lock = threading.Lock()  # the screen is drawn by a thread of its own
        self._live: Live | None = None

    def __enter__(self) -> JobScreen:
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._live = Live(get_renderable=self.draw, console=self._console, refresh_per_second=_REFRESHES_PER_SECOND)
            self._live.start(refresh=True)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live is not None:
            self._live.stop()
        elif self._line_is_due:
            self._print_line()

    def begin(  # noqa: PLR0917
        self,
        stage: str,
        units: int,
        units_done: int,
        documents: int | None = None,
        documents_done: int = 0,
        counts_done: Mapping[str, int] | None = None,
    ) -> None:
        """A stage begins.

        Args:
            stage: "read", "find", "link" or "join".
            units: units of the stage in all.
            units_done: those that an earlier run did.
            documents: documents in all; None where it is not known.
            documents_done: those in the units that an earlier run did.
            counts_done: sums over these units, of the counts that `done` takes.
        """
        assert stage in TIME_SHARES, stage
        if self._live is None and self._line_is_due:
            self._print_line()
        now = self._clock()
        with self._lock:
            self._stages[stage] = StageProgress(
                units=units,
                units_done=units_done,
                documents=documents,
                documents_done=documents_done,
                counts=Counter(counts_done or {}),
                rate=MovingRate(now),
                began=now,
                ended=now if units_done >= units else None,
            )
            if stage == READ:
                self._files_done = units_done
        self._line_is_due, self._last_line = True, now

    def done(self, counts: Mapping[str, int]) -> None:
        """A unit of the stage that began last ended.

        Args:
            counts: what the unit counted; looked at are documents_in or documents_out, mentions_found, texts (distinct
                ones of the unit), and set_aside or rejects.
        """
        now = self._clock()
        with self._lock:
            stage = self._newest()
            self._stages[stage].add(now, counts)
            self._files_done += stage == READ
        self._line_is_due = True
        if self._live is None and (now - self._last_line >= PLAIN_LINE_EVERY_S or self._stages[stage].ended):
            self._print_line()

    def note(self, text: str) -> None:
        """Print a line that stays: a worker died, a document was set aside."""
        elapsed = readable_duration(self._clock() - self._began)
        self._console.print(f"[dim]{elapsed}[/] [yellow]{escape(printable(text))}[/]")

    def draw(self) -> RenderableType:
        """The screen as it is now."""
        with self._lock:
            now = self._clock()
            return Group(self._stage_table(now), self._figures(now))

    def line(self) -> str:
        """The state as one line of plain text."""
        with self._lock:
            now, stage = self._clock(), self._newest()
            progress = self._stages[stage]
            parts = [f"{_of(progress.units_done, progress.units)} {UNIT_NAMES[stage]}"]
            if progress.documents_done or progress.documents:
                parts.append(_of(progress.documents_done, progress.documents) + " documents")
            if progress.ended is None:
                parts += [f"{value} {name}" for name, value in self._speeds(stage, now)]
            else:
                parts.append(f"done in {readable_duration(progress.ended - progress.began)}")
            if (hits := self._cache_hits()) is not None:
                parts.append(f"cache hits {hits}")
            parts.append(f"{self._set_aside():,} set aside")
            if progress.ended is None:
                parts.append(f"{_duration_or_dash(progress.seconds_left(now))} left")
                parts.append(f"job {_duration_or_dash(self._job_seconds_left(now))} left")
        return f"{stage}: {', '.join(parts)}"

    def _print_line(self) -> None:
        self._last_line, self._line_is_due = self._clock(), False
        self._console.print(escape(self.line()))

    def _newest(self) -> str:
        assert self._stages, "no stage has begun"
        return list(self._stages)[-1]

    def _stage_table(self, now: float) -> Table:
        is_wide = self._console.width >= _WIDE
        table = Table.grid(padding=(0, 2), expand=False)
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True, width=24 if is_wide else 12)
        for _ in range(3 if is_wide else 2):
            table.add_column(no_wrap=True, justify="right")
        newest = list(TIME_SHARES).index(self._newest()) if self._stages else -1
        for place, stage in enumerate(TIME_SHARES):
            progress = self._stages.get(stage)
            if progress is None:
                state = "done before" if place < newest else "waits"
                cells = [Text(stage, "dim"), "", "", *([""] if is_wide else []), Text(state, "dim")]
            else:
                total = max(progress.units, 1)
                bar = ProgressBar(total=total, completed=progress.units_done if progress.units else 1)
                units = f"{_of(progress.units_done, progress.units)} {UNIT_NAMES[stage]}"
                documents = _of(progress.documents_done, progress.documents) if progress.documents_done else ""
                cells = [
                    Text(stage, "bold" if progress.ended is None else ""),
                    bar,
                    units,
                    *([f"{documents} documents" if documents else ""] if is_wide else []),
                    self._stage_time(progress, now),
                ]
            table.add_row(*cells)
        return table

    def _stage_time(self, progress: StageProgress, now: float) -> Text:
        if progress.ended is None:
            return Text(f"{_duration_or_dash(progress.seconds_left(now))} left", "cyan")
        if progress.units_before == progress.units:
            return Text("done before", "dim")
        return Text(f"done in {readable_duration(progress.ended - progress.began)}", "green")

    def _figures(self, now: float) -> Text:
        """Files, speeds, hits, what was set aside, and the job's time, as many in a row as fit."""
        figures = [("files read", _of(self._files_done, self._files))]
        at_work = bool(self._stages) and self._stages[self._newest()].ended is None
        if at_work:
            figures += self._speeds(self._newest(), now)
        figures += [
            ("cache hits", self._cache_hits() or "-"),
            ("set aside", f"{self._set_aside():,}"),
            ("running", readable_duration(now - self._began)),
        ]
        if at_work:
            figures.append(("left in all", _duration_or_dash(self._job_seconds_left(now))))
        lines, width = [Text()], 0
        for name, value in figures:
            figure = Text.assemble((value, "bold"), (f" {name}", "dim"))
            if width and width + 3 + len(figure) > self._console.width:
                lines.append(Text())
                width = 0
            lines[-1].append("   " if width else "").append_text(figure)
            width += len(figure) + (3 if width else 0)
        return Text("\n").join(lines)

    def _speeds(self, stage: str, now: float) -> list[tuple[str, str]]:
        """(name, figure) of a stage's speeds; a dash until its first unit ended."""
        rate = self._stages[stage].rate
        return [(shown, _speed_or_dash(rate.per_second(name, now))) for name, shown in _SPEEDS[stage].items()]

    def _cache_hits(self) -> str | None:
        """Share of mentions that need no search.

        Before linking, texts are counted as distinct within their part, so the share can only rise; then it is exact.
        """
        if FIND not in self._stages:
            return None
        mentions, texts, at_least = self._stages[FIND].counts["mentions_found"], self._stages[FIND].counts["texts"], ""
        link = self._stages.get(LINK)
        if link is not None and link.ended is not None and link.counts["texts"]:
            texts = link.counts["texts"]
        else:
            at_least = "at least "
        share = cache_hits(mentions, texts)
        return None if share is None else f"{at_least}{share:.1%}"

    def _set_aside(self) -> int:
        """Records set aside: what reading and finding counted; the parts that are joined count the same ones again."""
        by_stage = {
            stage: progress.counts["set_aside"] or progress.counts["rejects"]
            for stage, progress in self._stages.items()
        }
        joined = by_stage.pop(JOIN, 0)
        return max(joined, sum(by_stage.values()))

    def _job_seconds_left(self, now: float) -> float | None:
        if not self._stages:
            return None
        newest = self._newest()
        in_all = {stage: progress.seconds_in_all(now) for stage, progress in self._stages.items()}
        timed = {stage: seconds for stage, seconds in in_all.items() if seconds is not None}
        return job_seconds_left(newest, self._stages[newest].seconds_left(now), timed, TIME_SHARES)


def documents_of(counts: Mapping[str, int]) -> int:
    """Documents that a unit went through: those that came in, where that was counted."""
    return counts.get("documents_in", counts.get("documents_out", 0))


def _of(done: int, total: int | None) -> str:
    return f"{done:,}" if total is None else f"{done:,} of {total:,}"


def _speed_or_dash(per_second: float | None) -> str:
    if per_second is None:
        return "-"
    return f"{per_second:,.0f}" if per_second >= 100 else f"{per_second:.1f}"


def _duration_or_dash(seconds: float | None) -> str:
    return "-" if seconds is None else readable_duration(seconds)
