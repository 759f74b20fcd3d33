"""`kebiolm link`: texts from the command line or a file, results to the terminal, a page, or a program."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from kebiolm.console import console, error_console
from kebiolm.errors import UserError
from kebiolm.linking.html_page import write_html_page
from kebiolm.linking.linked_text import to_json
from kebiolm.linking.terminal import print_linked


def link(
    model: Path,
    text: str | None = None,
    *,
    file: Path | None = None,
    html: Path | None = None,
    as_json: bool = False,
    top: int = 5,
) -> None:
    """Link texts and show the result; with `as_json`, stdout has the JSON document and nothing else.

    Args:
        model: folder made by `kebiolm export`.
        text: one text, or None to read `file`.
        file: texts, one per line, "-" for stdin; blank lines are skipped.
        html: where to write a page with the mentions highlighted.
        as_json: print JSON instead of a table.
        top: concepts to show for each mention, the best one included.

    Raises:
        UserError: there is no text, or the model or the file cannot be read.
    """
    texts = _read_texts(text, file)

    # torch takes seconds to import; a missing text should not.
    from kebiolm.linking.api import KeBioLM

    linked = KeBioLM.from_pretrained(model).link(texts, top=top)
    if as_json:
        print(json.dumps(to_json(linked), ensure_ascii=False, indent=2))
    else:
        print_linked(linked, console)
    if html is not None:
        write_html_page(linked, html, model=model.resolve().name)
        error_console.print(f"page written: {html}", markup=False)


def _read_texts(text: str | None, file: Path | None) -> list[str]:
    if (text is None) == (file is None):
        got = "neither a text nor --file" if text is None else "a text and --file"
        raise UserError("link", got=got, expected="one of them", mend='give a "text" or --file FILE')
    if text is not None:
        return [text]
    try:
        raw = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    except OSError as error:
        raise UserError(
            file, got=error.strerror or error, expected="a text file", mend="give one text per line"
        ) from None
    lines = []
    # Only line feeds end a line: str.splitlines would also cut at characters that occur inside texts.
    for number, line in enumerate(raw.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        try:
            lines.append(line.decode("utf-8").strip())
        except UnicodeDecodeError as error:
            raise UserError(
                f"{file}:{number}", got=f"invalid UTF-8 ({error})", expected="UTF-8", mend="convert the file"
            ) from None
    texts = [line for line in lines if line]
    if not texts:
        raise UserError(file, got="no text", expected="one text per line", mend="give a file with text")
    return texts
