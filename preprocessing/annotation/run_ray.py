"""Runs an annotation job on a pool of Ray actors; the only file that knows Ray.

Ray's own retries are switched off, because by default they repeat a document that kills its process for ever, and
because a job that skips errors reports success over lost data. Instead the driver keeps the ledger: a unit gets a
bounded number of attempts, an actor that died is replaced, and units that failed make the job fail at its end, by name.
A unit that raised counts as one that failed: what it met may pass (a disk, memory), and where it does not, the further
attempts cost no more than time. Only a user's mistake (`UserError`) ends the job at once.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Ray reads these when it is imported: no usage reports, no hint about GPUs that this job does not use.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray
from ray.exceptions import RayError, RayTaskError

from kebiolm.console import console, progress
from kebiolm.errors import UserError
from preprocessing.annotation.job import AnnotationJob, UnitWorker, close_job, open_job, summary_table

MAX_FAILED_STARTS = 3
# A large model on a cold disk loads in a minute or two; a pool that does not start in this time never will.
START_TIMEOUT_S = 600.0
CONNECT_TIMEOUT_S = 10.0

# Units are paths and results are counts: Ray's shared memory, 30% of the machine by default, stays nearly unused.
_OBJECT_STORE_BYTES = 100 << 20


def run_job(
    job: AnnotationJob, *, workers: int, ray_address: str | None = None, overwrite: bool = False
) -> dict[str, Any]:
    """Annotate every input that is not done yet, and print what came of it.

    Args:
        job: what to do; its inputs are files. On a cluster all paths must be on storage that every node shares.
        workers: number of actors; each takes one CPU and its own copy of the model.
        ray_address: a running Ray cluster; None starts Ray on this machine for the time of the job.
        overwrite: begin anew, whatever an earlier job left in the folder.

    Returns:
        The manifest of the finished folder.

    Raises:
        UserError: a file failed in every attempt (the others are done and kept), or what `open_job` refuses.
    """
    with open_job(job, overwrite=overwrite) as units:
        if units:
            started = time.monotonic()
            with ray_session(ray_address, workers):
                paths = {unit: job.inputs[unit] for unit in units}
                records = run_units(paths, UnitWorker, (job, _umask()), workers=workers)
            seconds = time.monotonic() - started
            speed = f"{records / seconds:.1f} abstracts/s"
            console.print(f"{len(units)} of {len(job.inputs)} files, {seconds:.1f} s with starting: {speed}")
        else:
            console.print("every file was annotated before: nothing to do")
        manifest = close_job(job)
    console.print(summary_table(manifest))
    return manifest


@contextmanager
def ray_session(address: str | None, workers: int) -> Iterator[None]:
    """Connect to a cluster or start Ray on this machine; a session that is open already is used and left open.

    Raises:
        UserError: there is no cluster at `address`, or it has fewer CPUs than workers.
    """
    if ray.is_initialized():
        yield
        return
    if address:
        _check_address(address)
    # Every actor holds one CPU and nothing else of the job needs one, so a local pool can never wait for itself.
    local = {"num_cpus": workers, "object_store_memory": _OBJECT_STORE_BYTES, "include_dashboard": False}
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    # Ray writes its access token into the home folder with the mode that the umask leaves.
    umask = os.umask(0o077)
    try:
        ray.init(address=address or "local", **quiet, **({} if address else local))
    except (ConnectionError, RayError, ValueError) as error:
        mend = "start Ray there, or leave --ray-address out"
        raise UserError(f"--ray-address {address}", got=error, expected="a running Ray cluster", mend=mend) from None
    finally:
        os.umask(umask)
    try:
        cpus = int(ray.cluster_resources().get("CPU", 0))
        if cpus < workers:
            # Ray would wait for the missing CPUs for ever.
            raise UserError(
                "--workers",
                got=f"{workers} workers",
                expected=f"at most {cpus}, one for each CPU",
                mend="ask for fewer",
            )
        yield
    finally:
        ray.shutdown()


def run_units(
    units: Mapping[int, Path], worker_class: type, arguments: tuple[Any, ...], *, workers: int, max_attempts: int = 3
) -> int:
    """Do each unit on one of a pool of actors.

    Args:
        units: number and file of each unit.
        worker_class: what an actor is: `load()` is called once, then `run(unit, path)` for one unit after another,
            which returns the unit's manifest.
        arguments: for the constructor of `worker_class`.
        workers: size of the pool, at most.
        max_attempts: a unit that raised or whose actor died is tried this often.

    Returns:
        How many records the units had.

    Raises:
        UserError: units failed in every attempt, or no worker can start; or what a worker raised as such.
    """
    pool, records = _Pool(units, worker_class, arguments, max_attempts), 0
    with progress("Annotating", total=len(units), unit="files") as advance:
        for manifest in pool.run(min(workers, len(units))):
            records += manifest["counts"]["documents_in"]
            advance(1, note=f"{records} documents")
    if pool.failed:
        reasons = "; ".join(f"{units[unit].name} ({reason})" for unit, reason in sorted(pool.failed.items()))
        raise UserError(
            "annotation",
            got=f"{len(pool.failed)} of {len(units)} files that failed {max_attempts} times: {reasons}",
            expected="every file annotated",
            mend="the other files are done and kept: mend or leave out these and run the command again",
        )
    return records


class _Pool:
    """Actors at work, the units that wait, and the attempts made. One call per actor is under way at a time."""

    def __init__(
        self, units: Mapping[int, Path], worker_class: type, arguments: tuple[Any, ...], max_attempts: int
    ) -> None:
        self._units, self._waiting = units, deque(sorted(units))
        self._max_attempts, self._attempts = max_attempts, Counter[int]()
        self._failed_starts = 0
        self._actors: list[Any] = []
        self._under_way: dict[Any, tuple[Any, int | None]] = {}  # Ray's reference -> (actor, unit; None while it loads)
        actor_class = ray.remote(num_cpus=1, max_restarts=0, max_task_retries=0)(worker_class)
        self._new_actor = lambda: actor_class.remote(*arguments)
        self.failed: dict[int, str] = {}

    def run(self, workers: int) -> Iterator[dict[str, Any]]:
        """Do all units; yields the manifest of each as it is done, in any order."""
        try:
            for _ in range(workers):
                self._start_worker()
            while self._under_way:
                manifest = self._next_result()
                if manifest is not None:
                    yield manifest
        finally:
            # A cluster that is shared gets its CPUs back at once, not when Ray notices that nobody needs these actors.
            for actor in self._actors:
                ray.kill(actor)

    def _next_result(self) -> dict[str, Any] | None:
        """Wait until a call ends and give its actor the next unit; the manifest of a unit that is done, else None."""
        only_loading = all(unit is None for _, unit in self._under_way.values())
        ready, _ = ray.wait(list(self._under_way), timeout=START_TIMEOUT_S if only_loading else None)
        if not ready:
            raise _cannot_start(f"no worker that was ready after {START_TIMEOUT_S:.0f} s")
        actor, unit = self._under_way.pop(ready[0])
        manifest = None
        try:
            manifest = ray.get(ready[0])
        except RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise error.cause from None
            if unit is None:  # it could not load: it cannot work, and would only keep its CPU from the next
                ray.kill(actor)
                actor = None
            self._count_failure(unit, f"{type(error.cause).__name__}: {error.cause}")
        except RayError as error:
            actor = None
            self._count_failure(unit, f"its worker died: {str(error).splitlines()[0]}")
        self._give_work(actor)
        return manifest

    def _start_worker(self) -> None:
        actor = self._new_actor()
        self._actors.append(actor)
        self._under_way[actor.load.remote()] = (actor, None)

    def _give_work(self, actor: Any | None) -> None:
        """Let an actor do the next unit; where it died, let another take its place."""
        if not self._waiting:
            return
        if actor is None:
            self._start_worker()
            return
        unit = self._waiting.popleft()
        self._under_way[actor.run.remote(unit, self._units[unit])] = (actor, unit)

    def _count_failure(self, unit: int | None, reason: str) -> None:
        if unit is None:
            self._failed_starts += 1
            if self._failed_starts >= MAX_FAILED_STARTS:
                raise _cannot_start(f"{self._failed_starts} workers that failed to load; the last: {reason}")
            return
        self._attempts[unit] += 1
        if self._attempts[unit] < self._max_attempts:
            self._waiting.append(unit)
        else:
            self.failed[unit] = reason


def _check_address(address: str) -> None:
    """Refuse an address where nothing listens; Ray itself would try for many minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdecimal():
        return  # a name that Ray resolves, such as "auto"
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        mend = "start Ray there, or leave --ray-address out"
        raise UserError(f"--ray-address {address}", got=error, expected="a running Ray cluster", mend=mend) from None


def _cannot_start(got: str) -> UserError:
    mend = "check free memory and CPUs, and that the model loads with spacy.load"
    return UserError("annotation workers", got=got, expected="workers with model and index loaded", mend=mend)


def _umask() -> int:
    """The mask of this process; the workers of a local Ray would inherit a stricter one (see `ray_session`)."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
