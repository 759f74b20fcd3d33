"""Building the CPU kernel: its cache, its lock, its failures, and the code paths for other processors."""

from __future__ import annotations

import ctypes
import fcntl
import multiprocessing
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kebiolm.kernels import knn_entity_attention
from kebiolm.kernels.knn_entity_attention import build_cache, build_cpu, cpu
from tests.kernels.test_knn_backends import DIFFERENTIABLE, assert_near, make_inputs, run

COMPILER = """#!/bin/sh
if [ "$1" = --version ]; then echo "compiler ${VERSION:-1}"; exit 0; fi
echo run >> "$RUNS"
sleep 0.3
for last; do :; done
echo built > "$last"
"""


@pytest.fixture(autouse=True)
def prebuilt(tmp_path: Path, monkeypatch) -> Path:
    """The folder of prebuilt libraries, empty."""
    monkeypatch.setattr(build_cpu, "PREBUILT", tmp_path / "prebuilt")
    return tmp_path / "prebuilt"


def _build(_: int) -> Path:
    return build_cpu.build()


@pytest.fixture
def compiler_runs(tmp_path: Path, monkeypatch) -> Path:
    """A stand-in for the compiler and an empty cache; the file has one line for each time it compiled."""
    script, runs = tmp_path / "compiler", tmp_path / "runs"
    script.write_text(COMPILER)
    script.chmod(0o755)
    for name, value in {"CXX": script, "RUNS": runs, build_cache.CACHE_VARIABLE: tmp_path / "cache"}.items():
        monkeypatch.setenv(name, str(value))
    return runs


def test_built_once_with_one_line(compiler_runs, capfd):
    library = build_cpu.build()
    assert library.read_text() == "built\n"
    assert build_cpu.build() == library
    assert compiler_runs.read_text() == "run\n"
    assert capfd.readouterr().err.splitlines() == [
        "kebiolm: building the CPU kernel, once for this machine (some seconds)"
    ]


def test_another_compiler_processor_or_source_builds_anew(compiler_runs, monkeypatch, tmp_path):
    libraries = {build_cpu.build()}
    monkeypatch.setenv("VERSION", "2")
    libraries.add(build_cpu.build())
    monkeypatch.setattr(build_cpu, "_processor", lambda: "another")
    libraries.add(build_cpu.build())
    source = tmp_path / "other.cpp"
    source.write_text("other")
    monkeypatch.setattr(build_cpu, "SOURCE", source)
    libraries.add(build_cpu.build())
    assert len(libraries) == 4


def test_processes_that_start_together_build_once(compiler_runs):
    with multiprocessing.get_context("fork").Pool(2) as pool:
        paths = set(pool.map(_build, range(2), chunksize=1))
    assert len(paths) == 1
    assert paths.pop().read_text() == "built\n"
    assert compiler_runs.read_text() == "run\n"


def test_a_killed_build_leaves_no_lock_and_no_half_file(compiler_runs):
    library = build_cpu.build()
    lock = library.with_suffix(".lock")
    library.unlink()
    (library.parent / f"{library.stem}.killed.tmp").write_text("half")
    holder = (
        "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, 2); print(1, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", holder, str(lock)], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    assert build_cpu.build() == library
    assert sorted(path.name for path in library.parent.iterdir()) == sorted([lock.name, library.name])


def test_a_build_that_hangs_is_not_waited_for_without_end(compiler_runs, monkeypatch):
    library = build_cpu.build()
    lock = library.with_suffix(".lock")
    library.unlink()
    monkeypatch.setattr(build_cache, "TIMEOUT_S", 0.3)
    with open(lock, "w") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        with pytest.raises(build_cache.BuildError, match=f"held {lock} for 0.3 s: .*{build_cache.CACHE_VARIABLE}"):
            build_cpu.build()
    assert compiler_runs.read_text() == "run\n"


def test_a_wait_for_another_process_is_told_once(compiler_runs, monkeypatch, capfd):
    lock_file = compiler_runs.with_suffix(".lock")
    monkeypatch.setattr(build_cache, "TIMEOUT_S", 0.5)
    monkeypatch.setattr(build_cache, "SILENT_S", 0)
    with open(lock_file, "w") as holder, open(lock_file) as waiter:
        fcntl.flock(holder, fcntl.LOCK_EX)
        with pytest.raises(build_cache.BuildError):
            build_cache._wait_for_lock(waiter.fileno(), lock_file)
        assert capfd.readouterr().err.splitlines() == [
            f"kebiolm: waiting for another process that builds the same, at most 0.5 s (it holds {lock_file})"
        ]
        fcntl.flock(holder, fcntl.LOCK_UN)
        build_cache._wait_for_lock(waiter.fileno(), lock_file)
    assert not capfd.readouterr().err


def test_prebuilt_libraries_are_used_without_a_compiler(prebuilt, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv(build_cache.CACHE_VARIABLE, str(tmp_path / "cache"))
    prebuilt.mkdir()
    of_older_source = prebuilt / f"knn_cpu-{platform.machine()}-x86-64-0123.so"
    of_older_source.write_text("")
    monkeypatch.setattr(sys, "argv", ["build_cpu"])
    build_cpu.main()
    libraries = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert sorted(prebuilt.iterdir()) == sorted(libraries)
    monkeypatch.setenv("CXX", "no-such-compiler")
    chosen = build_cpu.build()
    assert chosen in libraries
    library = ctypes.CDLL(str(chosen))
    monkeypatch.setattr(cpu, "library", lambda: library)
    h, table, gold = make_inputs(25, 1000, 29)
    out, _ = run(h, table, gold, 10, "cpu")
    exact, _ = run(h, table, gold, 10, "reference", dtype=torch.float64)
    assert_near(out.lse, exact.lse)
    assert_near(out.topk_val, exact.topk_val)
    # A processor without the flags of the best one takes the next.
    monkeypatch.setattr(build_cpu, "LEVELS", {platform.machine(): {"x86-64-v3": "no-such-flag", "x86-64": ""}})
    older = [path for path in libraries if "-x86-64-" in path.name and "-v3-" not in path.name]
    if older:
        assert build_cpu.build() == older[0]
    # The source changed since: none fits.
    source = tmp_path / "other.cpp"
    source.write_text("other")
    monkeypatch.setattr(build_cpu, "SOURCE", source)
    with pytest.raises(build_cache.BuildError, match="no-such-compiler"):
        build_cpu.build()


def test_prebuilding_says_why_it_fails(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["build_cpu"])
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(SystemExit, match="kebiolm: the compiler CXX=no-such-compiler is not on the path"):
        build_cpu.main()
    monkeypatch.setattr(platform, "machine", lambda: "abacus")
    with pytest.raises(SystemExit, match="machine: got abacus; expected one of x86_64, aarch64"):
        build_cpu.main()


@pytest.mark.parametrize(
    ("compiler", "message"), [("no-such-compiler", "CXX=no-such-compiler is not on the path"), ("false", "exit status")]
)
def test_no_working_compiler(monkeypatch, tmp_path, compiler, message):
    monkeypatch.setenv("CXX", compiler)
    monkeypatch.setenv(build_cache.CACHE_VARIABLE, str(tmp_path))
    with pytest.raises(build_cache.BuildError, match=message):
        build_cpu.build()


def test_a_source_that_does_not_compile(monkeypatch, tmp_path):
    source = tmp_path / "broken.cpp"
    source.write_text("int broken(")
    monkeypatch.setattr(build_cpu, "SOURCE", source)
    monkeypatch.setenv(build_cache.CACHE_VARIABLE, str(tmp_path / "cache"))
    with pytest.raises(build_cache.BuildError, match=r"failed: .*broken\.cpp"):
        build_cpu.build()
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]


def test_a_cache_that_cannot_be_written(compiler_runs, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(build_cache.CACHE_VARIABLE, str(tmp_path / "file" / "cache"))
    with pytest.raises(build_cache.BuildError, match="NotADirectoryError"):
        build_cpu.build()


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="other processors have one code path")
@pytest.mark.parametrize("architecture", ["x86-64", "haswell"])
def test_paths_for_older_processors(architecture, monkeypatch, tmp_path):
    if architecture == "haswell" and torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        pytest.skip("this processor has no AVX2")
    monkeypatch.setattr(build_cpu, "TUNING", ((f"-march={architecture}",),))
    monkeypatch.setenv(build_cache.CACHE_VARIABLE, str(tmp_path))
    library = ctypes.CDLL(str(build_cpu.build()))
    monkeypatch.setattr(cpu, "library", lambda: library)
    for mentions, entities, size, k in [(1, 70, 5, 3), (97, 1000, 29, 10), (25, 36, 8, 100)]:
        h, table, gold = make_inputs(mentions, entities, size)
        out, grads = run(h, table, gold, k, "cpu", through=DIFFERENTIABLE)
        exact, exact_grads = run(h, table, gold, k, "reference", through=DIFFERENTIABLE, dtype=torch.float64)
        for one, other in zip((*out[:4], *grads), (*exact[:4], *exact_grads), strict=True):
            assert_near(one, other)


def test_the_kernel_is_built_here():
    # A machine that runs these tests has a compiler; elsewhere the other tests of the CPU backend would test tiled.
    assert cpu.library() is not None
    h, table, gold = make_inputs(3, 9, 2)
    assert knn_entity_attention(h, table, gold, 2, backend="cpu").lse.shape == (3,)
