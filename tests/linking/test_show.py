"""The page, the table and the command."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from kebiolm.errors import UserError
from kebiolm.linking import Candidate, KeBioLM, LinkedMention, LinkedText
from kebiolm.linking.command import link
from kebiolm.linking.html_page import make_html_page
from kebiolm.linking.terminal import print_linked

NASTY = LinkedText(
    text='<script>alert(1)</script> & "x" [bold]y[/bold]',
    mentions=(
        LinkedMention(
            start=0,
            end=8,
            text="<script>",
            cui="C0000001",
            name="<img src=x onerror=alert(1)>",
            semantic_types=('"><b>',),
            score=0.75,
            probability=0.5,
            alternatives=(Candidate(cui="C0000002", name="a & [red]b", weight=0.125),),
        ),
    ),
)


class _Page(HTMLParser):
    """Collects tags, and the text outside style and script."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self._inside = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside not in {"style", "script"}:
            self.words += data


def test_page_escapes_everything_from_text_and_vocabulary() -> None:
    page = _Page(make_html_page([NASTY], model="<m>"))
    assert NASTY.text in page.words
    assert "<img src=x onerror=alert(1)>" in page.words
    tags = [tag for tag, _ in page.tags]
    assert tags.count("script") == 1 and "img" not in tags
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)


def test_page_is_self_contained_and_its_parts_point_at_each_other(kebiolm: KeBioLM) -> None:
    source = make_html_page(kebiolm.link(["Aspirin treats pain.", "Headache."]), model="m")
    assert not re.search(r"(src|href)=|https?://|url\(|@import", source)
    page = _Page(source)
    assert "3 mentions of 3 concepts in 2 texts" in page.words
    marks = [attributes for _, attributes in page.tags if attributes.get("class") == "mention"]
    cards = {attributes["id"] for _, attributes in page.tags if attributes.get("class") == "card"}
    assert len(marks) == 3
    assert {mark["aria-controls"] for mark in marks} == cards
    assert all(mark["tabindex"] == "0" and mark["role"] == "button" for mark in marks)


def test_page_shows_weights_and_what_they_leave() -> None:
    page = _Page(make_html_page([NASTY], model="m"))
    for number in ("0.750", "0.125"):
        assert number in page.words
    widths = [attributes["style"] for tag, attributes in page.tags if tag == "i" and "style" in attributes]
    assert widths == ["width:75.0%", "width:12.5%", "width:12.5%"]  # best, alternative, all others


def test_page_without_mentions() -> None:
    assert "No mention detected." in make_html_page([LinkedText(text="x", mentions=())], model="m")


def test_table_prints_markup_as_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    print_linked([NASTY, LinkedText(text="nothing", mentions=())], Console(width=120, color_system=None))
    printed = capsys.readouterr().out
    assert NASTY.text in printed
    assert "C0000001" in printed and "0.75" in printed and "[red]b" in printed
    assert "no mention detected" in printed


def test_table_prints_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    nasty = "\x1b]0;title\x07\x1b[2J\r\x08\x9b31m\x7f"
    candidate = Candidate(cui=nasty, name=nasty, weight=0.5)
    mention = replace(
        NASTY.mentions[0], start=len(nasty), end=len(nasty) + 4, text="pain", cui=nasty, name=nasty,
        semantic_types=(nasty,), alternatives=(candidate,),
    )  # fmt: skip
    print_linked([LinkedText(text=f"{nasty}pain\tand\nmore", mentions=(mention,))], Console(width=120))
    printed = capsys.readouterr().out
    assert not set(printed) & set("\x1b\x07\r\x08\x9b\x7f")
    assert "pain" in printed and "more" in printed


@pytest.mark.parametrize("width", [40, 60, 200])
def test_table_keeps_to_the_width(width: int, kebiolm: KeBioLM, capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(width=width, color_system=None, force_terminal=True)
    print_linked(kebiolm.link(["Aspirin treats severe headache and pain. " * 4]), console)
    lines = capsys.readouterr().out.splitlines()
    assert max(len(re.sub(r"\x1b\[[0-9;]*m", "", line).rstrip()) for line in lines) <= width


def test_command_prints_only_json_on_stdout(model_folder: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    command = [
        sys.executable,
        "-c",
        "from kebiolm.cli import main; main()",
        "link",
        str(model_folder),
        "Aspirin [b]",
        "--json",
        "--html",
        str(page),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["texts"][0]["mentions"][0]["text"] == "Aspirin"
    assert "Aspirin" in page.read_text(encoding="utf-8")


def test_file_has_one_text_per_line(model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "texts.txt"
    file.write_bytes("\ufeffAspirin.\r\n\n  na\u00efve\u2028pain\n".encode())
    link(model_folder, file=file, as_json=True)
    assert [text["text"] for text in json.loads(capsys.readouterr().out)["texts"]] == [
        "Aspirin.",
        "na\u00efve\u2028pain",
    ]


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"good\n\xff\xfe\n", ":2: got invalid UTF-8"), (b"\n \n", "no text"), (None, "No such file")],
)
def test_bad_file(tmp_path: Path, content: bytes | None, words: str) -> None:
    file = tmp_path / "texts.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=words):
        link(tmp_path, file=file)


def test_text_and_file_are_one_too_many(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither"):
        link(tmp_path)
    with pytest.raises(UserError, match="a text and --file"):
        link(tmp_path, "text", file=tmp_path)
