"""One process of the job: it loads model and index once, and does one unit of any stage after another."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Any

from kebiolm.data.knowledge_base import KnowledgeBase
from kebiolm.files import sha256_of_json, user_umask
from preprocessing.annotation.duplicates import replaced_in_part
from preprocessing.annotation.find_stage import find_mentions
from preprocessing.annotation.job import AnnotationJob
from preprocessing.annotation.join_stage import join_part
from preprocessing.annotation.link_stage import LinkTable, link_texts
from preprocessing.annotation.ner import DICTIONARY, load_finder
from preprocessing.annotation.read_stage import load_slice, read_file
from preprocessing.annotation.unit_files import WORK_FOLDER
from preprocessing.linker.choice import load_linker

Manifest = dict[str, Any]


class AnnotationWorker:
    """Does units of work; each method writes its unit's files and returns its manifest.

    Args:
        job: what to do; its paths must mean the same files where the worker runs.
        described: what `job.json` says of it.
        umask: file mode mask of the user, for the files that the worker writes.
    """

    def __init__(self, job: AnnotationJob, described: Manifest, umask: int) -> None:
        self._job, self._umask = job, umask
        self._inputs, self._job_fingerprint = described["inputs"], sha256_of_json(described)
        self._work = job.out / WORK_FOLDER

    def load(self) -> None:
        """Load model and link index; apart from the constructor, so that a failure can be told from a death."""
        os.umask(self._umask)
        kb = KnowledgeBase.load(self._job.kb, check_hash=False)
        names = kb.names().column("name").to_pylist() if self._job.model == DICTIONARY else ()
        self._finder = load_finder(self._job.model, names=names, limits=self._job.limits)
        self._linker = load_linker(self._job.linker, self._job.kb, check_hash=False)

    def read(self, file_number: int) -> Manifest:
        """Stage 1, for one input file."""
        return read_file(
            self._work / "read",
            file_number,
            self._job.inputs[file_number],
            slice_documents=self._job.slice_documents,
            expected=self._inputs[file_number],
            made_from=self._job_fingerprint,
        )

    def find(self, part: int, file_number: int, slice_number: int, made_from: str) -> Manifest:
        """Stage 3, for one slice."""
        documents, _ = load_slice(self._work / "read", file_number, slice_number, columns=["text"])
        replaced = {
            row: (reason, f"a later record has this id, in {self._job.inputs[by_file].name}")
            for row, (reason, by_file) in replaced_in_part(self._work, part).items()
        }
        return find_mentions(
            self._work / "found",
            part,
            documents["text"].to_pylist(),
            self._finder,
            replaced=replaced,
            seconds=self._job.document_seconds,
            made_from=made_from,
        )

    def link(self, bucket: int, buckets: int, parts: int, made_from: str) -> Manifest:
        """Stage 4, for one bucket of texts."""
        threshold = self._job.threshold
        return link_texts(
            self._work, bucket, buckets, range(parts), self._linker, threshold=threshold, made_from=made_from
        )

    def join(self, part: int, slice_: tuple[int, int], buckets: int, linked_from: str, skipped: int) -> Manifest:
        """Stage 5, for one slice: its file and number there; `linked_from` is the fingerprint of the links."""
        file_number, slice_number = slice_
        documents, rejects = load_slice(self._work / "read", file_number, slice_number)
        return join_part(
            self._job.out,
            self._work,
            part,
            documents,
            rejects,
            links=_link_table(self._work, buckets, linked_from),
            cuis=self._linker.concepts,
            source=self._job.inputs[file_number].name,
            abbreviations_skipped=skipped,
            made_from=self._job_fingerprint,
        )


@lru_cache(maxsize=1)
def _link_table(work: Path, buckets: int, linked_from: str) -> LinkTable:
    """The table stays open from one part to the next."""
    return LinkTable(work, buckets)


def worker_arguments(job: AnnotationJob, described: Manifest) -> tuple[Any, ...]:
    """What `AnnotationWorker` is made from, in the driver's process."""
    return job, described, user_umask()
