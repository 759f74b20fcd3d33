"""The job on real Ray actors: any number of workers and any death give the same bytes, and bad documents cost only
themselves."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from typer.testing import CliRunner

from kebiolm.errors import UserError
from preprocessing.annotation.job import AnnotationJob
from preprocessing.annotation.journal import KILLED, TIMED_OUT
from preprocessing.annotation.ner import FoundMentions, NerFailure
from preprocessing.annotation.run import run_job
from preprocessing.annotation.store import AnnotatedCorpus
from preprocessing.annotation.worker import AnnotationWorker
from tests.preprocessing.annotation.conftest import hashes, write_inputs
from tests.preprocessing.annotation.here import run_here

# Actors run in processes that cannot import this module.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

Found = list[FoundMentions | NerFailure]


class PoisonedFinder:
    """A finder that dies of "POISON" and hangs at "TARPIT", as a native library may."""

    def __init__(self, finder: Any) -> None:
        self._finder = finder

    def find(self, texts: Sequence[str], *, before_batch: Callable[[Sequence[int]], None] | None = None) -> Found:
        def search(places: Sequence[int]) -> None:
            assert before_batch is not None
            before_batch(places)
            for place in places:
                if "POISON" in texts[place]:
                    os.kill(os.getpid(), signal.SIGKILL)
                if "TARPIT" in texts[place]:
                    time.sleep(600)

        return self._finder.find(texts, before_batch=search)


class PoisonedWorker(AnnotationWorker):
    def load(self) -> None:
        super().load()
        self._finder = PoisonedFinder(self._finder)


def test_any_number_of_workers_gives_the_same_bytes(job: AnnotationJob, local_ray: None) -> None:
    run_here(job)
    expected = (job.out / "manifest.json").read_bytes()
    for workers in (1, 2):
        variant = replace(job, out=job.out.with_name(f"{workers}"))
        manifest = run_job(variant, workers=workers)
        assert (variant.out / "manifest.json").read_bytes() == expected
        found = hashes(variant.out)
        assert {name: found[name] for name in manifest["files"]} == {
            name: file["sha256"] for name, file in manifest["files"].items()
        }
        assert not (variant.out / "work").exists()


def test_documents_that_kill_or_hang_are_set_aside_alone(
    small_kb: Path, tmp_path: Path, local_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"Aspirin {n}." for n in range(60)]
    texts[17], texts[41] = "POISON aspirin", "TARPIT aspirin"
    inputs = write_inputs(tmp_path / "in", [texts, ["Glycerol."]])
    job = AnnotationJob(
        inputs=inputs, kb=small_kb, model="dictionary", out=tmp_path / "out", slice_documents=30, document_seconds=2.0
    )
    monkeypatch.setattr("preprocessing.annotation.run.AnnotationWorker", PoisonedWorker)
    manifest = run_job(job, workers=2)
    assert manifest["rejects_by_reason"] == {KILLED: 1, TIMED_OUT: 1}
    corpus = AnnotatedCorpus.load(job.out)
    assert {reject.doc_id: reject.reason for reject in corpus.iter_rejects()} == {"0-17": KILLED, "0-41": TIMED_OUT}
    documents = list(corpus.iter_documents())
    assert len(documents) == 59 and all(len(document.mentions) == 1 for document in documents)


def test_a_worker_killed_from_outside_costs_nothing(
    job: AnnotationJob, local_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_before = job.out.with_name("killed_before")

    class Killed(AnnotationWorker):
        """Dies once in each stage."""

        def _die_once(self, stage: str) -> None:
            mark = killed_before.with_name(f"killed_before_{stage}")
            if not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)

        def read(self, *unit: Any) -> dict[str, Any]:
            manifest = super().read(*unit)
            self._die_once("read")
            return manifest

        def find(self, *unit: Any) -> dict[str, Any]:
            self._die_once("find")
            return super().find(*unit)

        def link(self, *unit: Any) -> dict[str, Any]:
            self._die_once("link")
            return super().link(*unit)

        def join(self, *unit: Any) -> dict[str, Any]:
            manifest = super().join(*unit)
            self._die_once("join")
            return manifest

    undisturbed = replace(job, out=job.out.with_name("undisturbed"))
    run_job(undisturbed, workers=1)
    monkeypatch.setattr("preprocessing.annotation.run.AnnotationWorker", Killed)
    run_job(job, workers=2)
    assert len(list(job.out.parent.glob("killed_before_*"))) == 4
    assert hashes(job.out)["manifest.json"] == hashes(undisturbed.out)["manifest.json"]


def test_units_that_always_fail_make_the_job_fail_at_their_stages_end(
    job: AnnotationJob, local_ray: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Failing(AnnotationWorker):
        def find(self, part: int, *unit: Any) -> dict[str, Any]:
            if part in (4, 9):
                raise OSError("bad disk")
            return super().find(part, *unit)

    with monkeypatch.context() as patch:
        patch.setattr("preprocessing.annotation.run.AnnotationWorker", Failing)
        with pytest.raises(UserError, match=r"2 of 12 units that failed.*OSError: bad disk"):
            run_job(job, workers=2)
    said = " ".join(capsys.readouterr().err.split())
    assert "1.jsonl, slice 1: OSError: bad disk" in said and "3.jsonl, slice 0" in said
    done = {file.name for file in (job.out / "work" / "found").glob("*.json")}
    assert len(done) == 10
    assert run_job(job, workers=2)["counts"]["documents_out"] == 8


def test_command_line(job: AnnotationJob, local_ray: None, tmp_path: Path) -> None:
    from kebiolm.cli import app

    call = ["annotate", str(tmp_path / "in"), "--kb", str(job.kb), "--model", "dictionary", "--out", str(job.out)]
    result = CliRunner().invoke(app, call)
    assert result.exit_code == 0, result.output
    for text in ("documents in", "12", "empty-abstract", "abstracts/s"):
        assert text in result.output
    assert "nothing to do" in CliRunner().invoke(app, call).output
    (job.out / "part-00001.parquet").unlink()
    assert "nothing to do" not in CliRunner().invoke(app, call).output
    assert (job.out / "part-00001.parquet").exists()
