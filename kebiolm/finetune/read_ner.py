"""Entity recognition data: one word and its B/I/O label on each line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kebiolm.errors import UserError
from kebiolm.finetune.counted_warnings import CountedWarnings
from kebiolm.finetune.read_lines import read_lines
from kebiolm.finetune.tasks import NerTask

_DOCUMENT_BORDER = "-DOCSTART-"


@dataclass(frozen=True, kw_only=True, slots=True)
class NerSentence:
    """A sentence of at least one word."""

    words: tuple[str, ...]
    labels: tuple[str, ...]
    """As many as words, each one of the task's."""
    where: str
    """File and line of the first word."""


def read_ner(path: Path, task: NerTask, warnings: CountedWarnings) -> list[NerSentence]:
    """Read a file of sentences.

    Args:
        path: the file.
        task: tells which labels there are, and whether "B-protein" is read as "B".
        warnings: counts empty sentences, `-DOCSTART-` lines, entity types that are ignored and entities that begin
            with I, besides what `read_lines` counts.

    Raises:
        UserError: as `read_lines`; a line is not a word, a tab and a label; a label is unknown; there is no sentence.
    """
    sentences: list[NerSentence] = []
    words: list[str] = []
    labels: list[str] = []

    def end_sentence(after_line: int) -> None:
        where = f"{path}:{after_line - len(words)}"
        sentences.append(NerSentence(words=tuple(words), labels=tuple(labels), where=where))
        words.clear()
        labels.clear()

    lines = read_lines(path, warnings)
    for number, line in enumerate(lines, 1):
        where = f"{path}:{number}"
        if line.startswith(_DOCUMENT_BORDER):
            warnings.add(f"{_DOCUMENT_BORDER} lines, skipped", where)
        elif line.strip(" "):
            word, label = _split_columns(line, where)
            label = _known_label(label, task, where, warnings)
            _count_odd_start(label, labels[-1] if labels else "O", where, warnings)
            words.append(word)
            labels.append(label)
            continue
        elif not words:
            warnings.add("sentences without words, skipped", where)
        if words:
            end_sentence(number)
    if words:
        end_sentence(len(lines) + 1)
    if not sentences:
        mend = "give a BLURB file, or one made like it"
        raise UserError(path, got="no sentence", expected="lines of a word, a tab and a label", mend=mend)
    return sentences


def _split_columns(line: str, where: str) -> tuple[str, str]:
    columns = line.split("\t")
    if len(columns) != 2 or not all(columns):
        raise UserError(where, got=repr(line[:80]), expected="a word, a tab and a label", mend="correct the line")
    return columns[0], columns[1]


def _known_label(label: str, task: NerTask, where: str, warnings: CountedWarnings) -> str:
    if label in task.labels:
        return label
    prefix, dash, _ = label.partition("-")
    if dash and not task.entity_types and prefix in ("B", "I"):
        warnings.add("labels with an entity type, which is ignored", where)
        return prefix
    mend = "correct the label, or list the types under task.entity_types"
    raise UserError(where, got=f"the label {label!r}", expected=f"one of {', '.join(task.labels)}", mend=mend)


def _count_odd_start(label: str, before: str, where: str, warnings: CountedWarnings) -> None:
    if label[0] == "I" and (before == "O" or before[1:] != label[1:]):
        warnings.add("entities that begin with I, kept", where)
