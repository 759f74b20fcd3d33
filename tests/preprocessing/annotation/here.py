"""Runs an annotation job in this process, unit after unit, with no Ray: the same stages, the same files."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any

from preprocessing.annotation.job import AnnotationJob, describe_job
from preprocessing.annotation.run import Stages, close_job
from preprocessing.annotation.worker import AnnotationWorker
from preprocessing.ledger import open_ledger
from preprocessing.watch.screen import JobScreen


class PoolHere:
    """`WorkerPool` without processes: a unit that raises ends the test."""

    def __init__(self, worker: Any) -> None:
        self.worker = worker
        self.calls: list[tuple[str, Hashable]] = []

    def run(
        self,
        method: str,
        units: Mapping[Hashable, tuple[Any, ...]],
        *,
        failed: dict[Hashable, str],
        is_progress: Callable[[Hashable], bool],
    ) -> Iterator[tuple[Hashable, Any]]:
        for unit, arguments in units.items():
            self.calls.append((method, unit))
            yield unit, getattr(self.worker, method)(*arguments)


def run_here(job: AnnotationJob, *, overwrite: bool = False, finder: Any = None) -> dict[str, Any]:
    """Do a job, with another finder of mentions where one is given; returns its manifest."""
    return run_and_log(job, overwrite=overwrite, finder=finder)[0]


def run_and_log(
    job: AnnotationJob, *, overwrite: bool = False, finder: Any = None
) -> tuple[dict[str, Any], list[tuple[str, Hashable]]]:
    """Do a job; returns its manifest and the calls that were made: (stage, unit)."""
    described = describe_job(job)
    worker = AnnotationWorker(job, described, umask=0o022)
    worker.load()
    if finder is not None:
        worker._finder = finder
    pool = PoolHere(worker)
    with (
        open_ledger(job.out, described, inputs=[*job.inputs, job.kb], overwrite=overwrite),
        JobScreen(files=len(job.inputs)) as screen,
    ):
        parts, texts = Stages(job, described, pool, screen).run()
        return close_job(job, described, parts, texts), pool.calls
