"""What the terminal shows: one console, progress bars, and user errors without tracebacks."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from kebiolm.errors import UserError

# A log file has no width of its own, and the 80 columns that are assumed there cut names short.
_WIDTH_WITHOUT_TERMINAL = 120

# Results go to stdout, progress and errors to stderr, so that `kebiolm ... --json | jq` works.
console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else _WIDTH_WITHOUT_TERMINAL)
error_console = Console(stderr=True, highlight=False, soft_wrap=True)

USER_ERROR_STATUS = 2
PLAIN_LINE_EVERY_S = 10.0


@contextmanager
def exit_on_user_error(*, say: bool = True) -> Iterator[None]:
    """Turn a user's mistake into one line on stderr and exit status 2; a file system's refusal counts as one.

    Args:
        say: print the line; false for processes beside one that prints it.
    """
    try:
        yield
        return
    except (UserError, OSError) as error:
        mistake = as_user_error(error)
    if say:
        say_user_error(mistake)
    sys.exit(USER_ERROR_STATUS)


def say_user_error(mistake: UserError) -> None:
    """Print a user's mistake as one line on stderr, once."""
    if not mistake.was_said:
        error_console.print(f"[bold red]error:[/] {escape(str(mistake))}")
        mistake.was_said = True


def as_user_error(error: UserError | OSError) -> UserError:
    """A user's mistake as it is; a file system's refusal as one."""
    if isinstance(error, UserError):
        return error
    where, got = error.filename or "file system", error.strerror or error
    mend = "check the path, its permissions and the free space"
    return UserError(where, got=got, expected="access to it", mend=mend)


@contextmanager
def stop_politely(say: str) -> Iterator[None]:
    """End the command in one line where a person or a scheduler stops it (SIGINT, SIGTERM), with status 128 + signal.

    Args:
        say: what can be done then.
    """

    def stop(number: int, frame: object) -> None:
        error_console.print(f"[yellow]stopped by {signal.Signals(number).name}:[/] {escape(say)}")
        sys.exit(128 + number)

    former = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


@contextmanager
def progress(description: str, total: int | None, unit: str) -> Iterator[Callable[..., None]]:
    """Show how far a long step is; yields `advance(count=1, note="")`.

    On a terminal this is a live bar with the time left. Elsewhere (log files, CI) it is one plain line every
    10 seconds and one at the end.

    Args:
        description: what is being done, in a few words.
        total: number of units in all, None when it is not known.
        unit: plural noun of what is counted, such as "documents".
    """
    if error_console.is_terminal:
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit),
            TimeRemainingColumn(),
            TextColumn("[dim]{task.fields[note]}"),
        )
        with Progress(*columns, console=error_console) as bars:
            task = bars.add_task(description, total=total, note="")
            yield lambda count=1, note="": bars.update(task, advance=count, note=escape(note))
        return

    started = last_line = time.monotonic()
    done, printed, last_note = 0, None, ""

    def print_line() -> None:
        nonlocal printed
        printed = done
        seconds = max(time.monotonic() - started, 1e-9)
        of_total = f"/{total}" if total is not None else ""
        note = f" {last_note}" if last_note else ""
        error_console.print(f"{description}: {done}{of_total} {unit}, {done / seconds:.1f}/s{escape(note)}")

    def advance(count: int = 1, note: str = "") -> None:
        nonlocal done, last_line, last_note
        done, last_note = done + count, note
        if time.monotonic() - last_line >= PLAIN_LINE_EVERY_S:
            last_line = time.monotonic()
            print_line()

    yield advance
    if printed != done:
        print_line()


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep `transformers` from drawing progress bars and reports while it loads or saves; errors still raise."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
