"""The exact linker beside scispaCy's search and the exhaustive product, and at up to the three million names of UMLS.

    python -m tests.benchmarks.bench_linker --peer-index DIR                     # about 15 minutes on 2 cores
    python -m tests.benchmarks.bench_linker --peer-index DIR --sizes 300000 --rounds 2

All link the same texts: the distinct mentions that a real model finds in 1,092 real abstracts. DIR has scispaCy's index
of the knowledge base's names; where it is absent it is built, which takes some 20 minutes more. Results go to
tests/benchmarks/results/linker.md, linker.json and linker.png.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from scispacy.candidate_generation import CandidateGenerator, LinkerPaths

from kebiolm.console import console
from preprocessing.annotation.ner import FoundMentions, load_finder
from preprocessing.document import Document
from preprocessing.linker import LinkIndex, link_key
from preprocessing.linker.scispacy_hnsw import build_scispacy_hnsw
from preprocessing.sources import open_source
from preprocessing.umls.build_kb import build_kb
from tests.benchmarks.linker_sizes import CHECKED, THRESHOLD, measure_first_use, measure_size
from tests.benchmarks.machine import describe_machine

REPOSITORY = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).parent / "results"
CORPORA = ("cdr_train", "ncbi_disease_train")
TEXTS_PER_CALL = 100  # what scispaCy gets at once
NEIGHBOURS = 30
OURS_PER_ROUND = 20  # ours is over too soon to be timed once
FLOAT16_ERROR = 1e-3  # of scispaCy's scores, whose vectors are stored as float16

COUNTS = (
    "linked", "differs from exhaustive", "any best", "any best found",
    "compared", "no vector", "missed", "true best found", "same", "rounding",
)  # fmt: skip

SCISPACY, SCISPACY_FREE, EXHAUSTIVE, OURS = (
    "scispaCy", "scispaCy, all cores", "exhaustive product", "ours",
)  # fmt: skip

WANTED = (
    "Wanted: at least 10 x scispaCy's searches/s at 100,000 names and 3 x at 3 million; 3 million names indexed within "
    "15 minutes and 8 GB."
)
PREDICTED = (
    "Expected before the first trial: a mention's rarest 3-grams lead to some 1,000 entries of lists at 100,000 names "
    "and 30,000 at 3 million, a few nanoseconds each, so 50,000 and 5,000 searches/s. The first trial, which added up "
    "scores in an array over all names, reached 17,000 and 500: at 3 million names each entry was a cache miss. Lists "
    "by prefix on both sides and signatures inside the lists came of that."
)
COMPARED = (
    "One process on one core does all three in turns; `scispaCy, all cores` is its search with the process free to use "
    "every core, as its nmslib does by default. scispaCy is its `CandidateGenerator` over its own index (HNSW with "
    "M = 100, efConstruction = 2000, efSearch = 200, k = 30), called with 100 texts at a time. The exhaustive product "
    "is `LinkIndex.link`, ours `LinkIndex.link_above`, threshold 0.85; both begin with the texts, like scispaCy."
)
STAND_IN = (
    "scispaCy's graph cannot be built for 3 million names here (it takes hours), so the last column takes its speed at "
    "100,000 names for its speed at every size. That is generous: a search in a larger graph is slower."
)
GROWN = (
    "Larger knowledge bases are the real one plus made-up names (tests/benchmarks/synthetic_names.py): a real name of "
    "which one to three words are exchanged for words of other names, crossed with another word's ending, or joined by "
    "a side, stage, strength or form; new concepts have 1 to 8 such names. Each size is built, loaded and searched in "
    "processes of their own, on one core. Memory while two processes link at the same time: `own` is what each has for "
    "itself (USS: libraries, mostly), `shared` what both have of the index and libraries together (sum of PSS - USS)."
)


def load_texts(data: Path) -> list[str]:
    """The distinct link keys of the mentions in the real abstracts, sorted."""
    documents = {
        record.doc_id: record.text
        for corpus in CORPORA
        for record in open_source(data / "corpora" / f"{corpus}.pubtator.txt")
        if isinstance(record, Document)
    }
    console.print(f"finding mentions in {len(documents)} abstracts")
    found = load_finder(str(data / "models" / "en_ner_open_sm")).find(list(documents.values()))
    results = [result for result in found if isinstance(result, FoundMentions)]
    return sorted({link_key(mention.link_text) for result in results for mention in result.mentions})


def load_scispacy(folder: Path, kb: Path) -> CandidateGenerator:
    """scispaCy's generator as it is shipped, over the knowledge base's names."""
    names = pq.read_table(kb / "names.parquet")
    if not folder.is_dir():
        build_scispacy_hnsw(names["name"], folder)
    aliases, vectorizer, graph = LinkerPaths.from_directory(folder).load()
    alias_to_cuis: dict[str, set[str]] = {}
    for name, cui in zip(names["name"].to_pylist(), names["cui"].to_pylist(), strict=True):
        alias_to_cuis.setdefault(name, set()).add(cui)
    return CandidateGenerator(graph, vectorizer, aliases, SimpleNamespace(alias_to_cuis=alias_to_cuis))


def search_scispacy(generator: CandidateGenerator, texts: Sequence[str]) -> list[Any]:
    """All candidates of all texts."""
    return [
        candidates
        for start in range(0, len(texts), TEXTS_PER_CALL)
        for candidates in generator(list(texts[start : start + TEXTS_PER_CALL]), NEIGHBOURS)
    ]


def compare(generator: CandidateGenerator, index: LinkIndex, texts: list[str], rounds: int) -> dict[str, Any]:
    """Searches/s of all in turns, and what their answers have in common."""
    contestants: dict[str, Callable[[], Any]] = {
        SCISPACY: lambda: search_scispacy(generator, texts),
        SCISPACY_FREE: lambda: search_scispacy(generator, texts),
        EXHAUSTIVE: lambda: index.link(texts),
        OURS: lambda: index.link_above(texts, THRESHOLD),
    }
    cores = os.sched_getaffinity(0)
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    answers: dict[str, Any] = {}
    for name, run in contestants.items():  # warm-up: compiled code, lists in memory
        answers[name] = run()
    for number in range(rounds):
        for name, run in contestants.items():
            os.sched_setaffinity(0, cores if name == SCISPACY_FREE else {min(cores)})
            times = OURS_PER_ROUND if name == OURS else 1
            started = time.perf_counter()
            for _ in range(times):
                run()
            rates[name].append(len(texts) * times / (time.perf_counter() - started))
        console.print(f"round {number + 1}: " + ", ".join(f"{name} {rates[name][-1]:,.0f}/s" for name in rates))
    os.sched_setaffinity(0, cores)
    return {
        "rates": rates,
        "texts": len(texts),
        "names": index.manifest["counts"]["names"],
        "same": count_differences(index, answers, texts),
    }


def count_differences(index: LinkIndex, answers: dict[str, Any], texts: list[str]) -> dict[str, int]:
    """Compare the answers above the threshold.

    scispaCy's stored vectors are float16, so its scores are off by up to some 10^-4, and names that are nearer to each
    other than that may change places.
    """
    ours, exhaustive, scispacy = answers[OURS], answers[EXHAUSTIVE], answers[SCISPACY]
    cuis = index.concepts.to_pylist()
    counts = dict.fromkeys(COUNTS, 0)
    for place in range(len(texts)):
        concept, score = int(ours.concept[place]), ours.score[place]
        best = exhaustive[place][0] if exhaustive[place] else None
        expected = (best.cui, np.float32(best.score)) if best and best.score > THRESHOLD else None
        counts["differs from exhaustive"] += expected != ((cuis[concept], score) if concept >= 0 else None)
        theirs = sorted((-round(max(found.similarities), 6), found.concept_id) for found in scispacy[place])
        their_cui = theirs[0][1] if theirs and -theirs[0][0] > THRESHOLD else None
        counts["linked"] += concept >= 0
        their_score = -theirs[0][0] if theirs else 0.0
        counts["any best"] += best is not None
        counts["any best found"] += best is not None and best.score - their_score < FLOAT16_ERROR
        if expected is None and their_cui is None:
            continue
        counts["compared"] += 1
        if not theirs and expected:
            counts["no vector"] += 1
        elif best and best.score - their_score >= FLOAT16_ERROR:
            counts["missed"] += 1
        else:
            counts["true best found"] += 1
            if their_cui == (expected and expected[0]):
                counts["same"] += 1
            else:
                counts["rounding"] += 1
                console.print(f"rounding: {texts[place]!r}: {expected} and {theirs[:2]}")
    return counts


def report(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = ["# The exact linker beside scispaCy's search", ""]
    lines += [f"- {name}: {value}" for name, value in results["machine"].items()]
    lines += [f"- wall time: {results['seconds']:.0f} s", "", WANTED, "", "## Expected", "", PREDICTED, ""]
    small = results["small"]
    scispacy = statistics.median(small["rates"][SCISPACY])
    lines += [f"## Searches/s at {small['names']:,} names", ""]
    lines += [f"{small['texts']:,} texts; median of the rounds (lowest - highest).", ""]
    lines += ["| | searches/s | x scispaCy |", "| --- | --- | --- |"]
    for name, rates in small["rates"].items():
        middle = statistics.median(rates)
        lines.append(f"| {name} | {middle:,.0f} ({min(rates):,.0f} - {max(rates):,.0f}) | {middle / scispacy:.1f} |")
    same = small["same"]
    lines += [
        "",
        f"Above {THRESHOLD}, ours links {same['linked']:,} texts, and differs from the exhaustive search in "
        f"{same['differs from exhaustive']}. Of {same['compared']:,} texts that ours or scispaCy links, scispaCy's "
        f"search found the true best name of {same['true best found']:,}, and there both give the same concept for "
        f"{same['same']:,}; {same['rounding']} differ because its vectors are float16. For {same['missed']} its search "
        f"missed the best name, and {same['no vector']} are names that have no 3-gram in its vocabulary, which ours "
        f"finds by equality. Whatever the score, its search found the true best name of {same['any best found']:,} of "
        f"{same['any best']:,} texts ({same['any best found'] / same['any best']:.1%}).",
        "",
        COMPARED,
        "",
        "## Up to the size of UMLS",
        "",
        "| names | 3-grams in all | build, s | peak, GB | index, MB | load, s | searches/s | x scispaCy at 100,000 "
        "| differ from exhaustive | own, MiB | shared, MiB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for size in results["sizes"]:
        rate = statistics.median(size["rates"])
        lines.append(
            f"| {size['counts']['names']:,} | {size['counts']['vector_entries']:,} | {size['seconds']:.0f} "
            f"| {size['peak_gb']:.2f} | {size['bytes'] / 1e6:,.0f} | {size['load_seconds']:.1f} "
            f"| {rate:,.0f} ({min(size['rates']):,.0f} - {max(size['rates']):,.0f}) | {rate / scispacy:.1f} "
            f"| {size['wrong']} of {CHECKED} | {size['own_mib']:.0f} | {size['shared_mib']:.0f} |"
        )
    first = results["first_use"]
    lines += [
        "",
        STAND_IN,
        "",
        GROWN,
        "",
        f"First use on a machine compiles the search: loading takes {first['compiled']:.1f} s then, and "
        f"{first['from cache']:.1f} s in each later process (its imports not counted).",
        "",
        "![searches and cost of the index by number of names](linker.png)",
        "",
    ]
    return "\n".join(lines)


def plot(results: dict[str, Any], path: Path) -> None:
    """Searches/s, and seconds and memory to build, by number of names."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    sizes = [size["counts"]["names"] for size in results["sizes"]]
    figure, (speed, cost) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    speed.loglog(sizes, [statistics.median(size["rates"]) for size in results["sizes"]], "o-", label=OURS)
    for name, style in ((EXHAUSTIVE, "s"), (SCISPACY, "^")):
        speed.loglog(
            [results["small"]["names"]], [statistics.median(results["small"]["rates"][name])], style, label=name
        )
    scispacy = statistics.median(results["small"]["rates"][SCISPACY])
    speed.loglog(sizes, [scispacy] * len(sizes), ":", color="gray", label="scispaCy, if size cost it nothing")
    speed.set(xlabel="names", ylabel="searches/s on one core")
    speed.legend()
    cost.plot(sizes, [size["seconds"] for size in results["sizes"]], "o-", label="seconds to build")
    cost.plot(sizes, [size["peak_gb"] * 100 for size in results["sizes"]], "s-", label="peak memory, 10 MB")
    cost.set(xlabel="names", ylim=(0, None))
    cost.legend()
    figure.savefig(path, dpi=110, metadata={"Software": None})


def main() -> None:
    """Measure all and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=REPOSITORY.parent / "shared" / "data", help="the real data")
    parser.add_argument("--peer-index", type=Path, help="scispaCy's index of openkb, built there if absent")
    parser.add_argument("--folder", type=Path, help="where to put grown knowledge bases (default: a temporary folder)")
    parser.add_argument("--sizes", type=int, nargs="*", default=[300_000, 1_000_000, 3_000_000])
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    started = time.monotonic()
    packages = ("numba", "numpy", "scipy", "pyarrow", "scispacy", "nmslib-metabrainz", "scikit-learn")
    results: dict[str, Any] = {"machine": describe_machine(packages), "sizes": []}
    texts = load_texts(arguments.data)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        kb = Path(folder) / "kb"
        build_kb(arguments.data / "kb" / "openkb", kb)
        generator = load_scispacy(arguments.peer_index or Path(folder) / "peer", kb)
        index = LinkIndex.load(kb / "linker")
        results["small"] = compare(generator, index, texts, arguments.rounds)
        results["first_use"] = measure_first_use(kb / "linker")
        del generator, index
        texts_file = Path(folder) / "texts.json"
        texts_file.write_text(json.dumps(texts), encoding="utf-8")
        for size in [results["small"]["names"], *arguments.sizes]:
            results["sizes"].append(measure_size(kb / "names.parquet", size, texts_file, arguments.rounds))
            console.print(f"{size:,} names: {statistics.median(results['sizes'][-1]['rates']):,.0f} searches/s")
    results["seconds"] = time.monotonic() - started
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "linker.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    (RESULTS / "linker.md").write_text(report(results), encoding="utf-8")
    plot(results, RESULTS / "linker.png")
    console.print(report(results))


if __name__ == "__main__":
    main()
