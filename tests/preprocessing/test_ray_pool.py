"""The pool's own promises, with real actors: every unit once, bounded attempts, and no silent failure."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
import ray

from kebiolm.errors import UserError
from preprocessing.ray_pool import WorkerPool, ray_session

# Actors run in processes that cannot import this module.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


class Adder:
    """Marks each call with a file, so that tests can count them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def load(self) -> None:
        pass

    def add(self, unit: int, number: int) -> int:
        (self.folder / f"{unit}-{len(list(self.folder.iterdir()))}").touch()
        return unit + number


def calls(folder: Path, units: int) -> list[int]:
    made = [file.name.partition("-")[0] for file in folder.iterdir()]
    return [made.count(str(unit)) for unit in range(units)]


def test_each_unit_is_done_once_in_stage_after_stage(tmp_path: Path, local_ray: None) -> None:
    failed: dict[object, str] = {}
    with WorkerPool(Adder, (tmp_path,), workers=2) as pool:
        for number in (100, 200):
            results = dict(pool.run("add", {unit: (unit, number) for unit in range(5)}, failed=failed))
            assert results == {unit: unit + number for unit in range(5)}
        assert dict(pool.run("add", {}, failed=failed)) == {}
    assert calls(tmp_path, 5) == [2] * 5
    assert not failed


def test_a_unit_that_always_fails_is_named_and_the_others_are_done(tmp_path: Path, local_ray: None) -> None:
    class Poisoned(Adder):
        def add(self, unit: int, number: int) -> int:
            result = super().add(unit, number)
            if unit == 0:
                os._exit(139)
            if unit == 1:
                raise RuntimeError("bad disk")
            return result

    failed: dict[object, str] = {}
    with WorkerPool(Poisoned, (tmp_path,), workers=2) as pool:
        results = dict(pool.run("add", {unit: (unit, 0) for unit in range(4)}, failed=failed))
        assert results == {2: 2, 3: 3}
        assert dict(pool.run("add", {3: (3, 1)}, failed=failed)) == {3: 4}, "the pool works on"
    assert "its worker died" in failed[0]
    assert failed[1] == "RuntimeError: bad disk"
    assert calls(tmp_path, 4) == [3, 3, 1, 2]


def test_deaths_that_found_something_out_do_not_count(tmp_path: Path, local_ray: None) -> None:
    class DiesFiveTimes(Adder):
        def add(self, unit: int, number: int) -> int:
            result = super().add(unit, number)
            if len(list(self.folder.iterdir())) <= 5:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

    failed: dict[object, str] = {}
    with WorkerPool(DiesFiveTimes, (tmp_path,), workers=1) as pool:
        results = dict(pool.run("add", {0: (0, 0)}, failed=failed, is_progress=lambda unit: True))
    assert (results, failed) == ({0: 0}, {})
    assert calls(tmp_path, 1) == [6]


def test_a_users_mistake_is_not_tried_again(tmp_path: Path, local_ray: None) -> None:
    class Mistaken(Adder):
        def add(self, unit: int, number: int) -> int:
            result = super().add(unit, number)
            if unit == 1:
                raise UserError("file", got="nothing", expected="something", mend="give something")
            return result

    failed: dict[object, str] = {}
    with WorkerPool(Mistaken, (tmp_path,), workers=1) as pool:
        assert dict(pool.run("add", {unit: (unit, 0) for unit in range(3)}, failed=failed)) == {0: 0, 2: 2}
    assert "give something" in failed[1]
    assert calls(tmp_path, 3) == [1, 1, 1]


def test_a_worker_that_cannot_load_ends_the_run(local_ray: None) -> None:
    class Unloadable:
        def load(self) -> None:
            raise UserError("model", got="nothing", expected="a model", mend="get one")

    class Dying:
        def load(self) -> None:
            os._exit(1)

    class Broken:
        def load(self) -> None:
            raise RuntimeError("no memory")

    for worker_class, message in (
        (Unloadable, "get one"),
        (Dying, "workers that failed to load"),
        (Broken, "RuntimeError: no memory"),
    ):
        with WorkerPool(worker_class, (), workers=2) as pool, pytest.raises(UserError, match=message):
            dict(pool.run("work", {0: (), 1: ()}, failed={}))


def test_a_cluster_that_is_not_there_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with pytest.raises(UserError, match=r"--ray-address .*refused"), ray_session("127.0.0.1:1", workers=1):
        pass
