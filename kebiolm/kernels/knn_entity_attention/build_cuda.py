"""Compile the GPU kernels by NVRTC, once per machine, GPU generation and entity size, into a cache folder.

NVRTC is a library that torch's CUDA wheels bring along: neither nvcc nor any header is needed.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from kebiolm.kernels.knn_entity_attention.build_cache import BuildError, build_once, hash_of

SOURCE = Path(__file__).with_name("knn_cuda.cu")
FLAGS = ("--std=c++17",)
NAMES = ("libnvrtc.so", "libnvrtc.so.12", "libnvrtc.so.11.2")
SYSTEM_FOLDER = "/usr/local/cuda/lib64"
SMALL_MEMORY = (7, 5)
"""The generation with 64 KB of shared memory; others have 96 KB or more."""


class Kernels(NamedTuple):
    """What the source is compiled for."""

    capability: tuple[int, int]
    """Of the device: (7, 0) is V100."""
    size: int
    """Dimensions of a row, at most 128."""
    width: int
    """Halves that a load of the table may take: 8, 4 or 1."""

    @property
    def tile(self) -> int:
        """Rows of a tile in shared memory."""
        return 32 if self.capability == SMALL_MEMORY else 64

    @property
    def arch(self) -> str:
        """The name of the capability, such as sm_70."""
        return f"sm_{self.capability[0]}{self.capability[1]}"


def build(kernels: Kernels) -> bytes:
    """Return the machine code (cubin), compiling it where the cache has none.

    Raises:
        BuildError: no NVRTC for this GPU, or it failed, or `build_once` does.
    """
    nvrtc, version = find_nvrtc(kernels.arch)
    name = f"knn_cuda-{hash_of([SOURCE.read_bytes(), repr((FLAGS, kernels, kernels.tile, version)).encode()])}.cubin"
    cubin = build_once(
        name,
        f"the GPU kernel for {kernels.arch}",
        lambda path: path.write_bytes(compile_source(nvrtc, kernels)[0]),
    )
    return cubin.read_bytes()


def compile_source(nvrtc: ctypes.CDLL, kernels: Kernels, *extra: str) -> tuple[bytes, str]:
    """Return the machine code and the compiler's log; `extra` are further options of NVRTC.

    Raises:
        BuildError: the first complaint of the compiler.
    """
    program = ctypes.c_void_p()
    source = SOURCE.read_bytes()
    _check(nvrtc, nvrtc.nvrtcCreateProgram(ctypes.byref(program), source, SOURCE.name.encode(), 0, None, None))
    try:
        numbers = {"SIZE": kernels.size, "WIDTH": kernels.width, "TILE": kernels.tile}
        options = [f"--gpu-architecture={kernels.arch}", *FLAGS, *extra]
        options += [f"-D{name}={value}" for name, value in numbers.items()]
        array = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        failed = nvrtc.nvrtcCompileProgram(program, len(options), array)
        log = _text(nvrtc, program, "ProgramLog").decode(errors="replace")
        if failed:
            complaints = [line for line in log.splitlines() if "error" in line] or [_message(nvrtc, failed)]
            raise BuildError(f"NVRTC failed for {kernels.arch}: {complaints[0].strip()}")
        return _text(nvrtc, program, "CUBIN"), log.rstrip("\0")
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _text(nvrtc: ctypes.CDLL, program: ctypes.c_void_p, what: str) -> bytes:
    size = ctypes.c_size_t()
    _check(nvrtc, getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
    buffer = ctypes.create_string_buffer(size.value)
    _check(nvrtc, getattr(nvrtc, f"nvrtcGet{what}")(program, buffer))
    return buffer.raw


def _check(nvrtc: ctypes.CDLL, status: int) -> None:
    if status:
        raise BuildError(f"NVRTC: {_message(nvrtc, status)}")


def _message(nvrtc: ctypes.CDLL, status: int) -> str:
    nvrtc.nvrtcGetErrorString.restype = ctypes.c_char_p
    return nvrtc.nvrtcGetErrorString(status).decode()


@functools.cache
def find_nvrtc(arch: str) -> tuple[ctypes.CDLL, tuple[int, int]]:
    """Return the first NVRTC that can compile for `arch`, such as sm_70, and its version.

    CUDA 13 no longer knows Volta, so that the first one found need not do.

    Raises:
        BuildError: there is none; says which were tried.
    """
    tried = []
    for name in _candidates():
        try:
            nvrtc = ctypes.CDLL(name)
            version = _version(nvrtc)
            count = ctypes.c_int()
            _check(nvrtc, nvrtc.nvrtcGetNumSupportedArchs(ctypes.byref(count)))
            archs = (ctypes.c_int * count.value)()
            _check(nvrtc, nvrtc.nvrtcGetSupportedArchs(archs))
        except (OSError, AttributeError, BuildError):
            tried.append(name)
            continue
        if int(arch.removeprefix("sm_")) in list(archs):
            return nvrtc, version
        tried.append(f"{name} (CUDA {version[0]}.{version[1]}, which cannot compile for {arch})")
    raise BuildError(f"no NVRTC for {arch} found; tried {', '.join(tried)}; nvidia-cuda-nvrtc-cu12 has one")


def _version(nvrtc: ctypes.CDLL) -> tuple[int, int]:
    major, minor = ctypes.c_int(), ctypes.c_int()
    _check(nvrtc, nvrtc.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
    return major.value, minor.value


def _candidates() -> Iterator[str]:
    """Paths in wheels of NVIDIA and of torch, then names that the system resolves; torch's version of CUDA first."""
    major = (torch.version.cuda or "12").split(".")[0]
    wheels = []
    for package, pattern in (("nvidia", "*/lib/libnvrtc.so.*"), ("torch", "lib/libnvrtc[-.]*so*")):
        spec = importlib.util.find_spec(package)
        for folder in (spec and spec.submodule_search_locations) or ():
            wheels += [str(path) for path in Path(folder).glob(pattern) if "builtins" not in path.name]
    yield from sorted(wheels, key=lambda path: (not path.endswith(f".{major}"), path))
    names = list(dict.fromkeys((f"libnvrtc.so.{major}", *NAMES)))
    yield from names
    yield from (f"{SYSTEM_FOLDER}/{name}" for name in names)
