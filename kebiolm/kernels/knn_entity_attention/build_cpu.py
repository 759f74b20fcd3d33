"""Compile the CPU kernel, once per machine, into a cache folder.

The file's name has a hash of the source, the flags, the compiler's version and the processor's features: a home folder
shared by different machines, or a new compiler, never serves code that was made for another.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("knn_cpu.cpp")
CACHE_VARIABLE = "KEBIOLM_CACHE"
COMPILERS = ("g++", "c++", "clang++")
FLAGS = ("-O3", "-std=c++17", "-fPIC", "-shared", "-fopenmp")
# The second is for compilers that do not know the processor they run on.
TUNING = ("-march=native",), ()
TIMEOUT_S = 300


class BuildError(Exception):
    """The kernel cannot be built on this machine; says why in one line."""


def cache_folder() -> Path:
    """$KEBIOLM_CACHE, or kebiolm/ in the user's cache folder ($XDG_CACHE_HOME, else ~/.cache)."""
    if given := os.environ.get(CACHE_VARIABLE):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kebiolm"


def build() -> Path:
    """Return the path of the shared library, compiling it where the cache has none.

    Processes that need it at the same time wait for one of them. The lock is the kernel's (flock): it goes with the
    process that holds it, so a killed build leaves none behind.

    Raises:
        BuildError: no compiler, or it failed, or the cache folder cannot be written.
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
    import fcntl

    with open(library.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if library.exists():
            return
        print("kebiolm: building the CPU kernel, once for this machine (some seconds)", file=sys.stderr, flush=True)
        # Under the lock nobody else builds: what lies here was left by a build that was killed.
        for leftover in library.parent.glob(f"{library.stem}.*.tmp"):
            leftover.unlink(missing_ok=True)
        handle, name = tempfile.mkstemp(dir=library.parent, prefix=f"{library.stem}.", suffix=".tmp")
        os.close(handle)
        for tuning in TUNING:
            command = [*compiler, *FLAGS, *tuning, str(SOURCE), "-o", name]
            run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
            if run.returncode == 0:
                os.replace(name, library)
                return
        os.unlink(name)
        complaint = run.stderr.strip().splitlines() or ["no message"]
        raise BuildError(f"{shlex.join(compiler)} failed: {complaint[0]}")
