"""An annotation job: what a user asks for, and everything of it that decides the output's bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import scispacy
import spacy
from rich.markup import escape

from kebiolm.console import error_console, progress
from kebiolm.data.knowledge_base import KnowledgeBase
from kebiolm.errors import UserError
from kebiolm.files import describe_file
from preprocessing.annotation.ner import NerLimits, describe_model
from preprocessing.linker.choice import EXACT, describe_linker
from preprocessing.sources import find_reader
from preprocessing.sources.open_source import SUFFIXES

JOB_FORMAT, JOB_VERSION = "kebiolm-annotation-job", 2


@dataclass(frozen=True, kw_only=True)
class AnnotationJob:
    """Everything that a user asks for.

    Attributes:
        inputs: files of abstracts.
        kb: folder of the knowledge base.
        model: spaCy pipeline (name or folder), or "dictionary".
        out: folder of the result.
        threshold: keep a concept where its score is strictly above this (paper, section 3.3: 0.85).
        linker: "exact", "scispacy-hnsw", or the folder of a published scispaCy linker.
        limits: what one document may cost.
        slice_documents: most documents of one unit of work, which is what a worker's death costs.
        document_seconds: a document that takes longer is set aside.
    """

    inputs: tuple[Path, ...]
    kb: Path
    model: str
    out: Path
    threshold: float = 0.85
    linker: str = EXACT
    limits: NerLimits = field(default_factory=NerLimits)
    slice_documents: int = 2000
    document_seconds: float = 120.0

    def __post_init__(self) -> None:
        if not 0 <= self.threshold < 1:
            mend = "give a cosine, such as 0.85"
            raise UserError("--threshold", got=self.threshold, expected="a number from 0 to below 1", mend=mend)
        if self.document_seconds <= 0:
            mend = "give some seconds, such as 120"
            raise UserError("--document-timeout", got=self.document_seconds, expected="more than 0", mend=mend)
        if self.slice_documents < 1:
            mend = "give some documents, such as 2000"
            raise UserError("--slice-documents", got=self.slice_documents, expected="at least 1", mend=mend)


def list_inputs(paths: Sequence[Path]) -> tuple[Path, ...]:
    """The files to read: folders are replaced by the files of known formats in them, sorted by name.

    Raises:
        UserError: a file is missing, unreadable, of no known format, or named twice; a folder holds none.
    """
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            found = [file for file in sorted(path.iterdir()) if file.name.removesuffix(".gz").endswith(SUFFIXES)]
            if not found:
                expected = f"files ending in {', '.join(SUFFIXES)} (or these with .gz)"
                raise UserError(path, got="a folder with no abstracts", expected=expected, mend="give their folder")
            files += found
            if others := sum(1 for file in path.iterdir() if not file.name.startswith(".")) - len(found):
                error_console.print(f"[yellow]left out:[/] {others} files and folders of {escape(str(path))}")
        else:
            files.append(path)
    for file in files:
        find_reader(file)
    # A link is followed now: workers see the file that it means today.
    resolved = [file.resolve() for file in files]
    for file in resolved:
        find_reader(file)
    if twice := sorted(file for file, times in Counter(resolved).items() if times > 1):
        raise UserError(twice[0], got="the file more than once", expected="each input once", mend="name it once")
    return tuple(resolved)


def describe_job(job: AnnotationJob) -> dict[str, Any]:
    """Everything that decides the output's bytes, for `job.json`; no paths and no times."""
    settings = {
        "threshold": job.threshold,
        "candidates": "the best concept, where its score is strictly above the threshold",
        "filter_for_definitions": False,
        "abbreviations": "linked by their long form",
        "overlaps": "longest first, then leftmost",
        "equal_ids": "the last record is kept",
        "limits": {**asdict(job.limits), "document_seconds": job.document_seconds},
        "slice_documents": job.slice_documents,
        "model": describe_model(job.model),
        "matrix_products": "numpy",
        "knowledge_base": KnowledgeBase.load(job.kb).fingerprint,
        "linker": describe_linker(job.linker, job.kb),
        "libraries": {"spacy": spacy.__version__, "scispacy": scispacy.__version__},
    }
    inputs = []
    with progress("Hashing inputs", total=len(job.inputs), unit="files") as advance:
        for path in job.inputs:
            inputs.append({"name": path.name, **describe_file(path)})
            advance()
    return {"format": JOB_FORMAT, "version": JOB_VERSION, "settings": settings, "inputs": inputs}
