"""The matrix products of a spaCy pipeline, most of its time, by the BLAS library that NumPy brings.

spaCy leaves them to BLIS. NumPy's OpenBLAS was 3 times as fast on an AMD EPYC (88 against 32 GFLOP/s on one core, for
products of the size of a `tok2vec`), a whole pipeline 1.8 times. Results differ in the last bits; the 14,266 mentions
found in 1,093 real abstracts were the same.
"""

from __future__ import annotations

import numpy as np
from spacy.language import Language
from thinc.api import Model, NumpyOps

# OpenBLAS adds up small products in another order than large ones. With as many rows and columns as this at least, a
# text's vectors have the same bits whether it stands alone or in a batch; narrower products stay with BLIS.
_MIN_ROWS, _MIN_COLUMNS = 128, 64


class BlasOps(NumpyOps):
    """thinc's operations on the CPU, with the matrix products of NumPy."""

    def __init__(self) -> None:
        super().__init__(use_blis=False)
        self._blis = NumpyOps(use_blis=True)

    def gemm(
        self,
        x: np.ndarray,
        y: np.ndarray,
        out: np.ndarray | None = None,
        trans1: bool = False,
        trans2: bool = False,
    ) -> np.ndarray:
        """Matrix product, as `thinc.api.Ops.gemm`: [M, K] times [K, N], either of them turned round on request."""
        rows, columns = len(x), y.shape[0 if trans2 else 1]
        if columns < _MIN_COLUMNS:
            return self._blis.gemm(x, y, out=out, trans1=trans1, trans2=trans2)
        if trans1 or rows >= _MIN_ROWS:
            return super().gemm(x, y, out=out, trans1=trans1, trans2=trans2)
        padded = np.zeros((_MIN_ROWS, x.shape[1]), dtype=x.dtype)
        padded[:rows] = x
        product = super().gemm(padded, y, trans2=trans2)[:rows]
        if out is None:
            return product
        out[:] = product
        return out


def use_blas(nlp: Language) -> None:
    """Let the components of a pipeline multiply by NumPy's BLAS, where they would by BLIS on the CPU."""
    ops = BlasOps()
    for _, component in nlp.pipeline:
        model = getattr(component, "model", None)
        for node in model.walk() if isinstance(model, Model) else ():
            if type(node.ops) is NumpyOps:  # not those of a GPU or of another processor's own library
                node.ops = ops
