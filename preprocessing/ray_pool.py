"""A pool of Ray actors that do units of work; the only file that knows Ray.

Ray's own retries are switched off, because by default they repeat a document that kills its process for ever, and
because a job that skips errors reports success over lost data. Instead the driver keeps the count: a unit gets a
bounded number of attempts, an actor that died is replaced, and units that failed are kept by name for the job to report
at its end. A unit that raised counts as one that failed: what it met may pass (a disk, memory), and where it does not,
the further attempts cost no more than time. A user's mistake (`UserError`) is not tried again.
"""

from __future__ import annotations

import logging
import os
import re
import socket
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

# Ray reads these when it is imported: no usage reports, no hint about GPUs that this job does not use.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray
from ray.exceptions import RayError, RayTaskError

from kebiolm.errors import UserError

MAX_ATTEMPTS = 3
MAX_FAILED_STARTS = 3
# A large model on a cold disk loads in a minute or two; a pool that does not start in this time never will.
START_TIMEOUT_S = 600.0
CONNECT_TIMEOUT_S = 10.0

# Units are paths and results are counts: Ray's shared memory, 30% of the machine by default, stays nearly unused.
_OBJECT_STORE_BYTES = 100 << 20


@contextmanager
def ray_session(address: str | None, workers: int) -> Iterator[None]:
    """Connect to a cluster or start Ray on this machine; a session that is open already is used and left open.

    Raises:
        UserError: there is no cluster at `address`, or it has fewer CPUs than workers; or this machine has.
    """
    if ray.is_initialized():
        yield
        return
    if address:
        _check_address(address)
    elif workers > max(2, cores := len(os.sched_getaffinity(0))):
        mend = "ask for fewer, or give --ray-address"
        raise UserError("--workers", got=workers, expected=f"at most {cores}, one for each core", mend=mend)
    # Every actor holds one CPU and nothing else of the job needs one, so a local pool can never wait for itself.
    local = {"num_cpus": workers, "object_store_memory": _OBJECT_STORE_BYTES, "include_dashboard": False}
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    # Ray writes its access token into the home folder with the mode that the umask leaves.
    umask = os.umask(0o077)
    try:
        ray.init(address=address or "local", **quiet, **({} if address else local))
    except (ConnectionError, RayError, RuntimeError, ValueError) as error:  # RuntimeError: another version of Ray
        mend = "start Ray there, check its token (RAY_AUTH_TOKEN_PATH) and version, or leave --ray-address out"
        got = str(error).strip().splitlines()[0]
        raise UserError(f"--ray-address {address}", got=got, expected="a running Ray cluster", mend=mend) from None
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


class _Ended(NamedTuple):
    """How a call ended: what it returned, or the reason why it failed."""

    result: Any = None
    """What it returned; a user's mistake as an exception."""
    reason: str | None = None
    died: bool = False
    is_mistake: bool = False


class WorkerPool:
    """Actors that do one unit of work after another; one call per actor is under way at a time.

    Args:
        worker_class: what an actor is: `load()` is called once, then methods for units.
        arguments: for the constructor of `worker_class`.
        workers: most actors at a time; no more are started than there are units.
        max_attempts: a unit that raised or whose actor died is tried this often.
    """

    def __init__(
        self, worker_class: type, arguments: tuple[Any, ...], *, workers: int, max_attempts: int = MAX_ATTEMPTS
    ) -> None:
        actor_class = ray.remote(num_cpus=1, max_restarts=0, max_task_retries=0)(worker_class)
        self._new_actor = lambda: actor_class.remote(*arguments)
        self._workers, self._max_attempts = workers, max_attempts
        self._failed_starts = 0  # in a row
        self._idle: list[Any] = []
        self._under_way: dict[Any, tuple[Any, Hashable | None]] = {}  # Ray's reference -> (actor, unit; None: it loads)

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *exception: object) -> None:
        # A cluster that is shared gets its CPUs back at once, not when Ray notices that nobody needs these actors.
        for actor in [*self._idle, *(actor for actor, _ in self._under_way.values())]:
            ray.kill(actor)

    def start(self) -> None:
        """Start all workers and wait until they have loaded; without it they start with the first units.

        Raises:
            UserError: as `run`.
        """
        while len(self._idle) < self._workers:
            self._start_actors(self._workers)
            self._take_ended()

    def run(
        self,
        method: str,
        units: Mapping[Hashable, tuple[Any, ...]],
        *,
        failed: dict[Hashable, str],
        is_progress: Callable[[Hashable], bool] = lambda unit: False,
    ) -> Iterator[tuple[Hashable, Any]]:
        """Call `method` once for each unit.

        Args:
            method: name of a method of the worker class.
            units: unit -> arguments of the call.
            failed: gets an entry, unit -> reason, for each unit that failed in every attempt.
            is_progress: asked when a unit's actor died; true where this death brought the unit forward (a document that
                kills its process was found out), so that it does not count as an attempt.

        Yields:
            (unit, what the method returned) as each is done, in any order.

        Raises:
            UserError: no worker can start.
        """
        waiting = deque(units)
        attempts = Counter[Hashable]()
        while waiting or any(unit is not None for _, unit in self._under_way.values()):
            while waiting and self._idle:
                actor, unit = self._idle.pop(), waiting.popleft()
                self._under_way[getattr(actor, method).remote(*units[unit])] = (actor, unit)
            self._start_actors(len(waiting))
            unit, ended = self._take_ended()
            if unit is None:
                continue
            if ended.reason is None:
                yield unit, ended.result
                continue
            attempts[unit] += not (ended.died and is_progress(unit))
            if attempts[unit] < self._max_attempts and not ended.is_mistake:
                waiting.append(unit)
            else:
                failed[unit] = ended.reason

    def _start_actors(self, wanted: int) -> None:
        """Start actors until so many are loading, as far as the pool's size allows."""
        loading = sum(unit is None for _, unit in self._under_way.values())
        for _ in range(min(wanted - loading, self._workers - len(self._idle) - len(self._under_way))):
            actor = self._new_actor()
            self._under_way[actor.load.remote()] = (actor, None)

    def _take_ended(self) -> tuple[Hashable | None, _Ended]:
        """Wait until a call ends; returns its unit, None where an actor loaded, and how it ended."""
        only_loading = all(unit is None for _, unit in self._under_way.values())
        ready, _ = ray.wait(list(self._under_way), timeout=START_TIMEOUT_S if only_loading else None)
        if not ready:
            raise _cannot_start(f"no worker that was ready after {START_TIMEOUT_S:.0f} s")
        actor, unit = self._under_way.pop(ready[0])
        ended = _how_it_ended(ready[0])
        if unit is None and ended.reason is not None:
            # It could not load: it cannot work, and would only keep its CPU from the next.
            ray.kill(actor)
            if ended.is_mistake:
                raise ended.result
            self._count_failed_start(ended.reason)
        elif not ended.died:
            self._idle.append(actor)
            self._failed_starts = 0
        return unit, ended

    def _count_failed_start(self, reason: str) -> None:
        self._failed_starts += 1
        if self._failed_starts >= MAX_FAILED_STARTS:
            raise _cannot_start(f"{self._failed_starts} workers that failed to load; the last: {reason}")


def _how_it_ended(reference: Any) -> _Ended:
    try:
        return _Ended(ray.get(reference))
    except RayTaskError as error:
        if isinstance(error.cause, UserError):
            return _Ended(error.cause, str(error.cause), is_mistake=True)
        return _Ended(reason=f"{type(error.cause).__name__}: {error.cause}")
    except RayError as error:
        return _Ended(reason=f"its worker died: {_last_line(error)}", died=True)


def _last_line(error: RayError) -> str:
    """Ray says in many lines, some of them coloured, that an actor died; the last one says why."""
    return re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().splitlines()[-1].strip()


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
    return UserError("workers", got=got, expected="workers that have loaded what they need", mend=mend)
