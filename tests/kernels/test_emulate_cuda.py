"""The emulator itself: what a GPU would not forgive ends in an error."""

from __future__ import annotations

import pytest
import torch

from tests.kernels import emulate_cuda

FAULTS = {
    "if (threadIdx.x < 100) sync_block();": "a barrier that not all threads reach",
    "if (threadIdx.x != 40) sync_warp();": "a warp operation that not all lanes reach",
    "numbers[threadIdx.x + 2] = 0;": "memory outside a tensor, or a misaligned address",
    "numbers[-1 - (int)threadIdx.x] = 0;": "a tensor's surroundings were written",
    "shared_memory[threadIdx.x] = 0;": "memory outside a tensor, or a misaligned address",
    "Left<BY_ROW> left; load_shared(left, (half_bits*)shared_memory + 8, 16);": "a fragment's address or stride",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_emulator_refuses_what_a_gpu_would_not_forgive(fault, tmp_path, monkeypatch):
    if reason := emulate_cuda.missing():
        pytest.skip(reason)
    source = tmp_path / "faulty.cu"
    source.write_text(f'#include "emulate_cuda.h"\nKERNEL faulty(float* numbers) {{ {fault} }}\n')
    emulator = emulate_cuda.Emulator(8, 8, 64, 1, source)
    with pytest.raises(AssertionError, match=f"faulty: {FAULTS[fault]}"):
        emulator.launch("faulty", (2, 1), 256, 128, [torch.zeros(256)])
