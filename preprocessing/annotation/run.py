"""Runs an annotation job: stage after stage over one pool of workers, doing only what is missing.

read  -> ids  -> find  -> link  -> join
files    once    slices   buckets  slices       (units of each stage)
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.markup import escape

from kebiolm.console import console, stop_politely
from kebiolm.errors import UserError
from kebiolm.files import has_format, read_manifest, sha256_of_json, write_json
from preprocessing.annotation.duplicates import find_replaced, replaced_done
from preprocessing.annotation.find_stage import found_done, journal_path
from preprocessing.annotation.job import AnnotationJob, describe_job
from preprocessing.annotation.journal import MAX_ATTEMPTS, forgive_last_attempt, read_journal
from preprocessing.annotation.link_stage import linked_done, plan_buckets
from preprocessing.annotation.read_stage import read_done
from preprocessing.annotation.store import FORMAT, REPORT_FILE, VERSION, AnnotatedCorpus, part_name, total_counts
from preprocessing.annotation.summary import summary_table
from preprocessing.annotation.unit_files import WORK_FOLDER, fingerprint_of, read_unit_manifest
from preprocessing.annotation.worker import AnnotationWorker, worker_arguments
from preprocessing.ledger import open_ledger, remove_unfinished
from preprocessing.ray_pool import WorkerPool, ray_session
from preprocessing.watch.report import write_report
from preprocessing.watch.screen import JobScreen

Manifest = dict[str, Any]


def run_job(job: AnnotationJob, *, workers: int, ray_address: str | None = None, overwrite: bool = False) -> Manifest:
    """Annotate every input that is not done yet, and print what came of it.

    Args:
        job: what to do; its inputs are files. On a cluster all paths must be on storage that every node shares.
        workers: number of actors; each takes one CPU and its own copy of the model.
        ray_address: a running Ray cluster; None starts Ray on this machine for the time of the job.
        overwrite: begin anew, whatever an earlier job left in the folder.

    Returns:
        The manifest of the finished folder.

    Raises:
        UserError: units failed in every attempt (the others are done and kept), or what `open_ledger` refuses.
    """
    described = describe_job(job)
    with open_ledger(job.out, described, inputs=[*job.inputs, job.kb], overwrite=overwrite):
        manifest = _finished(job, described)
        if manifest is not None:
            console.print("every file was annotated before: nothing to do")
        else:
            started = time.monotonic()
            # Ray takes the signals for itself when it starts: ours come after.
            with (
                ray_session(ray_address, workers),
                stop_politely("the same command goes on from here"),
                WorkerPool(AnnotationWorker, worker_arguments(job, described), workers=workers) as pool,
            ):
                console.print(f"starting {workers} workers with model and link index")
                pool.start()
                with JobScreen(files=len(job.inputs)) as screen:
                    parts, texts = Stages(job, described, pool, screen).run()
            manifest = close_job(job, described, parts, texts)
            seconds = time.monotonic() - started
            speed = manifest["counts"]["documents_in"] / seconds
            console.print(f"{seconds:.1f} s with starting: {speed:.1f} abstracts/s")
        if not (job.out / REPORT_FILE).is_file():
            write_report(job.out, job.kb, job.out / REPORT_FILE)
        shutil.rmtree(job.out / WORK_FOLDER, ignore_errors=True)
    console.print(summary_table(manifest))
    if not manifest["counts"]["documents_out"]:
        first = next(AnnotatedCorpus.load(job.out, check_hash=False).iter_rejects())
        console.print(f"[yellow]no document is left:[/] {escape(f'{first.source}: {first.reason}: {first.detail}')}")
    console.print(f"report: {job.out / REPORT_FILE}", markup=False)
    return manifest


class Stages:
    """The stages of one job, in order; each does the units that are missing and hands its manifests to the next.

    Args:
        job: what to do.
        described: what `job.json` says of it.
        pool: does the units.
        screen: is told how far it is.
    """

    def __init__(self, job: AnnotationJob, described: Manifest, pool: WorkerPool, screen: JobScreen) -> None:
        self._job, self._pool, self._screen = job, pool, screen
        self._work, self._job_fingerprint = job.out / WORK_FOLDER, sha256_of_json(described)

    def run(self) -> tuple[list[Manifest], int]:
        """Do all stages: (the manifests of the parts, number of distinct texts of the whole job)."""
        inputs = self._job.inputs
        reads = self._stage(
            "read",
            {number: (number,) for number in range(len(inputs))},
            lambda number: read_done(self._work / "read", number, self._job_fingerprint),
            lambda number: inputs[number].name,
        )
        slices = [(number, piece) for number, manifest in enumerate(reads) for piece in range(len(manifest["slices"]))]
        from_reads = fingerprint_of(self._job_fingerprint, reads)
        replaced = replaced_done(self._work, from_reads) or find_replaced(self._work, slices, from_reads)
        founds = self._find(reads, slices, fingerprint_of(from_reads, [replaced]))
        buckets = plan_buckets(self._work, sum(manifest["counts"]["texts"] for manifest in founds))
        from_founds = fingerprint_of(self._job_fingerprint, founds, buckets)
        links = self._stage(
            "link",
            {bucket: (bucket, buckets, len(slices), from_founds) for bucket in range(buckets)},
            lambda bucket: linked_done(self._work, bucket, from_founds),
            lambda bucket: f"bucket {bucket} of the texts",
        )
        skipped = [manifest["counts"]["abbreviations_skipped"] for manifest in founds]
        joined = self._stage(
            "join",
            {part: (part, piece, buckets, from_founds, skipped[part]) for part, piece in enumerate(slices)},
            lambda part: read_unit_manifest(self._job.out / f"{part_name(part)}.json", self._job_fingerprint),
            lambda part: self._slice_label(*slices[part]),
            documents=sum(manifest["counts"]["documents_in"] for manifest in reads),
        )
        return joined, sum(manifest["counts"]["texts"] for manifest in links)

    def _find(self, reads: Sequence[Manifest], slices: Sequence[tuple[int, int]], made_from: str) -> list[Manifest]:
        folder = self._work / "found"
        # Whoever ended an earlier run ended its workers too: that is no document's fault.
        for journal in folder.glob("*.journal"):
            forgive_last_attempt(journal)
        return self._stage(
            "find",
            {part: (part, *piece, made_from) for part, piece in enumerate(slices)},
            lambda part: found_done(folder, part, made_from),
            lambda part: self._slice_label(*slices[part]),
            documents=sum(manifest["counts"]["documents"] for manifest in reads),
            is_progress=self._learned_from_death,
            forget=lambda part: journal_path(folder, part).unlink(missing_ok=True),
        )

    def _stage(
        self,
        name: str,
        units: Mapping[int, tuple[Any, ...]],
        done: Callable[[int], Manifest | None],
        label: Callable[[int], str],
        *,
        documents: int | None = None,
        is_progress: Callable[[int], bool] = lambda unit: False,
        forget: Callable[[int], None] = lambda unit: None,
    ) -> list[Manifest]:
        """Do the missing units of one stage.

        Args:
            name: of the stage, and of the worker's method.
            units: unit -> arguments of the method; units are 0, 1, ...
            done: manifest of a unit that is done, else None.
            label: how a person calls a unit.
            documents: how many documents the units have together, where they have some.
            is_progress: see `WorkerPool.run`.
            forget: removes what is known of a unit that failed: its cause may be mended before the next run.

        Returns:
            The manifests of all units, in order.

        Raises:
            UserError: units failed in every attempt.
        """
        manifests = {unit: manifest for unit in units if (manifest := done(unit)) is not None}
        missing = {unit: arguments for unit, arguments in units.items() if unit not in manifests}
        before = Counter[str]()
        for manifest in manifests.values():
            before.update(manifest["counts"])
        self._screen.begin(name, len(units), len(manifests), documents, before["documents_in"], before)
        failed: dict[Any, str] = {}
        for unit, manifest in self._pool.run(
            name, missing, failed=failed, is_progress=lambda unit: is_progress(unit) and self._note_death(label(unit))
        ):
            self._screen.done(manifest["counts"])
            manifests[unit] = manifest
        for unit, reason in sorted(failed.items()):
            forget(unit)
            self._screen.note(f"failed: {label(unit)}: {reason}")
        if failed:
            raise UserError(
                f"annotation, stage {name}",
                got=f"{len(failed)} of {len(units)} units that failed, such as by {next(iter(failed.values()))}",
                expected="every unit done",
                mend="the other units are done and kept: mend the cause or leave out these files, and run it again",
            )
        return [manifests[unit] for unit in units]

    def _slice_label(self, file_number: int, slice_number: int) -> str:
        return f"{self._job.inputs[file_number].name}, slice {slice_number}"

    def _learned_from_death(self, part: int) -> bool:
        """Whether a dead worker's journal tells in which batch it died; then the next attempt isolates the document."""
        findings = read_journal(journal_path(self._work / "found", part))
        return findings.ended_in_batch and findings.attempts < MAX_ATTEMPTS

    def _note_death(self, label: str) -> bool:
        self._screen.note(f"a worker died in {label}: its documents are searched again, the suspects one by one")
        return True


def _finished(job: AnnotationJob, described: Manifest) -> Manifest | None:
    """The manifest of a job that was finished before; where a part is not whole any more the job is taken up again."""
    if not has_format(job.out, FORMAT):
        return None
    manifest = read_manifest(job.out, FORMAT, VERSION, made_by="kebiolm annotate")
    parts = (job.out / f"{part_name(number)}.json" for number in range(manifest["counts"]["parts"]))
    if all(read_unit_manifest(part, sha256_of_json(described)) is not None for part in parts):
        return manifest
    (job.out / "manifest.json").unlink()
    return None


def close_job(job: AnnotationJob, described: Manifest, parts: Sequence[Manifest], texts: int) -> Manifest:
    """Sum up the parts, and write the folder's manifest and its report.

    Args:
        job: the job.
        described: what `job.json` says of it.
        parts: manifests of all parts, in order.
        texts: distinct texts that were linked, in the whole job.

    Returns:
        The folder's manifest.
    """
    remove_unfinished(job.out)
    counts, reasons = total_counts(parts)
    assert counts["documents_in"] == counts["documents_out"] + counts["rejects"], counts
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "settings": described["settings"],
        "inputs": described["inputs"],
        "counts": {**counts, "parts": len(parts), "distinct_texts": texts},
        "rejects_by_reason": reasons,
        "files": {name: file for part in parts for name, file in part["files"].items()},
    }
    write_json(job.out / "manifest.json", manifest)
    return manifest
