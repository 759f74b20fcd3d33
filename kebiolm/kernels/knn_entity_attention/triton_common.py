"""What the forward and the backward pass in Triton share: shapes, dtypes, and the kernels themselves."""

from __future__ import annotations

import functools
import os
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from kebiolm.kernels.knn_entity_attention.triton_settings import Kind, arch_of


def interpreting() -> bool:
    """Whether Triton runs kernels in its interpreter, on tensors in the CPU's memory: for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def forward_kernels() -> ModuleType:
    """`triton_forward_kernels`, which can only be imported where triton is."""
    from kebiolm.kernels.knn_entity_attention import triton_forward_kernels

    return triton_forward_kernels


@functools.cache
def backward_kernels() -> ModuleType:
    """`triton_backward_kernels`, likewise."""
    from kebiolm.kernels.knn_entity_attention import triton_backward_kernels

    return triton_backward_kernels


class Shape(NamedTuple):
    """Compile-time numbers that many kernels take; with fixed strides rows are copied in pieces of 16 bytes."""

    H_STRIDE: int
    TABLE_STRIDE: int
    D: int
    BLOCK_D: int
    """d rounded up to a power of two."""


def shape_of(h: Tensor, table: Tensor) -> Shape:
    """The numbers for mentions [M, d] and entities [E, d]."""
    size = h.shape[1]
    return Shape(h.stride(0), table.stride(0), size, max(16, 1 << (size - 1).bit_length()))


class Arithmetic(NamedTuple):
    """How dot products are computed: always summed in fp32."""

    name: str
    """"fp16", "bf16", "tf32" or "ieee" (fp32)."""

    @property
    def bias(self) -> float:
        """Exponent added to probabilities before they are rounded: fp16 has none below 6e-8."""
        return 14.0 if self.name == "fp16" else 0.0

    def constants(self, block_d: int) -> dict[str, object]:
        """Compile-time arguments of the kernels that multiply matrices."""
        import triton.language as tl

        return {
            "DTYPE": {"fp16": tl.float16, "bf16": tl.bfloat16}.get(self.name, tl.float32),
            "PRECISION": "ieee" if self.name == "ieee" else "tf32",
            "D_CHUNK": 16 if self.name == "ieee" else block_d,
        }

    def kind(self, kernel: str, table: Tensor, shape: Shape) -> Kind:
        """What the launch settings of a kernel depend on."""
        precision = "half" if self.name in ("fp16", "bf16") else self.name
        aligned = shape.TABLE_STRIDE * table.element_size() % 16 == 0
        return Kind(kernel, arch_of(table.device), precision, shape.BLOCK_D, aligned)


def arithmetic_of(h: Tensor, table: Tensor) -> Arithmetic:
    """Half precision where both are in the same one, otherwise fp32; with tf32 only if PyTorch may use it as well."""
    names = {torch.float16: "fp16", torch.bfloat16: "bf16"}
    if h.dtype == table.dtype and h.dtype in names:
        return Arithmetic(names[h.dtype])
    return Arithmetic("tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee")
