"""TransE beside PyKEEN: speed at the paper's number of entities, and quality on real triples.

    python -m tests.benchmarks.bench_transe                    # all, about 5 minutes on 2 cores
    python -m tests.benchmarks.bench_transe --rounds 1 --seeds 1

Both run in this process, in turns, with the same triples, dim, batch size, Adam, learning rate, margin, number of
negatives, norm and unit-length entities. Results go to tests/benchmarks/results/transe.md and transe.json.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import math
import os
import platform
import shlex
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from datetime import date
from importlib.metadata import version
from pathlib import Path
from unittest import mock

import numpy as np
import psutil
import torch
from pykeen.evaluation import RankBasedEvaluator
from pykeen.losses import MarginRankingLoss
from pykeen.models import TransE as PyKeenTransE
from pykeen.training import SLCWATrainingLoop
from pykeen.training.callbacks import TrainingCallback
from pykeen.triples import CoreTriplesFactory

from kebiolm.data.knowledge_base import KnowledgeBase
from kebiolm.transe import train as train_module
from kebiolm.transe.evaluate import evaluate
from kebiolm.transe.model import TransE
from kebiolm.transe.train import TransESettings, train
from kebiolm.transe.triples import index_triples, split_heldout
from preprocessing.sample.build import SampleSettings, build_sample
from preprocessing.umls.build_kb import build_kb

REPOSITORY = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).parent / "results"
SETTINGS = TransESettings()  # the paper's
NUM_ENTITIES, NUM_RELATIONS = 477_039, 900  # entities of the paper's table; about the relations of UMLS
NUM_TRIPLES = 1_000_000
PYKEEN_STEPS, PYKEEN_WARM_UP_STEPS = 20, 4
HELDOUT = 0.05

PREDICTED = (
    "Written down before the first run: PyKEEN 5,000 triples/s (a dense step reads and writes 4 tables of 191 MB, "
    "some 0.4 s), ours 250,000 triples/s (8 ms a step), so about 50 times; MRR equal if untouched rows keep moving as "
    "in dense Adam, lower with SparseAdam, since 30 epochs of a small graph are few steps for a row."
)
SAME = (
    "Both: L2 distance, margin ranking loss (mean), one negative per triple (subject or object replaced), filtered, "
    "entities scaled to length 1 after each update, Adam, uniform start vectors."
)
DIFFERENT = (
    "PyKEEN moves all rows at every step, ours makes skipped steps up when a row is next read (same result but for "
    "one scaling to length 1 in place of several). PyKEEN replaces the subject in the first half of each batch and the "
    "object in the second, ours by a coin; PyKEEN drops the pairs of true negatives, ours draws them again. Its "
    "filter in the speed part is its default (Bloom, approximate), in the quality part its exact one. "
    "PyKEEN's time is the median step after warm-up, ours the whole training with its warm-up. `SparseAdam` is our "
    "training with torch.optim.SparseAdam in place of RowAdam."
)


class SparseAdamTable:
    """torch.optim.SparseAdam behind the interface of RowAdam."""

    def __init__(
        self, table: torch.Tensor, *, learning_rate: float, total_steps: int, project: Callable[..., torch.Tensor]
    ) -> None:
        self._table = table.clone().requires_grad_()
        self._adam = torch.optim.SparseAdam([self._table], lr=learning_rate)
        self._project, self._rows = project, torch.empty(0, dtype=torch.int64)

    def read(self, rows: torch.Tensor) -> torch.Tensor:
        self._rows = rows
        return self._table.detach()[rows]

    def step(self, gradients: torch.Tensor) -> None:
        self._table.grad = torch.sparse_coo_tensor(
            self._rows[None], gradients, self._table.shape, is_coalesced=True, check_invariants=False
        )
        self._adam.step()
        with torch.no_grad():
            self._table[self._rows] = self._project(self._table[self._rows])

    def table(self) -> torch.Tensor:
        return self._table.detach()


@contextmanager
def sparse_adam():
    """Let `train` use SparseAdam for the entities."""
    with mock.patch.object(train_module, "RowAdam", SparseAdamTable):
        yield


class StepTimes(TrainingCallback):
    """Times at which PyKEEN has finished its steps."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def post_batch(self, epoch: int, batch: object, **kwargs: object) -> None:
        self.times.append(time.perf_counter())


def pykeen_train(
    triples: np.ndarray, *, num_entities: int, num_relations: int, epochs: int, seed: int, filterer: str
) -> tuple[PyKeenTransE, float]:
    """Train PyKEEN's TransE; returns the model and the median seconds of a step after warm-up."""
    factory = CoreTriplesFactory(torch.as_tensor(triples), num_entities, num_relations)
    model = PyKeenTransE(
        triples_factory=factory,
        embedding_dim=SETTINGS.dim,
        scoring_fct_norm=2,
        loss=MarginRankingLoss(margin=SETTINGS.margin),
        random_seed=seed,
    )
    loop = SLCWATrainingLoop(
        model=model,
        triples_factory=factory,
        optimizer=torch.optim.Adam(model.parameters(), lr=SETTINGS.learning_rate),
        negative_sampler="basic",
        negative_sampler_kwargs={
            "filtered": True,
            "filterer": filterer,
            "num_negs_per_pos": SETTINGS.negatives,
        },
    )
    clock = StepTimes()
    loop.train(
        factory,
        num_epochs=epochs,
        batch_size=SETTINGS.batch_size,
        use_tqdm=False,
        callbacks=clock,
        pin_memory=False,
    )
    steps = np.diff(clock.times)[PYKEEN_WARM_UP_STEPS - 1 :]
    return model, float(np.median(steps))


@contextmanager
def peak_memory(into: list[float]):
    """Append the growth of the process's resident memory, in GB, at its highest (sampled every 5 ms)."""
    gc.collect()
    process, done, peak = psutil.Process(), threading.Event(), [0]
    before = process.memory_info().rss

    def watch() -> None:
        while not done.wait(0.005):
            peak[0] = max(peak[0], process.memory_info().rss)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        into.append((peak[0] - before) / 1e9)


def synthetic_triples(seed: int = 0) -> np.ndarray:
    """1,000,000 triples over 477,039 entities; few entities and relations are in most of them (Zipf-like)."""
    rng = np.random.default_rng(seed)

    def draw(count: int, exponent: float) -> np.ndarray:
        weights = (np.arange(count) + 10.0) ** -exponent
        return rng.permutation(count)[np.searchsorted(weights.cumsum() / weights.sum(), rng.random(NUM_TRIPLES))]

    entities = [draw(NUM_ENTITIES, 0.75), draw(NUM_ENTITIES, 0.75)]
    return np.stack([entities[0], draw(NUM_RELATIONS, 1.0), entities[1]], axis=1)


def measure_speed(rounds: int) -> dict[str, dict[str, list[float]]]:
    """Triples per second and memory of each, in turns."""
    triples = synthetic_triples()
    sizes = {"num_entities": NUM_ENTITIES, "num_relations": NUM_RELATIONS}
    one_epoch = TransESettings(epochs=1)
    names = ("PyKEEN", "SparseAdam", "ours")
    speed: dict[str, dict[str, list[float]]] = {name: {"triples_per_s": [], "memory_gb": []} for name in names}
    for turn in range(rounds):
        part = np.random.default_rng(turn).permutation(triples)[: PYKEEN_STEPS * SETTINGS.batch_size]
        with peak_memory(speed["PyKEEN"]["memory_gb"]):
            _, step = pykeen_train(part, **sizes, epochs=1, seed=turn, filterer="bloom")
        speed["PyKEEN"]["triples_per_s"].append(SETTINGS.batch_size / step)
        with peak_memory(speed["SparseAdam"]["memory_gb"]), sparse_adam():
            result = train(triples, **sizes, settings=one_epoch)
        speed["SparseAdam"]["triples_per_s"].append(result.triples_per_second)
        del result
        with peak_memory(speed["ours"]["memory_gb"]):
            result = train(triples, **sizes, settings=one_epoch)
        speed["ours"]["triples_per_s"].append(result.triples_per_second)
        del result
        print(
            f"round {turn + 1}: " + ", ".join(f"{k} {v['triples_per_s'][-1]:,.0f}" for k, v in speed.items()),
            flush=True,
        )
    return speed


def measure_quality(seeds: int, kb: Path) -> dict[str, object]:
    """MRR and Hits@10 of each on the same held-out triples, over seeds."""
    indexed = index_triples(KnowledgeBase.load(kb).triples())
    sizes = {"num_entities": len(indexed.entities), "num_relations": len(indexed.relations)}
    used, heldout = split_heldout(indexed.triples, **sizes, fraction=HELDOUT, seed=0)
    names = ("PyKEEN", "SparseAdam", "ours")
    scores: dict[str, dict[str, list[float]]] = {name: {"mrr": [], "hits_at_10": []} for name in names}
    for seed in range(seeds):
        peer, _ = pykeen_train(used, **sizes, epochs=SETTINGS.epochs, seed=seed, filterer="python-set")
        models = {"PyKEEN": _vectors(peer)}
        settings = TransESettings(seed=seed)
        with sparse_adam():
            models["SparseAdam"] = train(used, **sizes, settings=settings).model
        models["ours"] = train(used, **sizes, settings=settings).model
        for name, model in models.items():
            found = evaluate(model, heldout, indexed.triples)
            scores[name]["mrr"].append(found.mrr)
            scores[name]["hits_at_10"].append(found.hits_at_10)
        _check_against_pykeen_ranks(peer, used, heldout, scores["PyKEEN"]["mrr"][-1])
        print(f"seed {seed}: MRR " + ", ".join(f"{k} {v['mrr'][-1]:.4f}" for k, v in scores.items()), flush=True)
    return {"triples_used": len(used), "triples_heldout": len(heldout), **sizes, "scores": scores}


def _vectors(model: PyKeenTransE) -> TransE:
    with torch.no_grad():
        return TransE(entities=model.entity_representations[0](None), relations=model.relation_representations[0](None))


def _check_against_pykeen_ranks(model: PyKeenTransE, used: np.ndarray, heldout: np.ndarray, mrr: float) -> None:
    """PyKEEN's evaluator must give our evaluator's MRR for the same vectors."""
    found = RankBasedEvaluator().evaluate(
        model, torch.as_tensor(heldout), additional_filter_triples=[torch.as_tensor(used)], use_tqdm=False
    )
    theirs = found.get_metric("both.realistic.inverse_harmonic_mean_rank")
    assert abs(theirs - mrr) < 1e-4, f"PyKEEN's evaluator says {theirs}, ours {mrr}"


def quality_gap(scores: dict[str, dict[str, list[float]]], name: str) -> tuple[float, float]:
    """Mean MRR of `name` less PyKEEN's, and the standard error of this difference over seeds."""
    ours, theirs = scores[name]["mrr"], scores["PyKEEN"]["mrr"]
    gap = statistics.fmean(ours) - statistics.fmean(theirs)
    if len(ours) < 2:
        return gap, math.nan
    return gap, math.sqrt((statistics.variance(ours) + statistics.variance(theirs)) / len(ours))


def report(speed: dict, quality: dict, machine: dict[str, object]) -> str:
    """The result as Markdown."""
    medians = {name: statistics.median(values["triples_per_s"]) for name, values in speed.items()}
    scores = quality["scores"]
    lines = ["# TransE beside PyKEEN", "", *(f"- {key}: {value}" for key, value in machine.items()), ""]
    lines += ["## Predicted", "", PREDICTED, "", f"## Speed at {NUM_ENTITIES:,} entities", ""]
    lines += [f"{NUM_TRIPLES:,} synthetic triples, {NUM_RELATIONS} relations, dim {SETTINGS.dim}, batch", ""]
    lines[-2] += f" {SETTINGS.batch_size}; median of {len(speed['ours']['triples_per_s'])} rounds (lowest - highest)."
    lines += ["| | triples/s | x PyKEEN | peak memory, GB |", "| --- | --- | --- | --- |"]
    for name, values in speed.items():
        rates = values["triples_per_s"]
        lines.append(
            f"| {name} | {medians[name]:,.0f} ({min(rates):,.0f} - {max(rates):,.0f}) "
            f"| {medians[name] / medians['PyKEEN']:.1f} | {statistics.median(values['memory_gb']):.2f} |"
        )
    lines += ["", "## Quality", ""]
    lines += [
        f"Knowledge base {quality['knowledge_base']}: {quality['triples_used']:,} triples, "
        f"{quality['triples_heldout']:,} held out (both directions of a pair together), "
        f"{quality['num_entities']:,} entities, {quality['num_relations']} relations, {SETTINGS.epochs} epochs, "
        f"{len(scores['ours']['mrr'])} seeds; filtered ranks, realistic ties.",
        "",
        "| | MRR of each seed | mean MRR | difference to PyKEEN (standard error) | mean Hits@10 |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, values in scores.items():
        gap, error = quality_gap(scores, name)
        lines.append(
            f"| {name} | {', '.join(f'{value:.4f}' for value in values['mrr'])} "
            f"| {statistics.fmean(values['mrr']):.4f} | {'' if name == 'PyKEEN' else f'{gap:+.4f} ({error:.4f})'} "
            f"| {statistics.fmean(values['hits_at_10']):.4f} |"
        )
    lines += ["", "## What is the same and what is not", "", SAME, "", DIFFERENT, ""]
    return "\n".join(lines)


def describe_machine(command: str) -> dict[str, object]:
    """What the figures depend on."""
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        fields = [line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line]
        cpu = next((value.strip() for key, value in fields if key.strip() == "model name"), cpu)
    return {
        "date": date.today().isoformat(),
        "command": f"`{command}`",
        "CPU": f"{cpu}, {os.cpu_count()} cores, {torch.get_num_threads()} torch threads",
        "load average at the start": f"{os.getloadavg()[0]:.1f}",
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}, PyKEEN {version('pykeen')}",
    }


def main() -> None:
    """Run both parts and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="rounds of the speed part")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of the quality part")
    parser.add_argument(
        "--umls", type=Path, help="RRF folder; default: kb/openkb of KEBIOLM_TEST_DATA, else the sample"
    )
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    started = time.monotonic()
    machine = describe_machine(shlex.join(["python", "-m", "tests.benchmarks.bench_transe", *sys.argv[1:]]))
    data = Path(os.environ.get("KEBIOLM_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    umls = arguments.umls or data / "kb" / "openkb"
    with tempfile.TemporaryDirectory() as folder:
        if not umls.is_dir():
            print(f"{umls} is absent: the quality part uses the generated sample")
            umls = Path(folder) / "sample" / "umls"
            build_sample(umls.parent, SampleSettings(), overwrite=False)
        build_kb(umls, Path(folder) / "kb", overwrite=False)
        quality = measure_quality(arguments.seeds, Path(folder) / "kb") | {"knowledge_base": umls.name}
    speed = measure_speed(arguments.rounds)
    machine["wall time"] = f"{time.monotonic() - started:.0f} s"
    text = report(speed, quality, machine)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "transe.md").write_text(text, encoding="utf-8")
    whole = {"machine": machine, "speed": speed, "quality": quality, "predicted": PREDICTED}
    (RESULTS / "transe.json").write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
