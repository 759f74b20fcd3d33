"""From files to an annotated folder: right links, nothing lost, the same bytes always, and no silent change."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kebiolm.errors import UserError
from preprocessing.annotation.duplicates import DELETED, REPLACED
from preprocessing.annotation.evaluation import evaluate, read_codes
from preprocessing.annotation.job import AnnotationJob, describe_job, list_inputs
from preprocessing.annotation.ner import FoundMention, FoundMentions
from preprocessing.annotation.store import AnnotatedCorpus, part_name
from preprocessing.annotation.worker import AnnotationWorker
from preprocessing.document import Document, Mention
from preprocessing.ledger import LOCK_FILE, open_ledger
from preprocessing.linker import LinkIndex
from preprocessing.sources.pubtator import read_gold
from tests.preprocessing.annotation.conftest import hashes, write_inputs, write_records
from tests.preprocessing.annotation.here import run_and_log, run_here

TEXT = "After a heart attack: acetylsalicylic acid, magnetic resonance imaging (MRI), and a second MRI."


def annotate(small_kb: Path, folder: Path, *texts: str, **settings: Any) -> list[Document]:
    inputs = write_inputs(folder / "in", [texts])
    job = AnnotationJob(inputs=inputs, kb=small_kb, model="dictionary", out=folder / "out", **settings)
    run_here(job)
    return list(AnnotatedCorpus.load(job.out).iter_documents())


def open_job(job: AnnotationJob, *, overwrite: bool = False) -> Any:
    return open_ledger(job.out, describe_job(job), inputs=[*job.inputs, job.kb], overwrite=overwrite)


def test_mentions_are_linked_where_they_stand(small_kb: Path, tmp_path: Path) -> None:
    (document,) = annotate(small_kb, tmp_path, TEXT)
    assert [(TEXT[m.start : m.end], m.cui, m.score) for m in document.mentions] == [
        ("heart attack", "C0027051", 1.0),
        ("acetylsalicylic acid", "C0004057", 1.0),
        ("magnetic resonance imaging", "C0009871", 1.0),
    ]


def test_the_threshold_is_strict(small_kb: Path, tmp_path: Path) -> None:
    """A mention whose score is exactly the threshold is left out."""
    inputs = write_inputs(tmp_path / "in", [["Dermatitiss"]])
    job = AnnotationJob(inputs=inputs, kb=small_kb, model="dictionary", out=tmp_path / "out")
    (candidate,) = LinkIndex.load(small_kb / "linker").link(["dermatitiss"])[0]
    assert 0.5 < candidate.score < 1

    class Finder:
        def find(self, texts: list[str], *, before_batch: Any) -> list[FoundMentions]:
            mention = FoundMention(start=0, end=11, link_text="Dermatitiss")
            return [FoundMentions(mentions=(mention,)) for _ in texts]

    for threshold, linked in ((candidate.score, 0), (candidate.score - 1e-6, 1)):
        manifest = run_here(replace(job, threshold=threshold, out=tmp_path / str(threshold)), finder=Finder())
        assert manifest["counts"]["mentions_linked"] == linked


def test_documents_and_rejects_of_all_files_are_there_once(job: AnnotationJob) -> None:
    manifest = run_here(job)
    counts = manifest["counts"]
    assert (counts["documents_in"], counts["documents_out"], counts["rejects"], counts["parts"]) == (12, 8, 4, 12)
    assert manifest["rejects_by_reason"] == {"empty-abstract": 4}
    assert (counts["mentions_found"], counts["mentions_linked"], counts["distinct_texts"]) == (8, 8, 2)
    corpus = AnnotatedCorpus.load(job.out)
    documents = list(corpus.iter_documents())
    assert [document.doc_id for document in documents] == [f"{n}-{place}" for n in range(4) for place in range(2)]
    assert documents[0] == Document(
        doc_id="0-0", text="Aspirin 0.", mentions=(Mention(start=0, end=7, cui="C0004057", score=1.0),)
    )
    assert [reject.source for reject in corpus.iter_rejects()] == [f"{n}.jsonl:3" for n in range(4)]


def test_each_stage_is_done_once_for_each_unit(job: AnnotationJob) -> None:
    _, calls = run_and_log(job)
    stages = [stage for stage, _ in calls]
    assert [stages.count(stage) for stage in ("read", "find", "link", "join")] == [4, 12, 16, 12]


def test_the_last_record_of_an_id_is_kept(small_kb: Path, tmp_path: Path) -> None:
    """Within a file and over files; an id that was deleted may come again."""
    folder = tmp_path / "in"
    folder.mkdir()
    write_records(folder / "0.jsonl", [{"id": i, "text": f"Aspirin {i}."} for i in ("a", "b", "c", "d", "a")])
    write_records(folder / "2.jsonl", [{"id": "b", "text": "Newer b."}, {"id": "e", "text": "Glycerol."}])
    (folder / "1.xml").write_text(
        "<PubmedArticleSet><DeleteCitation><PMID>c</PMID><PMID>b</PMID></DeleteCitation></PubmedArticleSet>"
    )
    job = AnnotationJob(
        inputs=list_inputs([folder]), kb=small_kb, model="dictionary", out=tmp_path / "out", slice_documents=2
    )
    manifest = run_here(job)
    corpus = AnnotatedCorpus.load(job.out)
    assert [(d.doc_id, d.text) for d in corpus.iter_documents()] == [
        ("d", "Aspirin d."),
        ("a", "Aspirin a."),
        ("b", "Newer b."),
        ("e", "Glycerol."),
    ]
    replaced = [(r.doc_id, r.reason) for r in corpus.iter_rejects() if r.reason in (REPLACED, DELETED)]
    assert replaced == [("a", REPLACED), ("b", REPLACED), ("c", DELETED)]
    assert "0.jsonl" in next(r.detail for r in corpus.iter_rejects() if r.doc_id == "a")
    assert manifest["counts"]["documents_in"] == 9


def test_a_rerun_makes_only_what_is_missing(job: AnnotationJob) -> None:
    """A job that stopped anywhere goes on there and ends in the same bytes."""
    run_here(job)
    shutil.rmtree(job.out / "work")
    finished = hashes(job.out)
    again = replace(job, out=job.out.with_name("again"))
    run_and_log(again)
    work = again.out / "work"
    assert work.is_dir()
    (again.out / "manifest.json").unlink()
    (work / "found" / f"{part_name(3)}.json").unlink()
    links = work / "links" / "bucket-0005.arrow"
    links.write_bytes(links.read_bytes()[:-1])
    (again.out / f"{part_name(7)}.parquet").write_bytes(b"")
    (again.out / f".{part_name(8)}.parquet.1.tmp").write_bytes(b"left over by a killed process")
    _, calls = run_and_log(again)
    assert calls == [("find", 3), ("link", 5), ("join", 7)]
    (work / "read" / "file-00002.json").unlink()
    (work / "ids.parquet").unlink()
    _, calls = run_and_log(again)
    assert calls == [("read", 2)], "what was made from the same bytes is kept"
    shutil.rmtree(work)
    assert hashes(again.out) == finished


def test_work_of_another_job_is_never_taken_for_this_ones(job: AnnotationJob) -> None:
    """A worker that outlives its driver may write into the folder of the next job."""
    run_here(job)
    work, kept = job.out / "work", job.out.with_name("kept")
    shutil.copytree(work, kept)
    other = replace(job, threshold=0.9)
    with open_job(other, overwrite=True):
        shutil.copytree(kept, work)
    _, calls = run_and_log(other)
    assert [stage for stage, _ in calls].count("link") == 16
    assert len(calls) == 4 + 12 + 16 + 12


def test_texts_found_later_are_linked_too(job: AnnotationJob) -> None:
    """Where a slice is searched again and gives other texts, the links of before do not stand for them."""
    run_here(job)
    work = job.out / "work"
    (job.out / "part-00000.json").unlink()
    (work / "found" / "part-00000.json").unlink()

    class Finder:
        def find(self, texts: list[str], *, before_batch: Any) -> list[FoundMentions]:
            mention = FoundMention(start=0, end=7, link_text="heart attack")
            return [FoundMentions(mentions=(mention,)) for _ in texts]

    run_here(job, finder=Finder())
    (document,) = AnnotatedCorpus.load(job.out).iter_part(0)
    assert document.mentions[0].cui == "C0027051"


def test_an_input_that_changes_while_the_job_runs_is_noticed(job: AnnotationJob) -> None:
    described = describe_job(job)
    with open(job.inputs[1], "a", encoding="utf-8") as file:
        file.write('{"id": "new", "text": "Aspirin."}\n')
    worker = AnnotationWorker(job, described, umask=0o022)
    worker.read(0)
    with pytest.raises(UserError, match=r"1.jsonl: got \d+ bytes"):
        worker.read(1)


def test_a_folder_whose_first_write_was_killed_is_taken_up(job: AnnotationJob) -> None:
    job.out.mkdir()
    (job.out / ".job.json.1-abcd.tmp").write_text("{")
    assert run_here(job)["counts"]["documents_in"] == 12


def test_a_changed_job_is_refused_and_says_what_changed(job: AnnotationJob) -> None:
    run_here(job)
    for change, message in (
        ({"threshold": 0.9}, r"settings.threshold: 0.85 -> 0.9; expected"),
        ({"inputs": job.inputs[:3]}, r"inputs: 4 -> 3 of them"),
        ({"document_seconds": 5.0}, r"settings.limits.document_seconds: 120.0 -> 5.0"),
    ):
        with pytest.raises(UserError, match=message):
            run_here(replace(job, **change))
    with open(job.inputs[1], "a", encoding="utf-8") as file:
        file.write('{"id": "new", "text": "Aspirin."}\n')
    with pytest.raises(UserError, match=r"inputs\[1\].bytes.*inputs\[1\].sha256"):
        run_here(job)
    assert run_here(job, overwrite=True)["counts"]["documents_in"] == 13


@pytest.mark.filterwarnings("ignore")
def test_scispacys_approximate_search_is_built_once_and_links_the_same(job: AnnotationJob, tmp_path: Path) -> None:
    """On names as few as these its search misses none."""
    kb = tmp_path / "kb"
    shutil.copytree(job.kb, kb)
    exact = replace(job, kb=kb, out=tmp_path / "exact")
    run_here(exact)
    for linker, out in (("scispacy-hnsw", "built"), (str(kb / "linker-scispacy-hnsw"), "folder")):
        approximate = replace(exact, linker=linker, out=tmp_path / out)
        run_here(approximate)
        assert [*AnnotatedCorpus.load(approximate.out).iter_documents()] == [
            *AnnotatedCorpus.load(exact.out).iter_documents()
        ]


def test_a_foreign_folder_is_never_touched(job: AnnotationJob) -> None:
    job.out.mkdir()
    (job.out / "thesis.txt").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="other files"):
            run_here(job, overwrite=overwrite)
    assert (job.out / "thesis.txt").read_text() == "years of work"


def test_overwriting_begins_anew_and_spares_the_inputs(job: AnnotationJob) -> None:
    run_here(job)
    with open_job(job, overwrite=True):
        assert {file.name for file in job.out.iterdir()} == {"job.json", LOCK_FILE}
    for out in (job.inputs[0].parent, job.kb, job.kb / "annotated"):
        with pytest.raises(UserError, match="the input"):
            run_here(replace(job, out=out), overwrite=True)
    assert all(path.is_file() for path in job.inputs)


def test_one_folder_has_one_driver(job: AnnotationJob, tmp_path: Path) -> None:
    """A second process is refused and leaves the first one's unfinished parts alone; a killed one holds nothing."""
    (tmp_path / "job").write_bytes(pickle.dumps((job.out, describe_job(job))))
    code = """if True:
        import pickle, sys, time
        from preprocessing.ledger import open_ledger
        with open(sys.argv[1], "rb") as file:
            out, described = pickle.load(file)
        with open_ledger(out, described, inputs=[], overwrite=False):
            print("held", flush=True)
            time.sleep(60)"""
    command = [sys.executable, "-c", code, str(tmp_path / "job")]
    unfinished = job.out / ".part-00000.parquet.1.tmp"
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None and first.stdout.readline() == "held\n"
        unfinished.touch()
        for overwrite in (False, True):
            with pytest.raises(UserError, match="is running"), open_job(job, overwrite=overwrite):
                pass
        assert unfinished.exists()
        first.kill()
    with open_job(job):
        assert not unfinished.exists()


def test_sample_against_its_gold(sample_dir: Path, sample_kb: Path, tmp_path: Path) -> None:
    inputs = list_inputs([sample_dir / "pubmed"])
    job = AnnotationJob(inputs=inputs, kb=sample_kb, model="dictionary", out=tmp_path / "out")
    manifest = run_here(job)
    gold = list(read_gold(sample_dir / "gold.pubtator.txt"))
    assert manifest["counts"]["documents_out"] == len(gold)
    corpus = AnnotatedCorpus.load(job.out)
    assert [document.doc_id for document in corpus.iter_documents()] == [document.doc_id for document in gold]
    result = evaluate(corpus.iter_documents(), gold, read_codes(sample_dir / "codes.tsv"))
    assert result.linked_spans.f1 > 0.9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs": (Path("absent.xml"),)}, "no such file"),
        ({"model": "en_core_sci_absent"}, "pip install"),
        ({"kb": Path("absent")}, "kb build"),
        ({"threshold": 1.5}, "cosine"),
        ({"document_seconds": 0.0}, "--document-timeout"),
        ({"linker": "/absent"}, "--linker"),
    ],
)
def test_mistakes_are_told_before_any_work(job: AnnotationJob, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        changed = replace(job, **change)
        describe_job(replace(changed, inputs=list_inputs(changed.inputs)))
    assert "\n" not in str(error.value)
    assert not job.out.exists()


def test_inputs_are_files_once_each(job: AnnotationJob, tmp_path: Path) -> None:
    assert list_inputs([tmp_path / "in"]) == job.inputs
    with pytest.raises(UserError, match="more than once"):
        list_inputs([job.inputs[0], tmp_path / "in"])
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UserError, match="no abstracts"):
        list_inputs([tmp_path / "nothing"])
