"""The driver's screen: right figures after a resume, plain lines in a log, nothing that a text could break."""

from __future__ import annotations

from io import StringIO

from rich.console import Console

from preprocessing.watch.readable import readable_duration
from preprocessing.watch.screen import TIME_SHARES, JobScreen


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def plain_screen(clock: Clock, files: int = 2) -> tuple[JobScreen, StringIO]:
    log = StringIO()
    return JobScreen(files=files, console=Console(file=log, width=200, highlight=False), clock=clock), log


def drawn(screen: JobScreen, width: int = 120) -> str:
    screen._console = Console(file=StringIO(), width=width, force_terminal=True)
    console = Console(file=StringIO(), width=width)
    console.print(screen.draw())
    return console.file.getvalue()


def test_a_log_gets_one_line_in_ten_seconds_and_one_at_a_stage_s_end() -> None:
    clock = Clock()
    screen, log = plain_screen(clock)
    with screen:
        screen.begin("find", 8, 0, 800)
        for _ in range(8):
            clock.now += 4
            screen.done({"documents_in": 100, "mentions_found": 1000, "texts": 400, "set_aside": 1})
    lines = log.getvalue().splitlines()
    assert [line.split(",")[0] for line in lines] == ["find: 3 of 8 parts", "find: 6 of 8 parts", "find: 8 of 8 parts"]
    assert "300 of 800 documents, 25.0 documents/s, 250 mentions/s, cache hits at least 60.0%, 3 set aside" in lines[0]
    # Finding takes 32 seconds in all; the later stages will take their usual share of that.
    later = 32 * (TIME_SHARES["link"] + TIME_SHARES["join"]) / TIME_SHARES["find"]
    assert f"0:20 left, job {readable_duration(20 + later)} left" in lines[0]
    assert "done in 0:32" in lines[2] and "8 set aside" in lines[2]


def test_what_an_earlier_run_did_counts_in_the_totals_and_not_in_the_speed() -> None:
    clock = Clock()
    screen, _ = plain_screen(clock)
    before = {"documents_in": 600, "mentions_found": 6000, "texts": 1000, "set_aside": 5}
    screen.begin("find", 10, 6, 1000, 600, before)
    clock.now += 10
    screen.done({"documents_in": 100, "mentions_found": 1000, "texts": 500, "set_aside": 0})
    line = screen.line()
    assert "7 of 10 parts, 700 of 1,000 documents, 10.0 documents/s, 100 mentions/s" in line
    assert f"cache hits at least {1 - 1500 / 7000:.1%}, 5 set aside, 0:30 left" in line


def test_a_stage_that_was_done_before_needs_no_time() -> None:
    clock = Clock()
    screen, _ = plain_screen(clock)
    screen.begin("read", 2, 2, None, 100, {"documents_in": 100, "rejects": 3})
    screen.begin("find", 4, 0, 97)
    text = drawn(screen)
    assert "2 of 2 files" in text and "done before" in text
    assert text.count("waits") == 2 and "3 set aside" in text


def test_hits_are_exact_once_every_text_is_linked() -> None:
    clock = Clock()
    screen, _ = plain_screen(clock)
    screen.begin("find", 2, 0, 20)
    for _ in range(2):
        clock.now += 1
        screen.done({"documents_in": 10, "mentions_found": 100, "texts": 60})
    assert "cache hits at least 40.0%" in screen.line()
    screen.begin("link", 1, 0)
    clock.now += 1
    screen.done({"texts": 70})
    assert "cache hits 65.0%" in screen.line()


def test_what_is_joined_is_not_set_aside_twice() -> None:
    clock = Clock()
    screen, _ = plain_screen(clock)
    for stage, counts in (
        ("read", {"documents_in": 20, "rejects": 2}),
        ("find", {"documents_in": 18, "set_aside": 1}),
        ("join", {"documents_in": 20, "documents_out": 17, "rejects": 3}),
    ):
        screen.begin(stage, 1, 0)
        clock.now += 1
        screen.done(counts)
    assert "3 set aside" in screen.line()


def test_notes_are_texts_and_no_markup() -> None:
    clock = Clock()
    screen, log = plain_screen(clock)
    with screen:
        clock.now += 61
        screen.note("document [bold]7[/nothing] \x1b[2J set aside")
    assert log.getvalue() == "1:01 document [bold]7[/nothing] �[2J set aside\n"


def test_the_screen_fits_narrow_and_wide_terminals() -> None:
    clock = Clock()
    screen, _ = plain_screen(clock)
    screen.begin("read", 2, 0)
    clock.now += 1
    screen.done({"documents_in": 1_000_000})
    for width in (60, 80, 120):
        lines = drawn(screen, width).splitlines()
        assert all(len(line.rstrip()) <= width for line in lines)
        assert any("1 of 2 files" in line for line in lines)


def test_a_screen_without_a_stage_can_be_drawn() -> None:
    screen, _ = plain_screen(Clock())
    assert "0 of 2 files read" in drawn(screen)
