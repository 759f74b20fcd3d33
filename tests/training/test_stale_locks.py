"""Locks of extension builds: those of killed builds go, those of living ones stay. The builds are torch's own."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from kebiolm.training.stale_locks import QUIET_S, extension_cache, remove_stale_locks

BUILD = "import sys; from torch.utils.cpp_extension import load; load('op', sys.argv[1], is_python_module=False)"
SLOW = "#include <torch/extension.h>\n"  # half a minute of headers
QUICK = "int answer() { return 42; }\n"
_LONGEST_WAIT_S = 120


class Build:
    """`torch.utils.cpp_extension.load` of one source in a process of its own, as DeepSpeed builds its operators."""

    def __init__(self, folder: Path, source: str) -> None:
        self.cache, code = folder / "cache", folder / "op.cpp"
        self.lock = self.cache / "op" / "lock"
        code.write_text(source, encoding="ascii")
        environment = os.environ | {"TORCH_EXTENSIONS_DIR": str(self.cache)}
        environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"  # ninja
        self.process = subprocess.Popen([sys.executable, "-c", BUILD, str(code)], env=environment)

    def wait_for_compiler(self) -> psutil.Process:
        """The compiler, once it works."""
        deadline = time.monotonic() + _LONGEST_WAIT_S
        while time.monotonic() < deadline:
            for child in psutil.Process(self.process.pid).children(recursive=True):
                if child.name() == "cc1plus":
                    return child
            time.sleep(0.05)
        raise AssertionError("no compiler was started")

    def kill(self, *others: psutil.Process) -> None:
        """SIGKILL the builder, and then those."""
        self.process.kill()
        self.process.wait()
        for other in others:
            other.kill()


def is_working(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


@pytest.fixture
def slow_build(tmp_path: Path) -> Iterator[Build]:
    build = Build(tmp_path, SLOW)
    children: list[psutil.Process] = []
    try:
        build.wait_for_compiler()
        children = psutil.Process(build.process.pid).children(recursive=True)
        yield build
    finally:
        for process in children:
            if process.is_running():
                process.kill()
        build.kill()


def test_lock_stays_while_its_build_lives_and_goes_when_it_was_killed(slow_build, tmp_path):
    said: list[str] = []
    assert remove_stale_locks(slow_build.cache, said.append) == []
    assert slow_build.lock.exists()
    assert f"process {slow_build.process.pid} is building" in said.pop()

    ninja = psutil.Process(slow_build.process.pid).children()
    compilers = psutil.Process(slow_build.process.pid).children(recursive=True)
    slow_build.kill()
    assert is_working(ninja[0])  # they outlive their builder
    threading.Timer(1.0, lambda: [process.kill() for process in compilers if process.is_running()]).start()
    assert remove_stale_locks(slow_build.cache, said.append, shared=False) == [slow_build.lock]
    assert "waiting for them" in said[0]
    assert said[1] == f"{slow_build.lock}: left by a build that was killed; removed"
    assert not any(is_working(process) for process in compilers)

    assert Build(tmp_path, QUICK).process.wait(_LONGEST_WAIT_S) == 0  # with the lock it would wait for ever


def test_lock_in_a_folder_that_others_share_must_have_been_left_alone_for_long(tmp_path):
    lock = tmp_path / "py311_cpu" / "op" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    said: list[str] = []
    assert remove_stale_locks(tmp_path, said.append, shared=True) == []
    assert lock.exists() and "another host may be building" in said.pop()

    long_ago = time.time() - QUIET_S - 1
    for path in (lock, lock.parent):
        os.utime(path, (long_ago, long_ago))
    assert remove_stale_locks(tmp_path, said.append, shared=True) == [lock]
    assert not lock.exists()


def test_cache_without_locks_is_left_alone_silently(tmp_path):
    (tmp_path / "op").mkdir()
    assert remove_stale_locks(tmp_path, pytest.fail) == []
    assert remove_stale_locks(tmp_path / "absent", pytest.fail) == []


def test_cache_is_torchs_own(monkeypatch, tmp_path):
    from torch.utils.cpp_extension import _get_build_directory

    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert Path(_get_build_directory("op", False)).parents[1] == extension_cache()
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "named"))
    assert Path(_get_build_directory("op", False)).parent == extension_cache() == tmp_path / "named"
