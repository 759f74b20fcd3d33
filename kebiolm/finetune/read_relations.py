"""Relation data: on each line an id, a sentence with markers in place of two entities, and a label."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from kebiolm.errors import UserError
from kebiolm.finetune.counted_warnings import CountedWarnings
from kebiolm.finetune.read_lines import read_lines
from kebiolm.finetune.tasks import RelationTask

_LIKE_A_MARKER = re.compile(r"@[A-Z]+(?:-[A-Z]+)*\$")


@dataclass(frozen=True, kw_only=True, slots=True)
class RelationRow:
    """A sentence and the relation of two entities in it."""

    row_id: str
    text: str
    marker_spans: tuple[tuple[int, int], ...]
    """First character and the one after the last of the entities' markers, in text order: two, or one that stands for
    both; fewer only where `read_relations` has counted it."""
    label: str
    where: str
    """File and line."""


def read_relations(path: Path, task: RelationTask, warnings: CountedWarnings) -> list[RelationRow]:
    """Read a file of rows; a first line whose last column is the word "label" is a header (GAD has one).

    Args:
        path: the file.
        task: tells which markers and labels there are.
        warnings: counts rows with too few or too many markers, which are kept, besides what `read_lines` counts.

    Raises:
        UserError: as `read_lines`; a line has not three columns or an empty one; a label is unknown; a sentence holds
            a marker that the task does not name; no row has its markers; there is no row.
    """
    rows = []
    for number, line in enumerate(read_lines(path, warnings), 1):
        where = f"{path}:{number}"
        if not line.strip(" "):
            warnings.add("empty lines, skipped", where)
        elif not (number == 1 and _is_header(line, task)):
            rows.append(_read_row(line, where, task))
    markers = ", ".join(task.all_markers)
    if not rows:
        mend = "give a BLURB file, or one made like it"
        raise UserError(path, got="no row", expected="lines of id, sentence and label", mend=mend)
    odd = [(row, oddity) for row in rows if (oddity := _marker_oddity(row, task))]
    if len(odd) == len(rows):
        mend = "correct task.markers, or mark the entities"
        raise UserError(path, got="no row with its two markers", expected=f"two of {markers} in each", mend=mend)
    for row, oddity in odd:
        warnings.add(oddity, row.where)
    return rows


def find_markers(text: str, task: RelationTask) -> tuple[tuple[int, int], ...]:
    """Characters of all markers of the task in a text: first, and one after the last; in text order."""
    longest_first = sorted(task.all_markers, key=len, reverse=True)
    return tuple(found.span() for found in re.finditer("|".join(map(re.escape, longest_first)), text))


def _is_header(line: str, task: RelationTask) -> bool:
    label = line.rpartition("\t")[-1]
    return label.casefold() == "label" and label not in task.known_labels and not find_markers(line, task)


def _read_row(line: str, where: str, task: RelationTask) -> RelationRow:
    columns = line.split("\t")
    if len(columns) != 3 or not all(column.strip() for column in columns):
        got = f"{len(columns)} columns" if len(columns) != 3 else f"an empty column in {line[:80]!r}"
        raise UserError(where, got=got, expected="id, sentence and label with tabs between", mend="correct the line")
    row_id, text, label = columns
    if task.known_labels and label not in task.known_labels:
        expected = f"one of {', '.join(task.known_labels)}"
        raise UserError(
            where, got=f"the label {label!r}", expected=expected, mend="correct task.known_labels or the line"
        )
    for found in _LIKE_A_MARKER.finditer(text):
        if found.group() not in task.all_markers and _LIKE_A_MARKER.fullmatch(task.markers[0]):
            expected = f"one of {', '.join(task.all_markers)}"
            mend = "add it to task.markers or task.shared_markers"
            raise UserError(where, got=f"the marker {found.group()}", expected=expected, mend=mend)
    return RelationRow(row_id=row_id, text=text, marker_spans=find_markers(text, task), label=label, where=where)


def _marker_oddity(row: RelationRow, task: RelationTask) -> str | None:
    """What is odd about a row's markers; None where there are two, or one that stands for both entities."""
    if not row.marker_spans:
        return "rows without a marker, classified by [CLS]"
    if len(row.marker_spans) > 2:
        return "rows with more than two markers, of which the first two are used"
    if len(row.marker_spans) == 1:
        start, end = row.marker_spans[0]
        if row.text[start:end] not in task.shared_markers:
            return "rows with one marker only, which is used for both entities"
    return None
