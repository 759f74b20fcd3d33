"""Compiles the GPU kernels for the CPU (see `emulate_cuda.h`) and launches them on tensors in its memory."""

from __future__ import annotations

import ctypes
import functools
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from torch import Tensor

from kebiolm.kernels.knn_entity_attention.build_cuda import SOURCE
from kebiolm.kernels.knn_entity_attention.launch_cuda import Argument, pack

FLAGS = ("-O1", "-std=c++17", "-fPIC", "-shared", "-w", "-U_FORTIFY_SOURCE", "-ffp-contract=off", "-march=native")
_FOLDER = tempfile.TemporaryDirectory(prefix="kebiolm-emulated-")


def missing() -> str | None:
    """Why nothing can be emulated here; None if it can."""
    if shutil.which("g++") is None:
        return "no g++ on the path"
    probe = ["g++", "-x", "c++", "-fsyntax-only", "-"]
    run = subprocess.run(probe, input="_Float16 half;", text=True, capture_output=True, check=False)
    return None if run.returncode == 0 else "this g++ has no _Float16"


class Emulator:
    """Launches kernels as `launch_cuda.CudaLauncher` does, on the CPU."""

    def __init__(self, size: int, width: int, tile: int, multiprocessors: int, source: Path = SOURCE) -> None:
        self.tile, self.multiprocessors = tile, multiprocessors
        self.launched: list[str] = []
        self._library = _compile(size, width, tile, source)

    def launch(
        self, name: str, grid: tuple[int, int], block: int, shared_bytes: int, arguments: list[Argument]
    ) -> None:
        self.launched.append(name)
        pointers, self._kept = pack(arguments)
        sizes = (ctypes.c_int64 * len(arguments))(*map(_bytes_behind, arguments))
        message = ctypes.c_char_p()
        function = getattr(self._library, f"emulate_{name}")
        if not function(*grid, block, shared_bytes, pointers, sizes, len(arguments), ctypes.byref(message)):
            raise AssertionError(f"{name}: {message.value.decode()}")


def _bytes_behind(argument: Argument) -> int:
    """As `emulate::run` wants it."""
    if argument is None:
        return 0
    if isinstance(argument, Tensor):
        return argument.untyped_storage().nbytes() - argument.storage_offset() * argument.element_size()
    return -1


@functools.cache
def _compile(size: int, width: int, tile: int, kernels: Path) -> ctypes.CDLL:
    names = re.findall(r"^KERNEL (\w+)\(", kernels.read_text(), flags=re.MULTILINE)
    folder = Path(tempfile.mkdtemp(dir=_FOLDER.name))
    source, library = folder / "emulated.cpp", folder / "emulated.so"
    source.write_text(f'#include "{kernels}"\n' + "".join(f"EMULATE({name})\n" for name in names))
    numbers = [f"-D{name}={value}" for name, value in (("SIZE", size), ("WIDTH", width), ("TILE", tile))]
    includes = ["-DKEBIOLM_EMULATE", f"-I{Path(__file__).parent}"]
    subprocess.run(["g++", *FLAGS, *numbers, *includes, str(source), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))
