"""What a sample of abstracts costs: the job's own stages run on it, in one fresh process, and are measured.

The process is a worker as Ray starts one (one thread for linear algebra, model and index loaded once). Time is the
processor's, not the clock's, so that other work on the machine disturbs it little.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kebiolm.data.knowledge_base import KnowledgeBase
from kebiolm.data.tokenizer import load_tokenizer
from kebiolm.errors import UserError
from preprocessing.annotation.job import AnnotationJob, describe_job
from preprocessing.annotation.run import Stages
from preprocessing.annotation.store import ROWS_PER_GROUP, part_name
from preprocessing.annotation.unit_files import WORK_FOLDER, map_arrow
from preprocessing.annotation.worker import AnnotationWorker, worker_arguments
from preprocessing.document import Document
from preprocessing.linker.choice import load_linker
from preprocessing.sources import open_source
from preprocessing.watch.screen import FIND, JOIN, LINK, READ, JobScreen

MOST_DOCUMENTS = 2000
_SLICES = 8  # the sample's slices; their differences tell how sure the speed is
_LEAST_DOCUMENTS = 20
_SHUFFLES = 5
_SEED = 0
_CURVE_POINTS = 24


@dataclass(frozen=True, kw_only=True)
class SampleCosts:
    """What was measured on a sample; seconds are of one core.

    Attributes:
        documents: abstracts that were annotated.
        characters: of their texts.
        mentions: that were found in them.
        texts: distinct texts of these.
        pieces: word pieces, where a tokenizer was given.
        start_s: from starting the process until model and index are loaded, by the clock.
        read_s: reading the input files and writing slices, for all documents.
        find_s: finding mentions, for each slice of the sample.
        slice_documents: documents of each of these slices.
        link_s: linking all distinct texts.
        join_s: joining and writing the parts.
        driver_s: what the driver does: handing out units, checking their files, looking for repeated ids.
        units: that it handed out.
        worker_bytes: memory that a worker shares with no other: its anonymous pages.
        index_bytes: files of the link index, which the workers of a node map into memory together.
        slice_bytes: work files of reading.
        mention_bytes: work files with the found mentions.
        text_bytes: work files with the slices' distinct texts.
        slice_texts: distinct texts of each slice, summed over the slices.
        part_bytes: files of the annotated documents.
        curve: (mentions, distinct texts) while the sample grows, averaged over orders of its documents.
        names: of the knowledge base.
    """

    documents: int
    characters: int
    mentions: int
    texts: int
    pieces: int | None
    start_s: float
    read_s: float
    find_s: tuple[float, ...]
    slice_documents: tuple[int, ...]
    link_s: float
    join_s: float
    driver_s: float
    units: int
    worker_bytes: int
    index_bytes: int
    slice_bytes: int
    mention_bytes: int
    text_bytes: int
    slice_texts: int
    part_bytes: int
    curve: tuple[tuple[float, float], ...]
    names: int


class _Request(NamedTuple):
    """What the fresh process is to do; `submitted` is when it was asked, in seconds since the epoch."""

    sample: tuple[Path, ...]
    kb: Path
    model: str
    tokenizer: Path | None
    most: int
    submitted: float


def measure(
    sample: Sequence[Path], kb: Path, model: str, *, tokenizer: Path | None = None, most: int = MOST_DOCUMENTS
) -> SampleCosts:
    """Annotate the first documents of the sample's files in a fresh process and measure it.

    Args:
        sample: files of abstracts; each gives as many of the `most` documents.
        kb: folder of the knowledge base.
        model: spaCy pipeline, or "dictionary".
        tokenizer: folder of the tokenizer of the shards, to count word pieces.
        most: number of documents to stop at.

    Raises:
        UserError: a file cannot be read, the sample is too small, or the model cannot be loaded.
    """
    # A worker of Ray computes with one thread; the variable is read when the new process imports NumPy.
    former = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
            request = _Request(tuple(sample), kb, model, tokenizer, most, submitted=time.time())
            return process.submit(_measure_here, request).result()
    except BrokenProcessPool:
        mend = "give --sample fewer or shorter documents, and check that memory is free"
        raise UserError("measurement", got="a process that died", expected="a sample annotated", mend=mend) from None
    finally:
        if former is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = former


def growth_curve(keys: np.ndarray, documents: np.ndarray) -> tuple[tuple[float, float], ...]:
    """How the distinct texts grow with the mentions, averaged over shuffled orders of the documents.

    Args:
        keys: [M] a number that stands for each mention's text.
        documents: [M] the document of each, ascending.

    Returns:
        (mentions, distinct texts) at points that grow by equal factors; the last is the whole sample.
    """
    if not len(keys):
        return ()
    random = np.random.default_rng(_SEED)
    points = np.unique(np.geomspace(min(100, len(keys)), len(keys), _CURVE_POINTS).astype(np.int64))
    distinct = np.zeros((_SHUFFLES, len(points)))
    for place in range(_SHUFFLES):
        order = random.permutation(int(documents[-1]) + 1)
        shuffled = keys[np.argsort(order[documents], kind="stable")]
        first = np.sort(np.unique(shuffled, return_index=True)[1])
        distinct[place] = np.searchsorted(first, points)
    return tuple(zip(points.astype(float).tolist(), distinct.mean(axis=0).tolist(), strict=True))


class _TimedWorker:
    """A pool of one worker, this process; keeps the processor's seconds of every unit."""

    def __init__(self, worker: AnnotationWorker) -> None:
        self._worker = worker
        self.seconds: dict[str, list[float]] = {}
        self.memory = 0

    def run(
        self,
        method: str,
        units: Mapping[Hashable, tuple[Any, ...]],
        *,
        failed: dict[Hashable, str],
        is_progress: Callable[[Hashable], bool],
    ) -> Iterator[tuple[Hashable, Any]]:
        """As `WorkerPool.run`; what a unit raises ends the measurement."""
        for unit, arguments in units.items():
            before = time.process_time()
            result = getattr(self._worker, method)(*arguments)
            self.seconds.setdefault(method, []).append(time.process_time() - before)
            self.memory = max(self.memory, anonymous_bytes())
            yield unit, result


def anonymous_bytes() -> int:
    """Memory of this process that no other can share.

    Raises:
        UserError: this system does not tell.
    """
    try:
        lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError as error:
        mend = "run it on the machine that will annotate"
        raise UserError("/proc/self/smaps_rollup", got=error, expected="Linux's account of memory", mend=mend) from None
    (line,) = (line for line in lines if line.startswith("Anonymous:"))
    return int(line.split()[1]) * 1024


def _measure_here(request: _Request) -> SampleCosts:
    imported_s = time.time() - request.submitted
    base = KnowledgeBase.load(request.kb, check_hash=False)
    with TemporaryDirectory(prefix="kebiolm-plan-") as folder:
        before = time.process_time()
        documents = _first_documents(request.sample, request.most)
        source_s = time.process_time() - before
        job = _sample_job(request, documents, Path(folder))
        described = describe_job(job)
        worker = AnnotationWorker(*worker_arguments(job, described))
        before = time.time()
        worker.load()
        # A process compiles its search when it is first used: that is part of its start.
        load_linker(job.linker, job.kb, check_hash=False).link_above(["warm"], job.threshold)
        load_s = time.time() - before
        pool = _TimedWorker(worker)
        before = time.process_time()
        with JobScreen(files=1) as screen:
            parts, texts = Stages(job, described, pool, screen).run()
        spent = {stage: sum(pool.seconds[stage]) for stage in (READ, FIND, LINK, JOIN)}
        driver_s = time.process_time() - before - sum(spent.values())
        keys, rows = _mention_keys(job, len(parts))
        work = job.out / WORK_FOLDER
        return SampleCosts(
            documents=len(documents),
            characters=sum(len(document.text) for document in documents),
            mentions=len(keys),
            texts=texts,
            pieces=None if request.tokenizer is None else _count_pieces(documents, request.tokenizer),
            start_s=imported_s + load_s,
            read_s=source_s + spent[READ],
            find_s=tuple(pool.seconds[FIND]),
            slice_documents=tuple(part["counts"]["documents_in"] for part in parts),
            link_s=spent[LINK],
            join_s=spent[JOIN],
            driver_s=driver_s,
            units=sum(map(len, pool.seconds.values())),
            worker_bytes=pool.memory,
            index_bytes=_size(base.linker_path, "*"),
            slice_bytes=_bytes_as_one(sorted((work / "read").glob("*slice-?????.parquet"))),
            mention_bytes=_bytes_as_one([work / "found" / f"{part_name(part)}.parquet" for part in range(len(parts))]),
            text_bytes=_size(work / "found", "*.texts.arrow"),
            slice_texts=sum(len(map_arrow(path)) for path in (work / "found").glob("*.texts.arrow")),
            part_bytes=_bytes_as_one([job.out / f"{part_name(part)}.parquet" for part in range(len(parts))]),
            curve=growth_curve(keys, rows),
            names=base.manifest["counts"]["names"],
        )


def _sample_job(request: _Request, documents: list[Document], folder: Path) -> AnnotationJob:
    """The sample as a job of its own, in a few slices."""
    lines = (json.dumps({"id": document.doc_id, "text": document.text}) for document in documents)
    file = folder / "sample.jsonl"
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return AnnotationJob(
        inputs=(file,),
        kb=request.kb,
        model=request.model,
        out=folder / "out",
        slice_documents=-(-len(documents) // _SLICES),
    )


def _first_documents(sample: tuple[Path, ...], most: int) -> list[Document]:
    """As many documents from the beginning of each file."""
    found: dict[str, Document] = {}
    for path in sample:
        documents = (record for record in open_source(path) if isinstance(record, Document))
        found.update((document.doc_id, document) for document in islice(documents, -(-most // len(sample))))
    if len(found) < _LEAST_DOCUMENTS:
        mend = "give files with more abstracts; 1,000 or more make a good estimate"
        raise UserError("--sample", got=f"{len(found)} documents", expected=f"at least {_LEAST_DOCUMENTS}", mend=mend)
    return list(found.values())


def _mention_keys(job: AnnotationJob, parts: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each mention, in the order of the documents: a number for its text, and the number of its document."""
    folder = job.out / WORK_FOLDER / "found"
    keys, rows = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
    for part in range(parts):
        mentions = pq.read_table(folder / f"{part_name(part)}.parquet", columns=["row", "text"])
        digests = map_arrow(folder / f"{part_name(part)}.texts.arrow")["digest_high"].to_numpy()
        keys.append(digests[mentions["text"].to_numpy()])
        rows.append(mentions["row"].to_numpy().astype(np.int64) + part * job.slice_documents)
    return np.concatenate(keys), np.concatenate(rows)


def _count_pieces(documents: list[Document], folder: Path) -> int:
    tokenizer = load_tokenizer(folder)
    encoded = tokenizer([document.text for document in documents], add_special_tokens=False)["input_ids"]
    return sum(map(len, encoded))


def _bytes_as_one(files: list[Path]) -> int:
    """Bytes of one Parquet file with the rows of all of these; the sample's slices are too small to compress well."""
    sink = pa.BufferOutputStream()
    table = pa.concat_tables([pq.read_table(file) for file in files])
    pq.write_table(table, sink, compression="zstd", row_group_size=ROWS_PER_GROUP)
    return sink.tell()


def _size(folder: Path, pattern: str) -> int:
    return sum(path.stat().st_size for path in folder.glob(pattern))
