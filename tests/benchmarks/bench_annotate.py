"""Annotation beside its own NER alone and beside plain scispaCy: speed, memory and equal links.

    python -m tests.benchmarks.bench_annotate --peer-index DIR        # about 10 minutes on 2 cores

All read the same real abstracts with the same spaCy model and knowledge base, in turns. NER alone is the model's
`nlp.pipe` in two processes, nothing else; once as spaCy runs it, and once with the matrix products that annotation uses
(`preprocessing.annotation.matrix_ops`), the speed that annotation cannot exceed. Plain scispaCy is its pipeline
as it is documented (NER, abbreviation_detector, scispacy_linker) in one process, because its index cannot be pickled.
DIR has scispaCy's index of the knowledge base's names; where it is absent it is built, which takes some 20 minutes.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import psutil
import spacy

from kebiolm.console import console
from preprocessing.annotation.job import AnnotationJob, describe_job, list_inputs
from preprocessing.annotation.matrix_ops import use_blas
from preprocessing.annotation.run import Stages, close_job
from preprocessing.annotation.store import AnnotatedCorpus
from preprocessing.annotation.worker import AnnotationWorker, worker_arguments
from preprocessing.document import Document
from preprocessing.ledger import open_ledger
from preprocessing.ray_pool import WorkerPool, ray_session
from preprocessing.sources import open_source
from preprocessing.umls.build_kb import build_kb
from preprocessing.watch.screen import JobScreen
from tests.benchmarks.machine import describe_machine

REPOSITORY = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).parent / "results"
CORPORA = ("cdr_train", "ncbi_disease_train")
PROCESSES = 2
THRESHOLD = 0.85
NER, NER_OUR_PRODUCTS = "NER alone, as spaCy runs it", "NER alone, with our matrix products"
OURS, PLAIN = "kebiolm annotate", "plain scispaCy"

PREDICTED = (
    "Written down before the first run: NER takes 14 ms a document on one core, abbreviations 0.4 ms, reading, "
    "writing and joining 0.3 ms, 3.3 new texts a document at some 10,000 searches/s 0.3 ms, so 93% of NER alone. "
    "Plain scispaCy makes some 460 searches/s and 15 mentions a document: 32 ms more for each, on one core, so ours "
    "on two is 6 times as fast."
)


@dataclass(kw_only=True)
class Timed:
    """One run of a competitor: seconds of work, of starting before it, and the processes' memory (USS, MiB)."""

    work: float
    start: float
    memory: list[float]


def read_documents(data: Path) -> list[Document]:
    """The real abstracts, each id once."""
    documents: dict[str, Document] = {}
    for name in CORPORA:
        for record in open_source(data / "corpora" / f"{name}.pubtator.txt"):
            if isinstance(record, Document):
                documents[record.doc_id] = record
    return list(documents.values())


def run_ner_alone(texts: Sequence[str], model: Path, *, our_products: bool) -> Timed:
    """The model's own pipe over all texts, shared by two processes."""
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(PROCESSES + 1), context.Queue()
    began = time.perf_counter()
    processes = [
        context.Process(target=_pipe_texts, args=(texts[number::PROCESSES], model, our_products, barrier, results))
        for number in range(PROCESSES)
    ]
    for process in processes:
        process.start()
    barrier.wait()
    started = time.perf_counter()
    memory = [results.get() for _ in processes]
    ended = time.perf_counter()
    for process in processes:
        process.join()
    return Timed(work=ended - started, start=started - began, memory=memory)


def _pipe_texts(texts: list[str], model: Path, our_products: bool, barrier: Barrier, results: Any) -> None:
    nlp = spacy.load(model)
    nlp.select_pipes(enable=["tok2vec", "ner"])
    if our_products:
        use_blas(nlp)
    barrier.wait()
    with nlp.memory_zone():
        for doc in nlp.pipe(texts, batch_size=32):
            doc.ents  # noqa: B018
    results.put(psutil.Process().memory_full_info().uss / 2**20)


def run_ours(job: AnnotationJob) -> Timed:
    """The job as `kebiolm annotate` runs it, from the first byte read to the finished folder."""
    began = time.perf_counter()
    described = describe_job(job)
    with (
        open_ledger(job.out, described, inputs=[*job.inputs, job.kb], overwrite=True),
        ray_session(None, PROCESSES),
        WorkerPool(AnnotationWorker, worker_arguments(job, described), workers=PROCESSES) as pool,
    ):
        pool.start()
        started = time.perf_counter()
        with JobScreen(files=len(job.inputs)) as screen:
            parts, texts = Stages(job, described, pool, screen).run()
        close_job(job, described, parts, texts)
        ended = time.perf_counter()
        children = psutil.Process().children(recursive=True)
        workers = [child for child in children if "AnnotationWorker" in " ".join(child.cmdline())]
        memory = [worker.memory_full_info().uss / 2**20 for worker in workers]
    return Timed(work=ended - started, start=started - began, memory=memory)


def run_plain(texts: Sequence[str], model: Path, kb: Path, peer_index: Path, links_file: Path) -> Timed:
    """Plain scispaCy in a fresh process; its links go to a file."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=_pipe_and_link, args=(list(texts), (model, kb, peer_index), links_file, results))
    process.start()
    timed = results.get()
    process.join()
    return timed


def _pipe_and_link(texts: list[str], folders: tuple[Path, Path, Path], links_file: Path, results: Any) -> None:
    from scispacy.abbreviation import AbbreviationDetector
    from scispacy.linking import EntityLinker

    from tests.benchmarks.bench_linker import load_scispacy

    model, kb, peer_index = folders
    began = time.perf_counter()
    generator = load_scispacy(peer_index, kb)
    nlp = spacy.load(model)
    detector = AbbreviationDetector(nlp)
    linker = EntityLinker(
        nlp,
        candidate_generator=generator,
        resolve_abbreviations=True,
        threshold=THRESHOLD,
        filter_for_definitions=False,
        max_entities_per_mention=1,
    )
    started = time.perf_counter()
    links = []
    for doc in nlp.pipe(texts, batch_size=32):
        linker(detector(doc))
        links.append([(e.start_char, e.end_char, *e._.kb_ents[0]) for e in doc.ents if e._.kb_ents])
    ended = time.perf_counter()
    links_file.write_text(json.dumps(links), encoding="utf-8")
    memory = [psutil.Process().memory_full_info().uss / 2**20]
    results.put(Timed(work=ended - started, start=started - began, memory=memory))


def compare_links(documents: Sequence[Document], annotated: Path, links_file: Path) -> Counter[str]:
    """Sort scispaCy's links and ours: equal; both are best (a tie); its search missed the true best; ours is worse."""
    ours = {document.doc_id: document for document in AnnotatedCorpus.load(annotated).iter_documents()}
    outcome: Counter[str] = Counter()
    for document, theirs in zip(documents, json.loads(links_file.read_text(encoding="utf-8")), strict=True):
        mine = {(m.start, m.end): (m.cui, m.score) for m in ours[document.doc_id].mentions}
        their = {(start, end): (cui, score) for start, end, cui, score in theirs}
        for span in sorted(mine.keys() | their.keys()):
            outcome[_compare(mine.get(span), their.get(span))] += 1
    return outcome


def _compare(mine: tuple[str, float] | None, theirs: tuple[str, float] | None) -> str:
    if mine is None:
        return "only scispaCy links it"
    if theirs is None:
        return "its search missed every name above the threshold"
    if mine[0] == theirs[0]:
        return "same concept"
    if abs(mine[1] - theirs[1]) < 1e-4:
        return "another concept of equal score"
    return "its search missed the true best" if mine[1] > theirs[1] else "scispaCy scores higher"


def main() -> None:
    # One thread in each process: Ray's actors have that, and the processes that are started here inherit it.
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("KEBIOLM_TEST_DATA", "../shared/data")))
    parser.add_argument("--peer-index", type=Path, required=True, help="scispaCy's index of the same knowledge base")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    began, model = time.time(), arguments.data / "models" / "en_ner_open_sm"
    machine = describe_machine(("spacy", "scispacy", "ray", "numba", "nmslib-metabrainz"))
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        build_kb(arguments.data / "kb" / "openkb", kb := work / "kb")
        documents = read_documents(arguments.data)
        (work / "in").mkdir()
        for number in range(PROCESSES):
            lines = [json.dumps({"id": d.doc_id, "text": d.text}) for d in documents[number::PROCESSES]]
            (work / "in" / f"{number}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        job = AnnotationJob(
            inputs=list_inputs([work / "in"]),
            kb=kb,
            model=str(model),
            out=work / "out",
            threshold=THRESHOLD,
            slice_documents=100,
        )
        texts = [document.text for document in documents]
        runs: dict[str, list[Timed]] = {name: [] for name in (NER, NER_OUR_PRODUCTS, OURS, PLAIN)}
        for number in range(arguments.rounds):
            console.print(f"round {number + 1} of {arguments.rounds}")
            runs[NER].append(run_ner_alone(texts, model, our_products=False))
            runs[NER_OUR_PRODUCTS].append(run_ner_alone(texts, model, our_products=True))
            runs[OURS].append(run_ours(job))
            runs[PLAIN].append(run_plain(texts, model, kb, arguments.peer_index, work / "links.json"))
        outcome = compare_links(documents, work / "out", work / "links.json")
        counts = AnnotatedCorpus.load(work / "out").manifest["counts"]
    write_results(machine, runs, outcome, counts, seconds=time.time() - began)


def write_results(
    machine: dict[str, str],
    runs: dict[str, list[Timed]],
    outcome: Counter[str],
    counts: dict[str, int],
    *,
    seconds: float,
) -> None:
    """Print the figures and write tests/benchmarks/results/annotate.md and annotate.json."""
    documents = counts["documents_out"]
    speed = {name: statistics.median(documents / run.work for run in timed) for name, timed in runs.items()}
    lines = ["# Annotation beside NER alone and plain scispaCy", ""]
    lines += [f"- {name}: {value}" for name, value in machine.items()]
    lines += [f"- wall time: {seconds:.0f} s", "", "## Predicted", "", PREDICTED, "", "## Measured", ""]
    lines += [
        f"{documents:,} real abstracts, {counts['mentions_found']:,} mentions, {counts['distinct_texts']:,} distinct "
        "texts; median of rounds (lowest - highest). Starting (processes, model, index) is not part of the speeds; "
        "memory is that of one process alone (USS).",
        "",
        f"| | processes | abstracts/s | x {NER} | x {NER_OUR_PRODUCTS} | x {PLAIN} | starting, s | memory, MiB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, timed in runs.items():
        speeds = sorted(documents / run.work for run in timed)
        memory = max(value for run in timed for value in run.memory) if timed[0].memory else float("nan")
        lines.append(
            f"| {name} | {1 if name == PLAIN else PROCESSES} | {speed[name]:.1f} ({speeds[0]:.1f} - "
            f"{speeds[-1]:.1f}) | {speed[name] / speed[NER]:.3f} | {speed[name] / speed[NER_OUR_PRODUCTS]:.3f} | "
            f"{speed[name] / speed[PLAIN]:.2f} | "
            f"{statistics.median(run.start for run in timed):.1f} | {memory:,.0f} |"
        )
    total = sum(outcome.values())
    lines += ["", "## Links", "", "Each span that either links above 0.85:", ""]
    lines += ["| | spans | share |", "| --- | --- | --- |"]
    lines += [f"| {what} | {count:,} | {count / total:.2%} |" for what, count in outcome.most_common()]
    text = "\n".join(lines) + "\n"
    (RESULTS / "annotate.md").write_text(text, encoding="utf-8")
    data = {"machine": machine, "speed": speed, "links": dict(outcome), "counts": counts}
    data["runs"] = {name: [vars(run) for run in timed] for name, timed in runs.items()}
    (RESULTS / "annotate.json").write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    console.print(text, markup=False)


if __name__ == "__main__":
    main()
