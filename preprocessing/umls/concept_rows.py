"""CUI -> row of the concepts table, for whole columns."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from preprocessing.umls.columns import cui_numbers


class ConceptRows:
    """Finds CUIs among those of the concepts table.

    CUIs of UMLS are "C" and seven digits: the number leads to the row through one table of 4 bytes per number. Where a
    knowledge base has others, a binary search finds all of them. (Arrow's `index_in` builds its hash table of all
    concepts again at every call, which for the millions of concepts of a full UMLS costs seconds per batch.)
    """

    def __init__(self, cuis: pa.Array) -> None:
        """Args: cuis: the CUIs of the concepts table, sorted."""
        self._num_concepts = len(cuis)
        numbers = cui_numbers(cuis)
        self._cuis = _as_bytes(cuis) if (numbers < 0).any() else None
        if self._cuis is None:
            # The last place is for all CUIs that are not here: unknown numbers and -1 both lead to it.
            self._row_of_number = np.full(int(numbers.max(initial=0)) + 2, -1, np.int32)
            self._row_of_number[numbers] = np.arange(len(cuis))

    def __len__(self) -> int:
        return self._num_concepts

    def rows(self, column: pa.Array) -> np.ndarray:
        """[N] CUIs -> [N] int32 rows, -1 where the CUI is not a concept."""
        if self._cuis is None:
            return self._row_of_number[np.minimum(cui_numbers(column), len(self._row_of_number) - 1)]
        wanted = _as_bytes(column)
        rows = np.searchsorted(self._cuis, wanted).astype(np.int32)
        found = self._cuis[np.minimum(rows, len(self) - 1)] == wanted
        return np.where(found, rows, np.int32(-1))


def _as_bytes(column: pa.Array) -> np.ndarray:
    """Strings as a NumPy array of fixed-width bytes, which sorts like the strings."""
    return np.array(column.cast(pa.binary()).to_numpy(zero_copy_only=False), dtype=np.bytes_)
