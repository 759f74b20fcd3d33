"""From files to an annotated folder: right links, nothing lost, the same bytes always, and no silent failure."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from kebiolm.errors import UserError
from kebiolm.files import sha256_of_file
from preprocessing.annotation.annotate import Annotator
from preprocessing.annotation.evaluation import evaluate, read_codes
from preprocessing.annotation.job import (
    LOCK_FILE,
    AnnotationJob,
    UnitWorker,
    close_job,
    list_inputs,
    open_job,
)
from preprocessing.annotation.ner import load_finder
from preprocessing.annotation.run_ray import ray_session, run_job, run_units
from preprocessing.annotation.store import AnnotatedCorpus, part_name
from preprocessing.document import Document, Mention, Reject
from preprocessing.linker import LinkIndex
from preprocessing.sources.pubtator import read_gold
from tests.preprocessing.conftest import NAMES

TEXT = "After a heart attack: acetylsalicylic acid, magnetic resonance imaging (MRI), and a second MRI."


def annotate(small_kb: Path, records: Iterable[Document | Reject], threshold: float = 0.85) -> list[Document | Reject]:
    names = [name for names in NAMES.values() for name in names]
    annotator = Annotator(
        finder=load_finder("dictionary", names=names), index=LinkIndex.load(small_kb / "linker"), threshold=threshold
    )
    return list(annotator.annotate(records, source="file.jsonl"))


def write_inputs(folder: Path, texts_per_file: list[list[str]]) -> tuple[Path, ...]:
    folder.mkdir()
    for number, texts in enumerate(texts_per_file):
        lines = [json.dumps({"id": f"{number}-{place}", "text": text}) for place, text in enumerate(texts)]
        (folder / f"{number}.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return list_inputs([folder])


@pytest.fixture
def job(tmp_path: Path, small_kb: Path) -> AnnotationJob:
    inputs = write_inputs(tmp_path / "in", [[f"Aspirin {n}.", "Glycerol.", ""] for n in range(4)])
    return AnnotationJob(inputs=inputs, kb=small_kb, model="dictionary", out=tmp_path / "out")


def hashes(folder: Path) -> dict[str, str]:
    return {file.name: sha256_of_file(file) for file in sorted(folder.iterdir())}


def run_here(job: AnnotationJob) -> dict[str, Any]:
    """Do a job in this process, without Ray."""
    worker = UnitWorker(job, umask=0o022)
    worker.load()
    with open_job(job, overwrite=False) as units:
        for unit in units:
            worker.run(unit, job.inputs[unit])
        return close_job(job)


def units_to_do(job: AnnotationJob, *, overwrite: bool = False) -> list[int]:
    with open_job(job, overwrite=overwrite) as units:
        return units


def test_mentions_are_linked_where_they_stand(small_kb: Path) -> None:
    (document,) = annotate(small_kb, [Document(doc_id="1", text=TEXT)])
    assert isinstance(document, Document)
    assert [(TEXT[m.start : m.end], m.cui, m.score) for m in document.mentions] == [
        ("heart attack", "C0027051", 1.0),
        ("acetylsalicylic acid", "C0004057", 1.0),
        ("magnetic resonance imaging", "C0009871", 1.0),
    ]


def test_an_abbreviation_gets_the_concept_of_its_long_form(small_kb: Path) -> None:
    names = [name for names in NAMES.values() for name in names] + ["MRI"]
    finder, index = load_finder("dictionary", names=names), LinkIndex.load(small_kb / "linker")
    annotator = Annotator(finder=finder, index=index, threshold=0.85)
    (document,) = annotator.annotate([Document(doc_id="1", text=TEXT)], source="file.jsonl")
    assert isinstance(document, Document)
    cuis = [m.cui for m in document.mentions if TEXT[m.start : m.end] == "MRI"]
    assert cuis == ["C0009871", "C0009871"]


def test_the_threshold_is_strict(small_kb: Path) -> None:
    document = Document(doc_id="1", text="Aspirin, hearts attack")
    index = LinkIndex.load(small_kb / "linker")
    score = index.link(["hearts attack"])[0][0].score
    assert 0.5 < score < 1
    finder = load_finder("dictionary", names=["aspirin", "hearts attack"])
    for threshold, expected in ((score, 1), (score - 1e-6, 2)):
        (result,) = Annotator(finder=finder, index=index, threshold=threshold).annotate([document], source="file.jsonl")
        assert isinstance(result, Document) and len(result.mentions) == expected


def test_each_record_gives_one_in_order(small_kb: Path) -> None:
    reject = Reject(doc_id="r", source="x:1", reason="bad-json", detail="?")
    records: list[Document | Reject] = [
        Document(doc_id=str(n), text="lone \ud800" if n == 300 else "Aspirin.") if n % 3 else reject for n in range(600)
    ]
    records[301] = Document(doc_id="301", text="\ud800")
    result = annotate(small_kb, records)
    assert [type(record) for record in result if record is not reject].count(Reject) == 1
    assert result[0] is reject
    failed = result[301]
    assert isinstance(failed, Reject)
    assert (failed.doc_id, failed.source, failed.reason) == ("301", "file.jsonl", "ner-error")
    assert all(len(record.mentions) == 1 for record in result if isinstance(record, Document))


def test_sample_against_its_gold(sample_dir: Path, sample_kb: Path, local_ray: None, tmp_path: Path) -> None:
    inputs = list_inputs([sample_dir / "pubmed"])
    job = AnnotationJob(inputs=inputs, kb=sample_kb, model="dictionary", out=tmp_path / "out")
    manifest = run_job(job, workers=1)
    gold = list(read_gold(sample_dir / "gold.pubtator.txt"))
    assert manifest["counts"]["documents_out"] == len(gold)
    corpus = AnnotatedCorpus.load(job.out)
    assert [document.doc_id for document in corpus.iter_documents()] == [document.doc_id for document in gold]
    result = evaluate(corpus.iter_documents(), gold, read_codes(sample_dir / "codes.tsv"))
    assert result.linked_spans.f1 > 0.9


def test_any_number_of_workers_gives_the_same_bytes(job: AnnotationJob, local_ray: None) -> None:
    run_here(job)
    other = replace(job, out=job.out.with_name("two"))
    manifest = run_job(other, workers=2)
    assert hashes(job.out) == hashes(other.out)
    counts = manifest["counts"]
    assert (counts["documents_in"], counts["documents_out"], counts["rejects"], counts["units"]) == (12, 8, 4, 4)
    assert manifest["rejects_by_reason"] == {"empty-abstract": 4}
    assert (counts["mentions_found"], counts["mentions_linked"], counts["ids_in_several_files"]) == (8, 8, 0)
    corpus = AnnotatedCorpus.load(job.out)
    assert len(corpus) == 8
    first = next(corpus.iter_documents())
    assert first == Document(
        doc_id="0-0", text="Aspirin 0.", mentions=(Mention(start=0, end=7, cui="C0004057", score=1.0),)
    )
    assert [reject.source for reject in corpus.iter_rejects()] == [f"{n}.jsonl:3" for n in range(4)]


def test_a_rerun_makes_only_what_is_missing(job: AnnotationJob) -> None:
    run_here(job)
    before = hashes(job.out)
    assert units_to_do(job) == []
    (job.out / f"{part_name(1)}.json").unlink()
    part = job.out / f"{part_name(2)}.parquet"
    part.write_bytes(part.read_bytes()[:-1])
    (job.out / ".part-00003.parquet.1.tmp").write_bytes(b"left over by a killed process")
    with pytest.raises(UserError, match="cut short"):
        AnnotatedCorpus.load(job.out)
    assert units_to_do(job) == [1, 2]
    run_here(job)
    assert hashes(job.out) == before


def test_a_changed_job_is_refused_and_says_what_changed(job: AnnotationJob) -> None:
    run_here(job)
    with pytest.raises(UserError, match=r"settings.threshold: 0.85 -> 0.9; expected"):
        units_to_do(replace(job, threshold=0.9))
    with pytest.raises(UserError, match=r"inputs: 4 -> 3 of them"):
        units_to_do(replace(job, inputs=job.inputs[:3]))
    with open(job.inputs[1], "a", encoding="utf-8") as file:
        file.write('{"id": "new", "text": "Aspirin."}\n')
    with pytest.raises(UserError, match=r"inputs\[1\].bytes.*inputs\[1\].sha256"):
        units_to_do(job)
    assert units_to_do(job, overwrite=True) == [0, 1, 2, 3]
    assert run_here(job)["counts"]["documents_in"] == 13


def test_ids_that_several_files_share_are_counted(tmp_path: Path, small_kb: Path) -> None:
    inputs = write_inputs(tmp_path / "in", [["Aspirin."], ["Glycerol."]])
    inputs[1].write_bytes(inputs[0].read_bytes())
    job = AnnotationJob(inputs=inputs, kb=small_kb, model="dictionary", out=tmp_path / "out")
    assert run_here(job)["counts"]["ids_in_several_files"] == 1


def test_a_foreign_folder_is_never_touched(job: AnnotationJob) -> None:
    job.out.mkdir()
    (job.out / "thesis.txt").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="other files"):
            units_to_do(job, overwrite=overwrite)
    assert (job.out / "thesis.txt").read_text() == "years of work"


def test_overwriting_begins_anew_and_spares_the_inputs(job: AnnotationJob) -> None:
    run_here(job)
    assert units_to_do(job, overwrite=True) == [0, 1, 2, 3]
    assert {file.name for file in job.out.iterdir()} == {"job.json", LOCK_FILE}
    for out in (job.inputs[0].parent, job.kb, job.kb / "annotated"):
        with pytest.raises(UserError, match="the input"):
            units_to_do(replace(job, out=out), overwrite=True)
    assert all(path.is_file() for path in job.inputs)


def test_one_folder_has_one_driver(job: AnnotationJob, tmp_path: Path) -> None:
    """A second process is refused and leaves the first one's unfinished parts alone; a killed one holds nothing."""
    (tmp_path / "job").write_bytes(pickle.dumps(job))
    code = """if True:
        import pickle, sys, time
        from preprocessing.annotation.job import open_job
        with open(sys.argv[1], "rb") as file, open_job(pickle.load(file), overwrite=False):
            print("held", flush=True)
            time.sleep(60)"""
    command = [sys.executable, "-c", code, str(tmp_path / "job")]
    unfinished = job.out / ".part-00000.parquet.1.tmp"
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None and first.stdout.readline() == "held\n"
        unfinished.touch()
        for overwrite in (False, True):
            with pytest.raises(UserError, match="another annotate is running"):
                units_to_do(job, overwrite=overwrite)
        assert unfinished.exists()
        first.kill()
    assert units_to_do(job) == [0, 1, 2, 3]
    assert not unfinished.exists()


def test_a_killed_worker_costs_nothing(job: AnnotationJob, local_ray: None) -> None:
    run_here(job)
    again = replace(job, out=job.out.with_name("killed"))
    killed_before = job.out.with_name("killed_before")

    class Killed(UnitWorker):
        """Dies once, by SIGKILL, in the middle of the job."""

        def run(self, unit: int, path: Path) -> dict[str, Any]:
            if unit == 1 and not killed_before.exists():
                killed_before.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return super().run(unit, path)

    units_to_do(again)
    assert run_units(dict(enumerate(again.inputs)), Killed, (again, 0o022), workers=2) == 12
    assert killed_before.exists()
    close_job(again)
    assert hashes(again.out) == hashes(job.out)


def test_a_file_that_always_fails_makes_the_job_fail_at_its_end(tmp_path: Path, local_ray: None) -> None:
    class Poisoned:
        """Unit 0 kills the process each time, unit 1 raises."""

        def __init__(self, folder: Path) -> None:
            self.folder = folder

        def load(self) -> None:
            pass

        def run(self, unit: int, path: Path) -> dict[str, Any]:
            (self.folder / f"{unit}-{len(list(self.folder.iterdir()))}").touch()
            if unit == 0:
                os._exit(139)
            if unit == 1:
                raise RuntimeError("bad disk")
            return {"counts": {"documents_in": 1}}

    units = {unit: Path(f"{unit}.jsonl") for unit in range(4)}
    with pytest.raises(UserError, match=r"2 of 4 files.*0.jsonl \(its worker died.*1.jsonl \(RuntimeError: bad disk\)"):
        run_units(units, Poisoned, (tmp_path,), workers=2)
    made = [file.name[0] for file in tmp_path.iterdir()]
    assert [made.count(unit) for unit in "0123"] == [3, 3, 1, 1]


def test_a_worker_that_cannot_load_ends_the_job(local_ray: None) -> None:
    class Unloadable:
        def load(self) -> None:
            raise UserError("model", got="nothing", expected="a model", mend="get one")

    class Dying:
        def load(self) -> None:
            os._exit(1)

    class Broken:
        def load(self) -> None:
            raise RuntimeError("no memory")

    units = {0: Path("0.jsonl")}
    with pytest.raises(UserError, match="get one"):
        run_units(units, Unloadable, (), workers=1)
    with pytest.raises(UserError, match="workers that failed to load"):
        run_units(units, Dying, (), workers=2)
    with pytest.raises(UserError, match="RuntimeError: no memory"):
        run_units({0: Path("0.jsonl"), 1: Path("1.jsonl")}, Broken, (), workers=2)


def test_command_line(job: AnnotationJob, local_ray: None, tmp_path: Path) -> None:
    from kebiolm.cli import app

    call = ["annotate", str(tmp_path / "in"), "--kb", str(job.kb), "--model", "dictionary", "--out", str(job.out)]
    result = CliRunner().invoke(app, call)
    assert result.exit_code == 0, result.output
    for text in ("documents in", "12", "empty-abstract", "abstracts/s"):
        assert text in result.output
    assert "nothing to do" in CliRunner().invoke(app, call).output


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs": (Path("absent.xml"),)}, "no such file"),
        ({"model": "en_core_sci_absent"}, "pip install"),
        ({"kb": Path("absent")}, "kb build"),
        ({"threshold": 1.5}, "cosine"),
    ],
)
def test_mistakes_are_told_before_any_work(job: AnnotationJob, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        changed = replace(job, **change)
        units_to_do(replace(changed, inputs=list_inputs(changed.inputs)))
    assert "\n" not in str(error.value)
    assert not job.out.exists()


def test_a_cluster_that_is_not_there_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with pytest.raises(UserError, match=r"--ray-address .*refused"), ray_session("127.0.0.1:1", workers=1):
        pass


def test_inputs_are_files_once_each(job: AnnotationJob, tmp_path: Path) -> None:
    assert list_inputs([tmp_path / "in"]) == job.inputs
    with pytest.raises(UserError, match="more than once"):
        list_inputs([job.inputs[0], tmp_path / "in"])
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UserError, match="no abstracts"):
        list_inputs([tmp_path / "nothing"])
