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
import tempfile
import time
from pathlib import Path

SOURCE = Path(__file__).with_name("knn_cpu.cpp")
CACHE_VARIABLE = "KEBIOLM_CACHE"
COMPILERS = ("g++", "c++", "clang++")
FLAGS = ("-O3", "-std=c++17", "-fPIC", "-shared", "-fopenmp")
# The second is for compilers that do not know the processor they run on.
TUNING = ("-march=native",), ()
TIMEOUT_S = 300
"""For one run of the compiler, and for waiting for another process that builds."""
SILENT_S = 1
"""So long a wait for another process needs no word."""

PREBUILT = Path(__file__).with_name("prebuilt")
LEVELS = {
    "x86_64": {"x86-64-v3": "avx avx2 bmi1 bmi2 f16c fma abm movbe xsave", "x86-64": ""},
    "aarch64": {"armv8-a": ""},
}
"""For each machine the -march of prebuilt libraries, best first, and the flags in /proc/cpuinfo that it takes."""


class BuildError(Exception):
    """The kernel cannot be built on this machine; says why in one line."""


def cache_folder() -> Path:
    """$KEBIOLM_CACHE, or kebiolm/ in the user's cache folder ($XDG_CACHE_HOME, else ~/.cache)."""
    if given := os.environ.get(CACHE_VARIABLE):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kebiolm"


def wait_for_lock(descriptor: int, lock_file: Path) -> None:
    """Lock the open file of a build in the cache; one line on stderr says so where that takes longer than a moment.

    Raises:
        BuildError: another process does not give it back.
        ImportError: a system without flock.
    """
    import fcntl

    started, told = time.monotonic(), False
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waited = time.monotonic() - started
            # Its holder hangs, or a network file system keeps the lock of a machine that is gone.
            if waited > TIMEOUT_S:
                raise BuildError(
                    f"another process has held {lock_file} for {TIMEOUT_S} s: end it (fuser names it), or let "
                    f"{CACHE_VARIABLE} name a folder on a local disk"
                ) from None
            if waited > SILENT_S and not told:
                told = True
                print(
                    f"kebiolm: waiting for another process that builds the same kernel, at most {TIMEOUT_S} s "
                    f"(it holds {lock_file})",
                    file=sys.stderr,
                    flush=True,
                )
            time.sleep(0.1)


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
        library.chmod(0o755)  # made for its owner alone; a wheel is for all
    return libraries


def _build_here() -> Path:
    """Return the path of the library for this machine, compiling it where the cache has none.

    Processes that need it at the same time wait for one of them. The lock is the kernel's (flock): it goes with the
    process that holds it, so a killed build leaves none behind.

    Raises:
        BuildError: no compiler, or it failed, or the cache folder cannot be written, or another process that builds
            does not come to an end.
    """
    compiler = _compiler()
    try:
        version = subprocess.run([*compiler, "--version"], capture_output=True, check=True, timeout=TIMEOUT_S).stdout
        recipe = [SOURCE.read_bytes(), repr((compiler, FLAGS, TUNING)).encode(), version, _processor().encode()]
        key = hashlib.sha256(b"\0".join(hashlib.sha256(part).digest() for part in recipe)).hexdigest()[:20]
        folder = cache_folder()
        library = folder / f"knn_cpu-{key}.so"
        if not library.exists():
            folder.mkdir(parents=True, exist_ok=True)
            _compile_locked(compiler, library)
    except subprocess.SubprocessError as error:
        raise BuildError(str(error)) from error
    except (OSError, RuntimeError, ImportError) as error:
        # RuntimeError: no home folder is known; ImportError: a system without flock.
        raise BuildError(f"{type(error).__name__}: {error}") from error
    return library


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


def _compile_locked(compiler: list[str], library: Path) -> None:
    lock_file = library.with_suffix(".lock")
    with open(lock_file, "w") as lock:
        wait_for_lock(lock.fileno(), lock_file)
        if library.exists():
            return
        print("kebiolm: building the CPU kernel, once for this machine (some seconds)", file=sys.stderr, flush=True)
        # Under the lock nobody else builds: what lies here was left by a build that was killed.
        for leftover in library.parent.glob(f"{library.stem}.*.tmp"):
            leftover.unlink(missing_ok=True)
        _compile(compiler, TUNING, library)


def _compile(compiler: list[str], tunings: tuple[tuple[str, ...], ...], library: Path) -> None:
    """Put the library into its place, by the first tuning that the compiler knows."""
    handle, name = tempfile.mkstemp(dir=library.parent, prefix=f"{library.stem}.", suffix=".tmp")
    os.close(handle)
    for tuning in tunings:
        command = [*compiler, *FLAGS, *tuning, str(SOURCE), "-o", name]
        run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
        if run.returncode == 0:
            os.replace(name, library)
            return
    os.unlink(name)
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
