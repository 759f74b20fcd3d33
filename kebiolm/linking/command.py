"""`kebiolm link` and `kebiolm encode`: texts from the command line or a file; mentions to the terminal, a page or a
program, vectors to a file."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kebiolm.console import console, error_console, progress
from kebiolm.errors import UserError
from kebiolm.files import atomic_path
from kebiolm.linking.html_page import write_html_page
from kebiolm.linking.linked_text import to_json
from kebiolm.linking.terminal import print_linked

if TYPE_CHECKING:
    from kebiolm.linking.api import KeBioLM

VECTOR_FILES = (".npy", ".safetensors", ".jsonl")
_TEXTS_AT_ONCE = 256


def link(
    model: Path,
    text: str | None = None,
    *,
    file: Path | None = None,
    html: Path | None = None,
    as_json: bool = False,
    top: int = 5,
    index: Path | None = None,
) -> None:
    """Link texts and show the result; with `as_json`, stdout has the JSON document and nothing else.

    Args:
        model: folder made by `kebiolm export`.
        text: one text, or None to read `file`.
        file: texts, one per line, "-" for stdin; blank lines are skipped.
        html: where to write a page with the mentions highlighted.
        as_json: print JSON instead of a table.
        top: concepts to show for each mention, the best one included.
        index: made by `kebiolm index`, to search in place of the whole entity table; the JSON document then has null
            for each probability.

    Raises:
        UserError: there is no text, or the model, the index or the file cannot be read.
    """
    texts = read_texts(text, file, command="link")

    # torch takes seconds to import; a missing text should not.
    from kebiolm.linking.api import KeBioLM

    linked = KeBioLM.from_pretrained(model, index=index).link(texts, top=top)
    if as_json:
        print(json.dumps(to_json(linked), ensure_ascii=False, indent=2))
    else:
        print_linked(linked, console)
    if html is not None:
        write_html_page(linked, html, model=model.resolve().name)
        error_console.print(f"page written: {html}", markup=False)


def encode(
    model: Path,
    text: str | None = None,
    *,
    file: Path | None = None,
    out: Path,
    mentions: bool = False,
    index: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Write vectors of texts, or of their mentions, to a file whose ending says how.

    .npy         texts: [texts, hidden_size]. Mentions would not say which is which, and are refused.
    .safetensors "vectors" [texts, hidden_size]; of mentions [mentions, entity_size], and beside them "text" (number of
                 the text, from 0), "start" and "end" (characters), each [mentions] int64.
    .jsonl       a line for each text: {"text", "vector"}, or {"text", "mentions": [{"start", "end", "vector"}, ...]}.

    Args:
        model: folder made by `kebiolm export`.
        text: one text, or None to read `file`.
        file: texts, one per line, "-" for stdin; a blank line is a text without pieces, so that numbers stay those of
            the lines.
        out: file to write.
        mentions: vectors of the detected mentions in the space of entities, in place of those of whole texts.
        index: made by `kebiolm index`, to search in place of the whole entity table.
        overwrite: replace `out` if it exists.

    Raises:
        UserError: there is no text, the model, the index or the file cannot be read, or `out` cannot be written.
    """
    allowed = VECTOR_FILES[1:] if mentions else VECTOR_FILES
    if out.suffix not in allowed:
        what = "vectors of mentions" if mentions else "vectors"
        expected = f"a file for {what}: {', '.join(allowed)}"
        raise UserError(out, got=f"the ending {out.suffix!r}", expected=expected, mend="choose one of these")
    refuse_existing(out, overwrite=overwrite)
    texts = read_texts(text, file, command="encode", every_line=True)

    from kebiolm.linking.api import KeBioLM

    loaded = KeBioLM.from_pretrained(model, index=index)
    with progress("encoding", len(texts), "texts") as advance, atomic_path(out) as temporary:
        chunks = [texts[start : start + _TEXTS_AT_ONCE] for start in range(0, len(texts), _TEXTS_AT_ONCE)]
        if out.suffix == ".jsonl":
            with open(temporary, "w", encoding="utf-8") as lines:
                for chunk in chunks:
                    for entry in _json_entries(loaded, chunk, mentions=mentions):
                        lines.write(json.dumps(entry, ensure_ascii=False) + "\n")
                    advance(len(chunk))
        else:
            arrays = []
            for chunk in chunks:
                arrays.append(_arrays(loaded, chunk, mentions=mentions))
                advance(len(chunk))
            _write_arrays(arrays, temporary, as_npy=out.suffix == ".npy")
    error_console.print(f"vectors written: {out}", markup=False)


def _json_entries(model: KeBioLM, texts: Sequence[str], *, mentions: bool) -> list[dict[str, Any]]:
    if not mentions:
        vectors = model.encode(texts)
        return [{"text": text, "vector": _numbers(vector)} for text, vector in zip(texts, vectors, strict=True)]
    return [
        {
            "text": text,
            "mentions": [
                {"start": start, "end": end, "vector": _numbers(vector)}
                for (start, end), vector in zip(spans.tolist(), vectors, strict=True)
            ],
        }
        for text, (spans, vectors) in zip(texts, model.locate_and_encode_mentions(texts), strict=True)
    ]


def _numbers(vector: np.ndarray) -> list[float]:
    """Each with the fewest digits that give the same float32 again."""
    return [float(str(number)) for number in vector]


def _arrays(model: KeBioLM, texts: Sequence[str], *, mentions: bool) -> dict[str, np.ndarray]:
    if not mentions:
        return {"vectors": model.encode(texts)}
    spans, vectors = zip(*model.locate_and_encode_mentions(texts), strict=True)
    numbers = np.repeat(np.arange(len(texts)), [len(of_text) for of_text in spans])
    start, end = np.concatenate(spans).T
    return {"vectors": np.concatenate(vectors), "text": numbers, "start": start.copy(), "end": end.copy()}


def _write_arrays(chunks: Sequence[dict[str, np.ndarray]], path: Path, *, as_npy: bool) -> None:
    for number, chunk in enumerate(chunks):
        if "text" in chunk:
            chunk["text"] += number * _TEXTS_AT_ONCE
    whole = {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}
    if as_npy:
        with open(path, "wb") as file:  # given a name, numpy would add an ending to it
            np.save(file, whole["vectors"])
        return
    from safetensors.numpy import save_file

    save_file(whole, path)


def refuse_existing(path: Path, *, overwrite: bool) -> None:
    """Refuse an output before the work, not after it.

    Raises:
        UserError: `path` is a folder, or a file that may not be replaced.
    """
    if path.is_dir() or (path.exists() and not overwrite):
        got = "a folder" if path.is_dir() else "a file that exists"
        raise UserError(path, got=got, expected="a new file", mend="choose another file or give --overwrite")


def read_texts(text: str | None, file: Path | None, *, command: str, every_line: bool = False) -> list[str]:
    """The one text, or those of a file, one per line.

    Args:
        text: one text, or None to read `file`.
        file: texts, one per line, "-" for stdin.
        command: named in the messages.
        every_line: keep blank lines and spaces at the ends, so that results have the numbers of the lines.

    Raises:
        UserError: there is no text or two sources of them, or the file cannot be read; `command` is named.
    """
    if (text is None) == (file is None):
        got = "neither a text nor --file" if text is None else "a text and --file"
        raise UserError(command, got=got, expected="one of them", mend='give a "text" or --file FILE')
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
            lines.append(line.decode("utf-8").removesuffix("\r"))
        except UnicodeDecodeError as error:
            raise UserError(
                f"{file}:{number}", got=f"invalid UTF-8 ({error})", expected="UTF-8", mend="convert the file"
            ) from None
    if lines[-1] == "":  # what is behind the last line feed is no line
        lines.pop()
    texts = lines if every_line else [line.strip() for line in lines if line.strip()]
    if not any(line.strip() for line in texts):
        raise UserError(file, got="no text", expected="one text per line", mend="give a file with text")
    return texts
