"""The Triton kernels compiled for A100 (sm_80) and H100/H200 (sm_90), which needs no GPU.

What is launched is taken from the host code itself: it runs on the CPU with kernels that only note how they are
called. `python -m tests.kernels.test_knn_triton_compile` prints registers, stack and shared memory of each.
"""

from __future__ import annotations

import functools
import itertools
import re
import subprocess
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch

from kebiolm.kernels.knn_entity_attention import triton_backward, triton_common, triton_forward
from kebiolm.kernels.knn_entity_attention.contract import Gradients, Options, Saved

if triton_common.interpreting():
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)
triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024}
TYPES = {
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
    torch.int32: "i32",
    torch.int64: "i64",
}
ENTITIES = 477_039
LARGE = ("search_kernel", "table_kernel")
MULTIPLYING = (*LARGE, "candidates_kernel")
SMALL_STACK = 16
"""Bytes: some versions of the compiler put a number or two of the small kernels there, to run more at once."""
INPUTS = [(torch.float16, 104), (torch.float16, 100), (torch.bfloat16, 104), (torch.float32, 104)]


class Launch(NamedTuple):
    """A call of a kernel."""

    kernel: object
    arguments: dict[str, object]
    options: dict[str, int]


class Noted:
    """Stands for a kernel, and notes how it is called."""

    def __init__(self, kernel: object, launches: list[Launch]) -> None:
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid):
        def launch(*arguments, **named):
            options = {name: named.pop(name) for name in ("num_warps", "num_stages") if name in named}
            positional = zip(self.kernel.arg_names, arguments, strict=False)
            self.launches.append(Launch(self.kernel, {**dict(positional), **named}, options))

        return launch


def launches_of_a_step(monkeypatch, arch, dtype, size, *, want_mean=True, filter_eps=0.0) -> list[Launch]:
    """The launches of a forward and a backward pass over a table of the size of UMLS."""
    launches: list[Launch] = []
    for host, get_kernels in ((triton_forward, "forward_kernels"), (triton_backward, "backward_kernels")):
        kernels = vars(getattr(triton_common, get_kernels)())
        noted = {name: Noted(kernel, launches) for name, kernel in kernels.items() if name.endswith("_kernel")}
        monkeypatch.setattr(host, get_kernels, functools.partial(SimpleNamespace, **noted))
    monkeypatch.setattr(triton_common, "arch_of", lambda _: arch)
    h, table = torch.zeros(20, size, dtype=dtype), torch.empty(ENTITIES, size, dtype=dtype)
    gold = torch.zeros(20, dtype=torch.int64)
    options = Options(100, 3, 32, filter_eps, True, want_mean)
    found = triton_forward.triton_forward(h, table, gold, options)
    found = found._replace(topk_idx=torch.zeros_like(found.topk_idx))
    after = (found.att, found.lse, found.topk_val, found.topk_idx, found.mean)
    grads = Gradients(found.att, torch.ones(20), torch.ones(20), found.topk_val)
    need_h = want_mean  # otherwise another backend would go over the table
    triton_backward.triton_backward(Saved(h, table, gold, *after, options), grads, need_h=need_h, need_table=True)
    return launches


def compiled(launch: Launch, arch: int):
    """What Triton makes of a launch; pointers are said to be at multiples of 16 bytes, as torch allocates memory."""
    constants = {each.name: launch.arguments[each.name] for each in launch.kernel.params if each.is_constexpr}
    signature, attributes = {}, {}
    for place, name in enumerate(launch.kernel.arg_names):
        value = launch.arguments[name]
        if name in constants or value is None:
            signature[name], constants[name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[name] = "*" + TYPES[value.dtype]
            attributes[place,] = [["tt.divisibility", 16]]
        else:
            signature[name] = "fp32" if isinstance(value, float) else "i32"
    source = ASTSource(launch.kernel, signature, constants, attributes)
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=launch.options)


def registers_and_stack(binary) -> tuple[int, int]:
    """Registers of a thread, and bytes of its stack, which is where registers are spilled to."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        said = subprocess.run([CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    return tuple(map(int, re.search(r"REG:(\d+) STACK:(\d+)", said).groups()))


def assert_good(launch: Launch, arch: int) -> None:
    binary = compiled(launch, arch)
    name = launch.kernel.__name__
    assert binary.metadata.shared <= SHARED_MEMORY[arch], name
    _, stack = registers_and_stack(binary)
    assert stack <= (0 if name in LARGE else SMALL_STACK), f"{name} spills"
    if name in MULTIPLYING and launch.arguments["PRECISION"] != "ieee":
        # Large tiles on sm_90 are multiplied by a group of warps at once.
        wanted = "wgmma.mma_async" if arch == 90 and name in LARGE else "mma.sync"
        assert wanted in binary.asm["ptx"], name


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path_factory):
    if not CUOBJDUMP.exists():
        pytest.skip(f"{CUOBJDUMP} is absent")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "triton"))


@pytest.mark.parametrize("arch", [80, 90])
def test_all_kernels_of_a_step(arch, monkeypatch):
    launches = launches_of_a_step(monkeypatch, arch, torch.float16, 104)
    assert {launch.kernel.__name__ for launch in launches} == {
        *(f"{name}_kernel" for name in ("search", "merge", "select", "candidates", "attention")),
        *(f"{name}_kernel" for name in ("mention", "item_sums", "carry", "pack", "table")),
    }
    for launch in launches:
        assert_good(launch, arch)


@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("dtype,size", INPUTS[1:], ids=str)
def test_large_kernels(arch, dtype, size, monkeypatch):
    for launch in launches_of_a_step(monkeypatch, arch, dtype, size):
        if launch.kernel.__name__ in LARGE:
            assert_good(launch, arch)


@pytest.mark.parametrize("arch", [80, 90])
def test_large_kernels_without_the_average_and_with_a_filter(arch, monkeypatch):
    for launch in launches_of_a_step(monkeypatch, arch, torch.float16, 104, want_mean=False, filter_eps=1e-8):
        if launch.kernel.__name__ in LARGE:
            assert_good(launch, arch)


def test_numbers_that_change_do_not_compile_anew(monkeypatch):
    for kernel, arguments, _ in launches_of_a_step(monkeypatch, 90, torch.float16, 104):
        for each in kernel.params:
            changes = isinstance(arguments[each.name], int) and not each.is_constexpr
            assert each.do_not_specialize or not changes, (kernel.__name__, each.name)


def print_table() -> None:
    """Registers of a thread, stack and shared memory of all kernels, for the settings that are used."""
    print("arch  dtype     d    kernel             tile     warps stages registers stack shared")
    for arch, (dtype, size) in itertools.product((80, 90), INPUTS):
        with pytest.MonkeyPatch.context() as patch:
            for launch in launches_of_a_step(patch, arch, dtype, size):
                binary, of = compiled(launch, arch), launch.arguments
                registers, stack = registers_and_stack(binary)
                name = launch.kernel.__name__.removesuffix("_kernel") + (" (end)" if of.get("SHORT") else "")
                tile = f"{of.get('BM', '-')}x{of.get('BN', '-')}"
                options = f"{launch.options['num_warps']:5} {launch.options.get('num_stages', '-'):>6}"
                used = f"{registers:9} {stack:5} {binary.metadata.shared:6}"
                print(f"sm_{arch} {TYPES[dtype]:8} {size:4} {name:18} {tile:8} {options} {used}")


if __name__ == "__main__":
    print_table()
