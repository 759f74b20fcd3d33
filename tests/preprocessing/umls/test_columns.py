from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocessing.umls.columns import cui_numbers, first_bytes, one_batch, starts_of_runs
from preprocessing.umls.concept_rows import ConceptRows

# Texts with and without NUL, of 1 to 4 bytes per letter, and near misses of CUIs.
TEXTS = st.one_of(st.text(max_size=12), st.from_regex(r"[C-D][0-:]{6,8}", fullmatch=True), st.text("\0a", max_size=10))


@given(st.lists(TEXTS), st.integers(1, 8), st.integers(0, 3))
def test_first_bytes_are_a_number_that_sorts_like_the_text(texts: list[str], count: int, skipped: int) -> None:
    # A slice, whose text does not start where its buffer does.
    column = pa.array(["before"] * skipped + texts, pa.string())[skipped:]
    padded = [text.encode()[:count].ljust(count, b"\0") for text in texts]
    assert first_bytes(column, count).tolist() == [int.from_bytes(text, "big") for text in padded]


@given(st.lists(TEXTS))
def test_cui_numbers(texts: list[str]) -> None:
    def number(text: str) -> int:
        digits = text[1:]
        is_cui = text[:1] == "C" and len(digits) == 7 and digits.isascii() and digits.isdigit()
        return int(digits) if is_cui else -1

    assert cui_numbers(pa.array(texts, pa.string())).tolist() == [number(text) for text in texts]


def test_cui_numbers_of_the_ends() -> None:
    texts = ["C0000000", "C9999999", "C999999", "C99999999", "C000000/", "C000000:", "c0000001", "C00000O1", "C000000é"]
    assert cui_numbers(pa.array(texts)).tolist() == [0, 9_999_999, -1, -1, -1, -1, -1, -1, -1]


def test_starts_of_runs() -> None:
    first, second = pa.array(["a", "a", "a", "b"]), pa.array([1, 1, 2, 2])
    assert starts_of_runs(first).tolist() == [True, False, False, True]
    assert starts_of_runs(first, second).tolist() == [True, False, True, True]
    assert starts_of_runs(pa.array([], pa.string())).tolist() == []


def test_one_batch_of_chunks_and_of_nothing() -> None:
    chunks = pa.table({"x": pa.chunked_array([[1], [2, 3]])})
    assert one_batch(chunks)["x"].to_pylist() == [1, 2, 3]
    assert one_batch(chunks.slice(0, 0)).num_rows == 0


@pytest.mark.parametrize(
    "cuis",
    [
        ["C0000001", "C0000005", "C0123456"],
        ["C0000001", "C00000011", "C0000005", "CL123456", "MESH:D1"],
        ["a", "é", "日本"],
        [],
    ],
    ids=["UMLS", "others too", "others only", "none"],
)
def test_concept_rows(cuis: list[str]) -> None:
    wanted = ["C0000005", "C0000001", "", "C0000002", "C9999999", "C00000011", "CL123456", "é", "x", *cuis]
    expected = [cuis.index(cui) if cui in cuis else -1 for cui in wanted]
    rows = ConceptRows(pa.array(cuis, pa.string())).rows(pa.array(wanted))
    assert rows.tolist() == expected
    assert rows.dtype == np.int32
