"""Compile the CPU kernel, once per machine, into a cache folder; or find one that came with the package.

The file's name has a hash of the source, the flags, the compiler's version and the processor's features: a home folder
shared by different machines, or a new compiler, never serves code that was made for another.

    python -m kebiolm.kernels.knn_entity_attention.build_cpu    # before building a wheel: for machines without compiler
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from kebiolm.kernels.knn_entity_attention.build_cache import BuildError, build_once, hash_of

SOURCE = Path(__file__).with_name("knn_cpu.cpp")
COMPILERS = ("g++", "c++", "clang++")
FLAGS = ("-O3", "-std=c++17", "-fPIC", "-shared", "-fopenmp")
# The second is for compilers that do not know the processor they run on.
TUNING = ("-march=native",), ()
TIMEOUT_S = 300
"""For one run of the compiler."""

PREBUILT = Path(__file__).with_name("prebuilt")
LEVELS = {
    "x86_64": {"x86-64-v3": "avx avx2 bmi1 bmi2 f16c fma abm movbe xsave", "x86-64": ""},
    "aarch64": {"armv8-a": ""},
}
"""For each machine the -march of prebuilt libraries, best first, and the flags in /proc/cpuinfo that it takes."""


def build() -> Path:
    """Return the path of the shared library: compiled for this machine, else a prebuilt one.

    Raises:
        BuildError: it cannot be compiled here, and there is no prebuilt library of this source for this processor.
    """
    try:
        return _build_here()
    except BuildError:
        if (found := _prebuilt()) is None:
            raise
        return found


def _prebuilt() -> Path | None:
    cpuinfo = Path("/proc/cpuinfo")
    flags = set(cpuinfo.read_text(encoding="utf-8", errors="replace").split()) if cpuinfo.exists() else set()
    for level, needed in LEVELS.get(platform.machine(), {}).items():
        library = PREBUILT / _prebuilt_name(level)
        if flags.issuperset(needed.split()) and library.exists():
            return library
    return None


def _prebuilt_name(level: str) -> str:
    return f"knn_cpu-{platform.machine()}-{level}-{hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:20]}.so"


def prebuild(folder: Path) -> list[Path]:
    """Compile the libraries that a wheel for this kind of machine should carry; libraries of other sources go.

    Raises:
        BuildError: no compiler, or it failed, or this kind of machine is not in LEVELS.
    """
    levels = LEVELS.get(platform.machine())
    if levels is None:
        raise BuildError(f"machine: got {platform.machine()}; expected one of {', '.join(LEVELS)}")
    compiler = _compiler()
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(f"knn_cpu-{platform.machine()}-*.so"):
        old.unlink()
    libraries = [folder / _prebuilt_name(level) for level in levels]
    for level, library in zip(levels, libraries, strict=True):
        _compile(compiler, ((f"-march={level}",),), library)
    return libraries


def _build_here() -> Path:
    """Return the path of the library for this machine, compiling it where the cache has none.

    Raises:
        BuildError: no compiler, or it failed, or `build_once` does.
    """
    compiler = _compiler()
    try:
        version = subprocess.run([*compiler, "--version"], capture_output=True, check=True, timeout=TIMEOUT_S).stdout
        recipe = [SOURCE.read_bytes(), repr((compiler, FLAGS, TUNING)).encode(), version, _processor().encode()]
        name = f"knn_cpu-{hash_of(recipe)}.so"
        return build_once(name, "the CPU kernel", lambda library: _compile(compiler, TUNING, library))
    except (OSError, subprocess.SubprocessError) as error:
        raise BuildError(str(error)) from error


def _compiler() -> list[str]:
    if given := os.environ.get("CXX"):
        command = shlex.split(given)
        if shutil.which(command[0]):
            return command
        raise BuildError(f"the compiler CXX={given} is not on the path")
    for name in COMPILERS:
        if path := shutil.which(name):
            return [path]
    raise BuildError(f"no C++ compiler found ({', '.join(COMPILERS)}; CXX names another)")


def _processor() -> str:
    """What `-march=native` depends on."""
    described = [platform.machine(), platform.processor()]
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        told = ("vendor_id", "cpu family", "model", "stepping", "flags", "Features", "CPU part")
        first_core = cpuinfo.read_text(encoding="utf-8", errors="replace").split("\n\n", maxsplit=1)[0]
        described += [line for line in first_core.splitlines() if line.split(":")[0].strip() in told]
    return "\n".join(described)


def _compile(compiler: list[str], tunings: tuple[tuple[str, ...], ...], library: Path) -> None:
    """Write the library, by the first tuning that the compiler knows."""
    for tuning in tunings:
        command = [*compiler, *FLAGS, *tuning, str(SOURCE), "-o", str(library)]
        run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
        if run.returncode == 0:
            return
    complaint = run.stderr.strip().splitlines() or ["no message"]
    raise BuildError(f"{shlex.join(compiler)} failed: {complaint[0]}")


def main() -> None:
    """Command line of `prebuild`."""
    parser = argparse.ArgumentParser(
        description="Compile the CPU kernel for processors in general, to go into a wheel. CXX names the compiler."
    )
    parser.add_argument("--out", type=Path, default=PREBUILT, help="folder (default: in the package, %(default)s)")
    try:
        libraries = prebuild(parser.parse_args().out)
    except (BuildError, OSError, subprocess.SubprocessError) as error:
        sys.exit(f"kebiolm: {error}")
    for library in libraries:
        print(library)


if __name__ == "__main__":
    main()
