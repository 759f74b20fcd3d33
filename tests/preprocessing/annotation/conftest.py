"""A small annotation job, and files to give to one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from kebiolm.files import sha256_of_file
from preprocessing.annotation.job import AnnotationJob, list_inputs


def write_inputs(folder: Path, texts_per_file: Sequence[Sequence[str]]) -> tuple[Path, ...]:
    """Files 0.jsonl, 1.jsonl, ... with documents 0-0, 0-1, ..., 1-0, ...; an empty text becomes a reject."""
    folder.mkdir()
    for number, texts in enumerate(texts_per_file):
        records = [{"id": f"{number}-{place}", "text": text} for place, text in enumerate(texts)]
        write_records(folder / f"{number}.jsonl", records)
    return list_inputs([folder])


def write_records(path: Path, records: Sequence[dict[str, str]]) -> Path:
    """JSON lines."""
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records), encoding="utf-8")
    return path


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of each file of a finished folder."""
    return {file.name: sha256_of_file(file) for file in sorted(folder.iterdir())}


@pytest.fixture
def job(tmp_path: Path, small_kb: Path) -> AnnotationJob:
    """4 files of 3 records, of which one is empty; slices of one document."""
    inputs = write_inputs(tmp_path / "in", [[f"Aspirin {n}.", "Glycerol.", ""] for n in range(4)])
    return AnnotationJob(inputs=inputs, kb=small_kb, model="dictionary", out=tmp_path / "out", slice_documents=1)
