"""One process of the job: it loads model and index once, and does one unit of any stage after another."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Any

from kebiolm.data.knowledge_base import KnowledgeBase
from kebiolm.files import user_umask
from preprocessing.annotation.duplicates import replaced_in_part
from preprocessing.annotation.find_stage import find_mentions
from preprocessing.annotation.job import AnnotationJob
from preprocessing.annotation.join_stage import join_part
from preprocessing.annotation.link_stage import LinkTable, link_texts
from preprocessing.annotation.ner import DICTIONARY, load_finder
from preprocessing.annotation.read_stage import load_slice, read_file
from preprocessing.annotation.unit_files import WORK_FOLDER
from preprocessing.linker.choice import load_linker


class AnnotationWorker:
    """Does units of work; each method writes its unit's files and returns its counts.

    Args:
        job: what to do; its paths must mean the same files where the worker runs.
        umask: file mode mask of the user, for the files that the worker writes.
    """

    def __init__(self, job: AnnotationJob, umask: int) -> None:
        self._job, self._umask = job, umask
        self._work = job.out / WORK_FOLDER

    def load(self) -> None:
        """Load model and link index; apart from the constructor, so that a failure can be told from a death."""
        os.umask(self._umask)
        kb = KnowledgeBase.load(self._job.kb, check_hash=False)
        names = kb.names().column("name").to_pylist() if self._job.model == DICTIONARY else ()
        self._finder = load_finder(self._job.model, names=names, limits=self._job.limits)
        self._linker = load_linker(self._job.linker, self._job.kb, check_hash=False)

    def read(self, file_number: int) -> dict[str, int]:
        """Stage 1, for one input file."""
        path = self._job.inputs[file_number]
        return read_file(self._work / "read", file_number, path, slice_documents=self._job.slice_documents)["counts"]

    def find(self, part: int, file_number: int, slice_number: int) -> dict[str, int]:
        """Stage 3, for one slice."""
        documents, _ = load_slice(self._work / "read", file_number, slice_number, columns=["text"])
        replaced = {
            row: (reason, f"a later record has this id, in {self._job.inputs[by_file].name}")
            for row, (reason, by_file) in replaced_in_part(self._work, part).items()
        }
        manifest = find_mentions(
            self._work / "found",
            part,
            documents["text"].to_pylist(),
            self._finder,
            replaced=replaced,
            seconds=self._job.document_seconds,
        )
        return manifest["counts"]

    def link(self, bucket: int, buckets: int, parts: int) -> dict[str, int]:
        """Stage 4, for one bucket of texts."""
        threshold = self._job.threshold
        return link_texts(self._work, bucket, buckets, range(parts), self._linker, threshold=threshold)["counts"]

    def join(self, part: int, file_number: int, slice_number: int, buckets: int) -> dict[str, int]:
        """Stage 5, for one slice."""
        documents, rejects = load_slice(self._work / "read", file_number, slice_number)
        manifest = join_part(
            self._job.out,
            self._work,
            part,
            documents,
            rejects,
            links=_link_table(self._work, buckets),
            cuis=self._linker.concepts,
            source=self._job.inputs[file_number].name,
        )
        return manifest["counts"]


@lru_cache(maxsize=1)
def _link_table(work: Path, buckets: int) -> LinkTable:
    """The table stays open from one part to the next."""
    return LinkTable(work, buckets)


def worker_arguments(job: AnnotationJob) -> tuple[Any, ...]:
    """What `AnnotationWorker` is made from, in the driver's process."""
    return job, user_umask()
