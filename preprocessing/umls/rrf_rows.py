"""Stream the rows of an RRF table as Arrow tables, decoded in parallel.

A row that cannot be read does not stop the build: it is counted with its reason, and the first ones are kept with
their line for the manifest.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from kebiolm.errors import UserError
from preprocessing.umls.columns import one_batch
from preprocessing.umls.rrf import LAYOUT_FILE, RrfFile
from preprocessing.umls.rrf_blocks import Block, read_blocks

WRONG_FIELD_COUNT = "wrong number of fields"
INVALID_UTF8 = "invalid UTF-8"
MAX_REJECT_EXAMPLES = 5

# What follows the last "|" of a row; it must be empty.
_AFTER_LAST_FIELD = "after the last field"
# Results that wait for the caller; each is a block or a bucket, some 10 MB.
_AHEAD = 3

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(kw_only=True)
class RowCounts:
    """What became of the rows of one table; filled while the table is read."""

    good: int = 0
    rejects: Counter[str] = field(default_factory=Counter)
    examples: list[dict[str, str | int]] = field(default_factory=list)
    """The first rejects: {"file", "line", "reason"}; never the row's text, which may be licensed."""
    parts: list[dict[str, Any]] = field(default_factory=list)
    """The files that were read to their end: {"file", "bytes", "sha256"}."""

    @property
    def read(self) -> int:
        """All rows of the table, good or not."""
        return self.good + sum(self.rejects.values())


@dataclass(frozen=True)
class _Decoded:
    """The rows of one block; `part` and `starts_part` as in `Block`."""

    part: str
    starts_part: bool
    rows: pa.RecordBatch
    rejects: list[tuple[int, str]]
    """(line from 0 in the block, reason), ascending."""


def read_rows(file: RrfFile, columns: Sequence[str], counts: RowCounts, executor: Executor) -> Iterator[pa.RecordBatch]:
    """Stream some columns of a table in file order.

    Args:
        file: what `find_file` returned.
        columns: the columns to read; only these are decoded.
        counts: is brought up to date before each table is yielded.
        executor: threads that decode blocks while the caller works on earlier ones.

    Yields:
        Batches of string columns without nulls, about 4 MB of the file each, so memory does not grow with the file;
        none where the file is empty.

    Raises:
        UserError: the file is cut short, is not RRF, or has rows and none that can be read.
    """
    decode = partial(_decode, file, columns)
    line = 1
    for decoded in in_order(executor, decode, read_blocks(file.parts, counts.parts)):
        line = 1 if decoded.starts_part else line
        for line_in_block, reason in decoded.rejects:
            counts.rejects[reason] += 1
            if len(counts.examples) < MAX_REJECT_EXAMPLES:
                counts.examples.append({"file": decoded.part, "line": line + line_in_block, "reason": reason})
        line += decoded.rows.num_rows + len(decoded.rejects)
        counts.good += decoded.rows.num_rows
        yield decoded.rows
    if counts.read and not counts.good:
        raise UserError(
            file.path,
            got=f"{counts.read} rows, none of which can be read ({dict(counts.rejects)})",
            expected=f"rows of {len(file.columns)} fields: {','.join(file.columns)}",
            mend=f"check that {LAYOUT_FILE} and the file are of one release",
        )


def in_order(executor: Executor, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """`map` in threads, a few results ahead of the caller; items are drawn in the caller's thread."""
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(executor.submit(function, item))
            if len(waiting) > _AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def _decode(file: RrfFile, columns: Sequence[str], block: Block) -> _Decoded:
    """Split a block into rows and columns."""
    bad_lines: list[int] = []

    def skip_row(row: pyarrow.csv.InvalidRow) -> str:
        bad_lines.append(row.number - 1)
        return "skip"

    wanted = [*columns, _AFTER_LAST_FIELD]
    table = pyarrow.csv.read_csv(
        pa.BufferReader(pa.py_buffer(block.data)),
        read_options=pyarrow.csv.ReadOptions(
            # One block is one chunk of rows, and lines are numbered, only if nothing here is parallel.
            column_names=[*file.columns, _AFTER_LAST_FIELD],
            use_threads=False,
            block_size=len(block.data) + 1,
        ),
        # Blank lines are kept as rows of empty fields, or all later line numbers would be wrong.
        parse_options=pyarrow.csv.ParseOptions(
            delimiter="|", quote_char=False, ignore_empty_lines=False, invalid_row_handler=skip_row
        ),
        # Text is checked afterwards: one undecodable name would make the reader give up on the whole block.
        convert_options=pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys(wanted, pa.string()), include_columns=wanted, check_utf8=False
        ),
    )
    rows = one_batch(table)
    rejects = [(line, WRONG_FIELD_COUNT) for line in bad_lines]
    is_clean = _is_text(rows) and not pc.any(pc.not_equal(rows[_AFTER_LAST_FIELD], "")).as_py()
    if not is_clean:
        rows, unreadable = _keep_readable(rows, bad_lines)
        rejects = sorted(rejects + unreadable)
    name = block.part.name.removesuffix(".gz")
    return _Decoded(name, block.starts_part, rows.select(list(columns)), rejects)


def _is_text(rows: pa.RecordBatch) -> bool:
    """Whether all columns are valid UTF-8."""
    for column in rows.columns:
        data = column.buffers()[2]
        # Plain ASCII, almost always, which is seen much faster.
        if data is None or not data.size or np.frombuffer(data, np.int8).min() >= 0:
            continue
        try:
            column.validate(full=True)
        except pa.ArrowInvalid:
            return False
    return True


def _keep_readable(rows: pa.RecordBatch, bad_lines: list[int]) -> tuple[pa.RecordBatch, list[tuple[int, str]]]:
    """Leave out rows that are not UTF-8 or have text after their last "|". Rare and therefore slow: row by row."""
    kept, rejects = [], []
    binary = pa.table({name: rows[name].cast(pa.binary()) for name in rows.schema.names})
    for index, row in enumerate(binary.to_pylist()):
        reason = _reject_reason(row)
        if reason is None:
            kept.append(index)
        else:
            rejects.append((_line_of_row(index, bad_lines), reason))
    return rows.take(pa.array(kept, pa.int64())), rejects


def _reject_reason(row: dict[str, bytes]) -> str | None:
    if row[_AFTER_LAST_FIELD]:
        return WRONG_FIELD_COUNT
    try:
        for value in row.values():
            value.decode("utf-8")
    except UnicodeDecodeError:
        return INVALID_UTF8
    return None


def _line_of_row(row_number: int, bad_lines: list[int]) -> int:
    """Line of a row that the reader returned, given the lines it skipped, ascending; all numbered from 0."""
    line = row_number
    for bad_line in bad_lines:
        if bad_line > line:
            break
        line += 1
    return line
