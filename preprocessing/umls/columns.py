"""Tools for whole columns: the first bytes of texts and the numbers in CUIs, as numbers; where a value is new."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_CUI_CHARACTERS = 8
# Keeps the first n bytes of 8, n = 0 to 8.
_KEEP_FIRST = np.array([(1 << 64) - (1 << 8 * (8 - count)) for count in range(9)], np.uint64)


def first_bytes(texts: pa.Array, count: int = 8) -> np.ndarray:
    """[N] texts without nulls -> [N] uint64: the first `count` bytes, 1 to 8, as a number that sorts like them.

    Texts that are shorter count as if they went on with zero bytes.
    """
    words, lengths = _words(texts)
    words &= _KEEP_FIRST[np.minimum(lengths, count)]
    return words >> np.uint64(8 * (8 - count))


def cui_numbers(cuis: pa.Array) -> np.ndarray:
    """[N] texts without nulls -> [N] int64: 53 for "C0000053", -1 for what is not "C" and seven digits."""
    words, lengths = _words(cuis)
    # The digits' bytes are 0x30 to 0x39: first that they are 0x30 to 0x3f, then that none of the low halves is over 9.
    is_cui = (lengths == _CUI_CHARACTERS) & (words & np.uint64(0xFFF0F0F0F0F0F0F0) == np.uint64(0x4330303030303030))
    digits = words & np.uint64(0x000F0F0F0F0F0F0F)
    is_cui &= (digits + np.uint64(0x0006060606060606)) & np.uint64(0x00F0F0F0F0F0F0F0) == 0
    # Two digits are put together in all pairs at once, then two pairs, then two fours.
    for bits, tens, lanes in ((8, 10, 0x00FF00FF00FF00FF), (16, 100, 0x0000FFFF0000FFFF), (32, 10_000, 0xFFFFFFFF)):
        high = (digits >> np.uint64(bits)) & np.uint64(lanes)
        digits = (digits & np.uint64(lanes)) + high * np.uint64(tens)
    return np.where(is_cui, digits.astype(np.int64), -1)


def one_batch(table: pa.Table) -> pa.RecordBatch:
    """A table as one batch, whose columns are whole arrays; without a copy where it is in one chunk already.

    Raises:
        OverflowError: a column has more than the 2 GB of text that one array can hold.
    """
    batches = table.combine_chunks().to_batches()
    if len(batches) > 1:
        raise OverflowError(f"{table.num_rows:,} rows with more than 2 GB of text in one column")
    return batches[0] if batches else pa.RecordBatch.from_pylist([], table.schema)


def starts_of_runs(*columns: pa.Array) -> np.ndarray:
    """[N] bool: rows that differ, in one of the columns, from the row before; the first row does."""
    starts = np.zeros(len(columns[0]), bool)
    starts[:1] = True
    for column in columns:
        starts[1:] |= np.asarray(pc.not_equal(column[1:], column[:-1]))
    return starts


def _words(texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """The 8 bytes from the start of each text on, whatever follows it, as big-endian numbers; and the lengths."""
    if not len(texts):
        return np.empty(0, np.uint64), np.empty(0, np.int32)
    _, offsets_buffer, data_buffer = texts.buffers()
    offsets = np.frombuffer(offsets_buffer, np.int32)[texts.offset : texts.offset + len(texts) + 1]
    first, end = int(offsets[0]), int(offsets[-1])
    padded = np.zeros(end - first + 8, np.uint8)
    if end > first:
        padded[:-8] = np.frombuffer(data_buffer, np.uint8)[first:end]
    # A number at every byte: overlapping views of the same memory.
    everywhere = np.ndarray(len(padded) - 7, "<u8", padded, strides=(1,))
    return everywhere[offsets[:-1] - first].byteswap().astype(np.uint64), np.diff(offsets)
