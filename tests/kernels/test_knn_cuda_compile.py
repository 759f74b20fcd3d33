"""Compiling the GPU kernels without a GPU, the cache of machine code, and the calls to CUDA's driver."""

from __future__ import annotations

import ctypes
import fcntl
import multiprocessing
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from kebiolm.kernels.knn_entity_attention import build_cache, build_cuda, cuda, launch_cuda
from kebiolm.kernels.knn_entity_attention.build_cache import CACHE_VARIABLE, BuildError
from kebiolm.kernels.knn_entity_attention.build_cuda import Kernels

V100, TURING, AMPERE, HOPPER = (7, 0), (7, 5), (8, 0), (9, 0)
SHARED_KB = {V100: 96, TURING: 64, AMPERE: 163, HOPPER: 227}
REGISTERS = 65536
SMALL = 'extern "C" __global__ void small(float* x) { x[threadIdx.x] = SIZE + WIDTH + TILE; }'


def _nvrtc(kernels: Kernels) -> ctypes.CDLL:
    try:
        return build_cuda.find_nvrtc(kernels.arch)[0]
    except BuildError as error:
        pytest.skip(str(error))


@pytest.fixture
def small_source(monkeypatch, tmp_path: Path) -> Path:
    """A source that compiles in no time, and an empty cache."""
    _nvrtc(Kernels(V100, 8, 8))
    source = tmp_path / "small.cu"
    source.write_text(SMALL)
    monkeypatch.setattr(build_cuda, "SOURCE", source)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return source


def _build(kernels: Kernels) -> bytes:
    return build_cuda.build(kernels)


@pytest.mark.parametrize(
    "kernels",
    [
        *(Kernels(V100, *shape) for shape in [(100, 8), (100, 4), (100, 1), (128, 8)]),
        *(Kernels(TURING, *shape) for shape in [(100, 8), (128, 8)]),
        Kernels(AMPERE, 100, 8),
        Kernels(HOPPER, 100, 8),
    ],
    ids=lambda kernels: f"{kernels.arch}-{kernels.size}-{kernels.width}",
)
def test_tensor_cores_and_no_spills(kernels):
    code, log = build_cuda.compile_source(_nvrtc(kernels), kernels, "--ptxas-options=-v")
    # From 12.8 on NVRTC says of each older card that a later release will leave it out.
    warnings = [line for line in log.splitlines() if "warning" in line and "deprecated" not in line]
    assert not warnings
    used = {
        name: (spilled, int(registers))
        for name, spilled, registers in re.findall(
            r"Compiling entry function '(\w+)'(.*?)Used (\d+) registers", log, flags=re.DOTALL
        )
    }
    names = re.findall(r"^KERNEL (\w+)\(", build_cuda.SOURCE.read_text(), flags=re.MULTILINE)
    assert sorted(used) == sorted(names)
    for name, (spilled, registers) in used.items():
        assert "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in spilled, name
        assert registers * cuda.THREADS <= REGISTERS, name
    # All shared memory is asked for at the launch.
    assert "bytes smem" not in log or kernels.capability == HOPPER  # which keeps 1 KB for itself
    for needed in (cuda.search_bytes, cuda.table_gradient_bytes):
        assert needed(kernels.size, kernels.tile) <= SHARED_KB[kernels.capability] * 1024
    counts = _tensor_core_instructions(code)
    if kernels.capability == V100:
        # A product of 16 x 16 x 16 is 16 instructions there. Tools of today no longer read its code.
        assert counts["search"] >= 16 * kernels.tile // 16 * -(-kernels.size // 16)
    assert all(counts[name] > 0 for name in ("search", "search_with_mean", "table_gradient"))


def _tensor_core_instructions(code: bytes) -> dict[str, int]:
    """How many there are in each kernel: instructions have 16 bytes, and HMMA of each generation its own number."""
    numbers = {0x236, 0x23C}  # HMMA.884 of Volta, HMMA.1688 and HMMA.16816 of later ones
    counts = {}
    for name, section in _sections(code).items():
        if name.startswith(".text."):
            words = [int.from_bytes(section[i : i + 2], "little") & 0xFFF for i in range(0, len(section), 16)]
            counts[name.removeprefix(".text.")] = sum(word in numbers for word in words)
    return counts


def _sections(elf: bytes) -> dict[str, bytes]:
    """Sections of a 64-bit ELF file by name."""
    start = int.from_bytes(elf[40:48], "little")
    size, count, names_at = (int.from_bytes(elf[i : i + 2], "little") for i in (58, 60, 62))
    headers = [elf[start + i * size : start + (i + 1) * size] for i in range(count)]

    def content(header: bytes) -> bytes:
        offset, length = (int.from_bytes(header[i : i + 8], "little") for i in (24, 32))
        return elf[offset : offset + length]

    names = content(headers[names_at])
    places = [int.from_bytes(header[:4], "little") for header in headers]
    return {
        names[place : names.index(b"\0", place)].decode(): content(header)
        for place, header in zip(places, headers, strict=True)
    }


@pytest.mark.parametrize("capability", [TURING, AMPERE, HOPPER], ids=str)
def test_instructions_are_counted_as_nvidias_tool_does(capability, tmp_path):
    tool = pytest.importorskip("triton").__path__[0] + "/backends/nvidia/bin/nvdisasm"
    if not Path(tool).exists():
        pytest.skip("triton has no nvdisasm here")
    kernels = Kernels(capability, 20, 8)
    code, _ = build_cuda.compile_source(_nvrtc(kernels), kernels)
    (tmp_path / "code.cubin").write_bytes(code)
    text = subprocess.run([tool, tmp_path / "code.cubin"], capture_output=True, text=True, check=True).stdout
    assert sum(_tensor_core_instructions(code).values()) == text.count("HMMA.")


def test_built_once_with_one_line(small_source, capfd):
    code = build_cuda.build(Kernels(V100, 100, 8))
    assert code.startswith(b"\x7fELF")
    assert build_cuda.build(Kernels(V100, 100, 8)) == code
    assert capfd.readouterr().err.splitlines() == [
        "kebiolm: building the GPU kernel for sm_70, once for this machine (some seconds)"
    ]


def test_another_gpu_size_width_or_source_builds_anew(small_source, tmp_path):
    for kernels in (Kernels(V100, 100, 8), Kernels(V100, 96, 8), Kernels(V100, 100, 4), Kernels(TURING, 100, 8)):
        build_cuda.build(kernels)
    small_source.write_text(SMALL + "\n")
    build_cuda.build(Kernels(V100, 100, 8))
    assert len(list((tmp_path / "cache").glob("*.cubin"))) == 5


def test_processes_that_start_together_build_once(small_source, capfd):
    with multiprocessing.get_context("fork").Pool(2) as pool:
        codes = set(pool.map(_build, [Kernels(V100, 100, 8)] * 2, chunksize=1))
    assert len(codes) == 1
    assert capfd.readouterr().err.count("building the GPU kernel") == 1


def test_a_killed_build_leaves_no_half_file(small_source, tmp_path):
    build_cuda.build(Kernels(V100, 100, 8))
    (cubin,) = (tmp_path / "cache").glob("*.cubin")
    cubin.unlink()
    (cubin.parent / f"{cubin.stem}.killed.tmp").write_text("half")
    build_cuda.build(Kernels(V100, 100, 8))
    assert sorted(path.suffix for path in cubin.parent.iterdir()) == [".cubin", ".lock"]


def test_a_build_that_hangs_is_not_waited_for_without_end(small_source, tmp_path, monkeypatch):
    build_cuda.build(Kernels(V100, 100, 8))
    (cubin,) = (tmp_path / "cache").glob("*.cubin")
    cubin.unlink()
    monkeypatch.setattr(build_cache, "TIMEOUT_S", 0.3)
    with open(cubin.with_suffix(".lock"), "w") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        with pytest.raises(BuildError, match=r"another process has held .* for 0\.3 s"):
            build_cuda.build(Kernels(V100, 100, 8))


def test_a_source_that_does_not_compile(small_source, tmp_path):
    small_source.write_text("int broken(")
    with pytest.raises(BuildError, match=r"^NVRTC failed for sm_70: small.cu\(1\): error: [^\n]*$"):
        build_cuda.build(Kernels(V100, 100, 8))
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]


def test_a_cache_that_cannot_be_written(small_source, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file" / "cache"))
    with pytest.raises(BuildError, match="NotADirectoryError"):
        build_cuda.build(Kernels(V100, 100, 8))


def test_no_nvrtc(monkeypatch):
    monkeypatch.setattr(build_cuda, "_candidates", lambda: iter(["libnothing.so", "libc.so.6"]))
    build_cuda.find_nvrtc.cache_clear()
    with pytest.raises(BuildError, match=r"^no NVRTC for sm_70 found; tried libnothing.so, libc.so.6; nvidia-cuda-"):
        build_cuda.find_nvrtc("sm_70")
    assert build_cuda.find_nvrtc.cache_info().currsize == 0


def test_a_gpu_that_this_nvrtc_does_not_know():
    _nvrtc(Kernels(V100, 8, 8))
    with pytest.raises(BuildError, match=r"which cannot compile for sm_35\)"):
        build_cuda.find_nvrtc("sm_35")


class Driver:
    """A stand-in for libcuda that takes notes; `refuses` is the call that fails."""

    def __init__(self, refuses: str = "") -> None:
        self.calls: list[tuple] = []
        self.refuses = refuses

    def __getattr__(self, name: str):
        def call(*arguments) -> int:
            self.calls.append((name, *arguments))
            return 209 if name == self.refuses else 0

        return call

    def names(self) -> list[str]:
        return [call[0] for call in self.calls]


@pytest.fixture
def driver(monkeypatch) -> Driver:
    """A V100 and its driver, as far as the launcher can tell."""
    driver = Driver()
    properties = SimpleNamespace(major=7, minor=0, multi_processor_count=80)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=1234))
    monkeypatch.setattr(launch_cuda, "_driver", lambda: driver)
    monkeypatch.setattr(launch_cuda, "build", lambda kernels: b"code")
    return driver


def test_launches(driver):
    launcher = launch_cuda.CudaLauncher(torch.device("cuda:1"), 100, 8)
    assert (launcher.tile, launcher.multiprocessors) == (64, 80)
    assert driver.names() == [
        "cuDeviceGet", "cuDevicePrimaryCtxRetain", "cuCtxPushCurrent_v2", "cuModuleLoadData", "cuCtxPopCurrent_v2",
    ]  # fmt: skip
    assert driver.calls[0][2] == 1
    driver.calls.clear()
    for shared_bytes in (0, 65536, 65536):
        launcher.launch("search", (3, 80), 256, shared_bytes, [torch.zeros(4), 5, 0.5, None])
    once = ["cuCtxPushCurrent_v2", "cuLaunchKernel", "cuCtxPopCurrent_v2"]
    expected = [once[0], "cuModuleGetFunction", *once[1:], once[0], "cuFuncSetAttribute", *once[1:], *once]
    assert driver.names() == expected
    (attribute,) = (call for call in driver.calls if call[0] == "cuFuncSetAttribute")
    assert attribute[2:] == (8, 65536)
    launch = driver.calls[-2]
    assert launch[2:9] == (3, 80, 1, 256, 1, 1, 65536)
    assert launch[9].value == 1234
    assert len(launch[10]) == 4


def test_arguments_are_packed_as_the_kernels_take_them():
    tensor = torch.arange(3)
    pointers, kept = launch_cuda.pack([tensor, -5, 0.25, None, True])
    kinds = (ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_void_p, ctypes.c_int64)
    values = [kind.from_address(pointer).value for kind, pointer in zip(kinds, pointers, strict=True)]
    assert values == [tensor.data_ptr(), -5, 0.25, None, 1]
    assert len(kept) == 5


def test_why_the_kernels_are_not_available(driver, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "12.6")
    launch_cuda.launcher_for.cache_clear()
    for number, (capability, refuses, reason) in enumerate(
        [
            ((6, 1), "", "the GPU has compute capability 6.1; tensor cores need 7.0"),
            (
                (7, 0),
                "cuModuleLoadData",
                "the driver refuses the kernel for sm_70: cuModuleLoadData: unknown error (209)",
            ),
            ((7, 0), "", None),
        ]
    ):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, of=capability: of)
        driver.refuses = refuses
        assert cuda.available(torch.device("cuda", number)) == reason
    # Kernels as training needs them: rows of 104 numbers, 8 at a time.
    assert launch_cuda.launcher_for(torch.device("cuda", 2), 104, 8) is not None
    assert launch_cuda.launcher_for.cache_info().hits == 1
    cuda.available.cache_clear()
    launch_cuda.launcher_for.cache_clear()
