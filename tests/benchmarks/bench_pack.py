"""Packing: speed with one and two workers, fill rate beside simpler ways to pack, memory.

    python -m tests.benchmarks.bench_pack                    # about 5 minutes on 2 cores
    python -m tests.benchmarks.bench_pack --copies 4 --rounds 1

Reads the real abstracts of KEBIOLM_TEST_DATA with the released tokenizer; for length they are repeated under new ids. A
mention is every second word of six letters or more, as dense as a busy annotator. Results go to
tests/benchmarks/results/pack.md and pack.json.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import statistics
import tempfile
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import datasets
import numpy as np
import psutil

from kebiolm.data.shard_format import PackedShards
from kebiolm.data.tokenizer import load_tokenizer
from preprocessing.document import Document, Mention
from preprocessing.packing.align import tokenize
from preprocessing.packing.best_fit import best_fit
from preprocessing.packing.pack import pack
from preprocessing.packing.segments import NUM_SPECIAL_PIECES, cut_documents
from preprocessing.packing.settings import PackSettings
from preprocessing.sources.pubtator import read_pubtator
from tests.benchmarks.machine import describe_machine
from tests.conftest import write_annotated_folder

REPOSITORY = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).parent / "results"
CORPORA = ("cdr_train", "ncbi_disease_train")
LENGTH = 512
WORKERS = (1, 2)
# Small enough that two workers get equally many groups, which a corpus of real size has without this.
DOCUMENTS_PER_SHARD = 4096

PREDICTED = (
    "Written down before the first run of this benchmark, after trials of the tokenizer alone (2,050 documents/s "
    "with one thread): what is beside the tokenizer costs 0.1 ms a document, so one worker reaches 1,650 "
    "documents/s and two reach 1.9 times that, without the start of Ray (6 s). `datasets.map` with two processes "
    "only tokenizes and writes and reaches about the same. Next fit fills 75%, one document a sequence 50%; peak "
    "memory is the same for a corpus three times as long."
)
SAME = (
    "All read the same texts with the same tokenizer. The ways to pack get the same segments: a document, or the parts "
    "of a document of more than 510 pieces, each with [CLS] and [SEP]; `cut anywhere` joins all documents and cuts "
    "every 512 pieces, as language-model training often does."
)
DIFFERENT = (
    "`datasets.map` does a part of the work: it tokenizes with offsets and writes Arrow files; it aligns no mentions, "
    "cuts no documents, packs nothing, makes no vocabulary and no hashes. Ours without the start is the time less that "
    "of a corpus of ten documents with the same number of workers."
)


def read_abstracts(data: Path) -> list[Document]:
    """The real abstracts, with stand-in mentions."""
    documents = []
    for name in CORPORA:
        with open(data / "corpora" / f"{name}.pubtator.txt", "rb") as stream:
            documents += [record for record in read_pubtator(stream, name) if isinstance(record, Document)]
    return [_with_mentions(document) for document in documents]


def _with_mentions(document: Document) -> Document:
    words = list(re.finditer("[A-Za-z]{6,}", document.text))[::2]
    mentions = [
        Mention(
            start=word.start(), end=word.end(), cui=f"C{zlib.crc32(word[0].lower().encode()) % 10**7:07d}", score=1.0
        )
        for word in words
    ]
    return Document(doc_id=document.doc_id, text=document.text, mentions=tuple(mentions))


def write_corpus(folder: Path, documents: Sequence[Document], copies: int) -> Path:
    """The abstracts so many times, each copy under ids of its own, as a finished annotated folder."""
    folder.mkdir()
    repeated = [
        Document(doc_id=f"{document.doc_id}-{copy}", text=document.text, mentions=document.mentions)
        for copy in range(copies)
        for document in documents
    ]
    return write_annotated_folder(folder, repeated)


def fill_rates(documents: Sequence[Document], tokenizer_folder: Path) -> dict[str, dict[str, float]]:
    """Share of positions filled by each way to pack, and the share of documents whose text it cuts."""
    texts = [document.text for document in documents]
    pieces = tokenize(load_tokenizer(tokenizer_folder).backend_tokenizer, texts)
    room = LENGTH - NUM_SPECIAL_PIECES
    starts = cut_documents(pieces, np.zeros((0, 2), int), texts, max_pieces=room, unit="document")
    lengths = (np.diff(starts) + NUM_SPECIAL_PIECES).tolist()
    too_long = float((np.diff(pieces.document_starts) > room).mean())

    next_fit, left = 0, 0
    for length in lengths:
        next_fit, left = (next_fit, left - length) if length <= left else (next_fit + 1, LENGTH - length)
    joined = np.cumsum([0, *(np.diff(pieces.document_starts) + NUM_SPECIAL_PIECES)])
    cut = sum((start // LENGTH) != ((end - 1) // LENGTH) for start, end in pairwise(joined.tolist())) / len(texts)
    sequences = {
        "best fit (ours)": (len(best_fit(lengths, LENGTH)), too_long),
        "next fit": (next_fit, too_long),
        "one segment a sequence": (len(lengths), too_long),
    }
    rates = {
        name: {"fill": sum(lengths) / (count * LENGTH), "cut": share} for name, (count, share) in sequences.items()
    }
    rates["cut anywhere"] = {"fill": joined[-1] / (-(-joined[-1] // LENGTH) * LENGTH), "cut": float(cut)}
    return rates


class Memory:
    """Highest resident memory, in MB, of this process and of the largest of its children, sampled every 50 ms."""

    def __init__(self) -> None:
        self.driver, self.worker = 0.0, 0.0
        self._process, self._done = psutil.Process(), threading.Event()

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Sample while the block runs."""
        thread = threading.Thread(target=self._sample)
        thread.start()
        try:
            yield
        finally:
            self._done.set()
            thread.join()

    def _sample(self) -> None:
        while not self._done.wait(0.05):
            self.driver = max(self.driver, self._process.memory_info().rss / 1e6)
            for child in self._process.children(recursive=True):
                try:
                    if "PackWorker" in " ".join(child.cmdline()):
                        self.worker = max(self.worker, child.memory_info().rss / 1e6)
                except psutil.Error:
                    continue


def time_pack(annotated: Path, tokenizer: Path, out: Path, workers: int) -> tuple[float, dict[str, float], dict]:
    """Seconds of one job, its peak memory, and its counts."""
    memory, settings = Memory(), PackSettings(documents_per_shard=DOCUMENTS_PER_SHARD)
    started = time.perf_counter()
    with memory.watch():
        manifest = pack(annotated, tokenizer, out, settings=settings, workers=workers, overwrite=True)
    return time.perf_counter() - started, {"driver": memory.driver, "worker": memory.worker}, manifest["counts"]


def time_datasets_map(texts: list[str], tokenizer_folder: Path, cache: Path) -> float:
    """Seconds that Hugging Face datasets takes to tokenize the texts in two processes."""
    tokenizer = load_tokenizer(tokenizer_folder)
    dataset = datasets.Dataset.from_dict({"text": texts})
    started = time.perf_counter()
    dataset.map(
        lambda batch: tokenizer(batch["text"], add_special_tokens=False, return_offsets_mapping=True),
        batched=True,
        num_proc=max(WORKERS),
        remove_columns=["text"],
        cache_file_name=str(cache / f"{started}.arrow"),
    )
    return time.perf_counter() - started


def time_tokenizer(texts: list[str], tokenizer_folder: Path) -> float:
    """Seconds that the tokenizer alone takes with one thread."""
    backend = load_tokenizer(tokenizer_folder).backend_tokenizer
    started = time.perf_counter()
    for text in texts:
        backend.encode(text, add_special_tokens=False)
    return time.perf_counter() - started


def measure_speed(documents: list[Document], tokenizer: Path, folder: Path, *, copies: int, rounds: int) -> dict:
    """Seconds of each, in turns, and the memory of ours for two lengths of the corpus."""
    texts = [document.text for document in documents] * copies
    long = write_corpus(folder / "long", documents, copies)
    longest = write_corpus(folder / "longest", documents, 3 * copies)
    short = write_corpus(folder / "short", documents[:10], 1)
    seconds: dict[str, list[float]] = {}
    memory: dict[str, dict[str, float]] = {}
    counts: dict[str, dict] = {}

    def note(name: str, value: float) -> None:
        seconds.setdefault(name, []).append(value)
        print(f"{name}: {value:.2f} s", flush=True)

    for _ in range(rounds):
        note("tokenizer alone, one thread", time_tokenizer(texts, tokenizer))
        note("datasets.map, 2 processes", time_datasets_map(texts, tokenizer, folder))
        for workers in WORKERS:
            note(f"start, {workers}", time_pack(short, tokenizer, folder / "out-short", workers)[0])
            taken, memory[f"{workers}, {len(texts):,} documents"], counts = time_pack(
                long, tokenizer, folder / f"out-{workers}", workers
            )
            note(f"ours, {workers}", taken)
    fingerprints = {PackedShards.load(folder / f"out-{workers}", verify=True).fingerprint for workers in WORKERS}
    assert len(fingerprints) == 1, "every number of workers must give the same bytes"
    for workers in WORKERS:
        _, memory[f"{workers}, {3 * len(texts):,} documents"], _ = time_pack(
            longest, tokenizer, folder / "out-longest", workers
        )
    return {"documents": len(texts), "seconds": seconds, "memory_mb": memory, "counts": counts}


def report(speed: dict, fill: dict[str, dict[str, dict[str, float]]], machine: dict[str, str]) -> str:
    """The result as Markdown."""
    lines = ["# Packing", "", *(f"- {key}: {value}" for key, value in machine.items()), ""]
    lines += ["## Predicted", "", PREDICTED, "", "## Speed", ""]
    counts, seconds, documents = speed["counts"]["train"], speed["seconds"], speed["documents"]
    lines += [
        f"{documents:,} documents, {counts['mentions_in'] / counts['documents']:.0f} mentions each; median of "
        f"{len(seconds['ours, 1'])} rounds (lowest - highest). One and two workers made the same bytes.",
        "",
        "| | documents/s | without the start |",
        "| --- | ---: | ---: |",
    ]
    for name, label in (
        ("tokenizer alone, one thread", "tokenizer alone, one thread"),
        ("datasets.map, 2 processes", "datasets.map, 2 processes: tokenizes only"),
        ("ours, 1", "ours, 1 worker"),
        ("ours, 2", "ours, 2 workers"),
    ):
        rates = [documents / taken for taken in seconds[name]]
        cells = f"{statistics.median(rates):,.0f} ({min(rates):,.0f} - {max(rates):,.0f})"
        start = statistics.median(seconds.get(name.replace("ours", "start"), [0])) if name.startswith("ours") else None
        without = f"{documents / (statistics.median(seconds[name]) - start):,.0f}" if start is not None else ""
        lines.append(f"| {label} | {cells} | {without} |")
    lines += ["", "## Memory", "", "| workers, corpus | driver, MB | largest worker, MB |", "| --- | ---: | ---: |"]
    for name, peak in speed["memory_mb"].items():
        worker = f"{peak['worker']:,.0f}" if peak["worker"] else "is the driver"
        lines.append(f"| {name} | {peak['driver']:,.0f} | {worker} |")
    lines += [
        "",
        f"Groups of at most {DOCUMENTS_PER_SHARD:,} documents. The driver of the benchmark holds its own data too.",
    ]
    lines += ["", f"## Positions filled at length {LENGTH}", ""]
    lines += [f"| | {' | '.join(fill)} | documents cut |", f"| --- |{' ---: |' * (len(fill) + 1)}"]
    for name in next(iter(fill.values())):
        cells = [f"{rates[name]['fill']:.2%}" for rates in fill.values()]
        lines.append(f"| {name} | {' | '.join(cells)} | {next(iter(fill.values()))[name]['cut']:.1%} |")
    heldout = speed["counts"]["heldout"]
    lines += [
        "",
        f"The job of the speed part: {counts['fill_rate']:.2%} of the training positions, {heldout['fill_rate']:.2%} "
        f"of the held-out ones ({heldout['documents']} documents, 1%, packed together at the end).",
        "",
        "## What is the same and what is not",
        "",
        SAME,
        "",
        DIFFERENT,
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Run all parts and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="rounds of the speed part")
    parser.add_argument("--copies", type=int, default=29, help="copies of the abstracts in the speed part")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    datasets.disable_progress_bars()
    began = time.monotonic()
    machine = describe_machine(("pyarrow", "tokenizers", "ray", "datasets"))
    data = Path(os.environ.get("KEBIOLM_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    tokenizer, documents = data / "released_checkpoint", read_abstracts(data)
    fill = {f"{len(documents):,} abstracts": fill_rates(documents, tokenizer)}
    fill["100 of them"] = fill_rates(documents[::10][:100], tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        speed = measure_speed(documents, tokenizer, Path(folder), copies=arguments.copies, rounds=arguments.rounds)
    machine["load average at the end"] = f"{os.getloadavg()[0]:.1f}"
    machine["wall time"] = f"{time.monotonic() - began:.0f} s"
    text = report(speed, fill, machine)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "pack.md").write_text(text, encoding="utf-8")
    whole = {"machine": machine, "speed": speed, "fill": fill, "predicted": PREDICTED}
    (RESULTS / "pack.json").write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
