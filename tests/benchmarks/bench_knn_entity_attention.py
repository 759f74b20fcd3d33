"""The entity-attention operator beside plain PyTorch, its matrix multiplications alone, and faiss.

    python -m tests.benchmarks.bench_knn_entity_attention                    # all, about 6 minutes on 2 quiet cores
    python -m tests.benchmarks.bench_knn_entity_attention --mentions 24 200 --rounds 1

One process, peers in turns, all on the same inputs; results are compared with plain PyTorch in the same run. Writes
knn_entity_attention.md, .json and .png to tests/benchmarks/results/ (`--out` names another folder).
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib.util
import json
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path

import psutil
import torch
from torch import Tensor

from kebiolm.kernels import KnnEntityAttentionOutput, knn_entity_attention

RESULTS = Path(__file__).parent / "results"
NAME = "knn_entity_attention"
ENTITIES, SIZE, K = 477_039, 100, 100
ROUNDS = {24: 5, 200: 5, 400: 5, 800: 3, 3200: 1}
NAIVE_AT_ONCE = 800
"""Mentions; 3,200 at once would hold more than 20 GB, so they are done in pieces."""
LARGEST_ERROR = 1e-3
"""Against naive in fp32, which is itself some 1e-4 off where peaked scores cancel."""

PREDICTED = (
    "Written down before the first run of this script, after trials of the compiled kernel alone at M = 400 (0.4 x the "
    "matrix multiplication): cpu forward 0.4 x the bare multiplication, 6 x faster than naive, 10 x faster than faiss; "
    "forward + backward 0.6 x the three multiplications, 4 x faster than naive; tiled 2 x and 1.6 x faster than naive."
)
PEERS = {
    "naive": "plain PyTorch, autograd: all scores, logsumexp, topk, softmax, weighted sum (M > 800: in pieces of 800)",
    "matmul": "only h @ table.T; backward: also its two gradients. Does a part of the work, and allocates M x E",
    "faiss": "faiss IndexFlatIP.search, only the nearest: no log-sum-exp, no weighted sum, no gradients",
    "tiled": "this operator, PyTorch tiles",
    "cpu": "this operator, compiled",
}


@dataclass
class Measured:
    """One peer on one input."""

    seconds: list[float] = field(default_factory=list)
    memory_mib: float = 0.0
    errors: dict[str, float] = field(default_factory=dict)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


@dataclass(frozen=True)
class Inputs:
    """h [M, d], table [E, d], gold [M], and the gradient of att."""

    h: Tensor
    table: Tensor
    gold: Tensor
    grad_att: Tensor


def make_inputs(table: Tensor, mentions: int, kind: str) -> Inputs:
    """`usual`: scores with a standard deviation of 3; `flat`: 0.01; `peaked`: the gold entity has almost all of P."""
    generator = torch.Generator().manual_seed(mentions)
    gold = torch.randint(0, len(table), (mentions,), generator=generator)
    noise = torch.randn(mentions, SIZE, generator=generator)
    h = {"usual": noise * 3, "flat": noise * 0.01, "peaked": table[gold] * 25 + noise}[kind]
    return Inputs(h, table, gold, torch.randn(mentions, SIZE, generator=generator))


def naive(h: Tensor, table: Tensor, gold: Tensor) -> KnnEntityAttentionOutput:
    logits = h @ table.T
    topk_val, topk_idx = logits.topk(K, dim=1)
    att = (topk_val.softmax(dim=1).unsqueeze(1) @ torch.nn.functional.embedding(topk_idx, table)).squeeze(1)
    gold_logit = logits.gather(1, gold.unsqueeze(1)).squeeze(1)
    return KnnEntityAttentionOutput(att, logits.logsumexp(dim=1), gold_logit, topk_val, topk_idx)


def naive_forward(inputs: Inputs) -> KnnEntityAttentionOutput:
    pieces = zip(inputs.h.split(NAIVE_AT_ONCE), inputs.gold.split(NAIVE_AT_ONCE), strict=True)
    parts = zip(*(naive(h, inputs.table, gold) for h, gold in pieces), strict=True)
    return KnnEntityAttentionOutput(*(torch.cat(part) for part in parts))


def both(operator: Callable, at_once: int, inputs: Inputs) -> tuple[Tensor, Tensor]:
    h, table = inputs.h.detach().requires_grad_(), inputs.table.detach().requires_grad_()
    pieces = (h.split(at_once), inputs.gold.split(at_once), inputs.grad_att.split(at_once))
    for h_part, gold, grad_att in zip(*pieces, strict=True):
        out = operator(h_part, table, gold)
        loss = (out.lse - out.gold_logit).sum() + (out.att * grad_att).sum()
        (loss / len(h)).backward()
    return h.grad, table.grad


def matmul_both(inputs: Inputs) -> None:
    logits = inputs.h @ inputs.table.T
    logits @ inputs.table
    logits.T @ inputs.h


def peers(table: Tensor) -> dict[str, dict[str, Callable[[Inputs], object]]]:
    """What to run: part of the work -> peer -> function; results are kept only where they are compared."""
    forward = {
        "naive": naive_forward,
        "matmul": lambda inputs: inputs.h @ inputs.table.T,
    }
    backward = {"naive": partial(both, naive, NAIVE_AT_ONCE), "matmul": matmul_both}
    if importlib.util.find_spec("faiss"):
        import faiss

        faiss.omp_set_num_threads(torch.get_num_threads())
        index = faiss.IndexFlatIP(SIZE)
        index.add(table.numpy())
        forward["faiss"] = lambda inputs: index.search(inputs.h.numpy(), K)
    for backend in ("tiled", "cpu"):
        operator = partial(knn_entity_attention, k=K, backend=backend)
        forward[backend] = lambda inputs, operator=operator: operator(inputs.h, inputs.table, inputs.gold)
        backward[backend] = partial(both, operator, 1 << 30)
    return {"forward": forward, "forward + backward": backward}


def memory_bytes(which: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(which))


def measure(run: Callable[[Inputs], object], inputs: Inputs, measured: Measured) -> object:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # memory that earlier calls freed must not hide what this one takes
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew
    before = memory_bytes("VmRSS")
    started = time.perf_counter()
    result = run(inputs)
    measured.seconds.append(time.perf_counter() - started)
    measured.memory_mib = max(measured.memory_mib, (memory_bytes("VmHWM") - before) / 2**20)
    return result


def compare(work: str, result: object, exact: object) -> dict[str, float]:
    """Largest difference, as a share of the largest value; exact is what naive returned."""
    if work == "forward":
        names = ("att", "lse", "gold_logit", "topk_val")
        pairs = {name: (getattr(result, name), getattr(exact, name)) for name in names}
    else:
        pairs = dict(zip(("grad_h", "grad_table"), zip(result, exact, strict=True), strict=True))
    return {name: ((one - other).abs().max() / other.abs().max()).item() for name, (one, other) in pairs.items()}


def run_case(all_peers: dict, inputs: Inputs, rounds: int) -> dict[str, dict[str, Measured]]:
    found = {work: {peer: Measured() for peer in runs} for work, runs in all_peers.items()}
    for number in range(rounds):
        for work, runs in all_peers.items():
            exact = None
            for peer, run in runs.items():
                result = measure(run, inputs, found[work][peer])
                if number == 0 and peer == "naive":
                    exact = result
                if number == 0 and peer in ("tiled", "cpu"):
                    found[work][peer].errors = compare(work, result, exact)
                    assert max(found[work][peer].errors.values()) < LARGEST_ERROR, (
                        work,
                        peer,
                        found[work][peer].errors,
                    )
                del result
    return found


def table_of(cases: dict[str, dict[str, dict[str, Measured]]], work: str) -> list[str]:
    lines = [
        "| M, scores | peer | seconds (lowest - highest) | x naive's speed | x matmul's time | extra memory, MiB "
        "| share of naive's | largest error |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for case, found in cases.items():
        base = found[work]
        for peer, got in base.items():
            error = f"{max(got.errors.values()):.0e}" if got.errors else ""
            spread = f"{got.median:.3f} ({min(got.seconds):.3f} - {max(got.seconds):.3f})"
            ratios = f"{base['naive'].median / got.median:.2f} | {got.median / base['matmul'].median:.2f}"
            share = f"{got.memory_mib / base['naive'].memory_mib:.2%}"
            lines.append(f"| {case} | {peer} | {spread} | {ratios} | {got.memory_mib:,.1f} | {share} | {error} |")
    return lines


def report(cases: dict[str, dict[str, dict[str, Measured]]], machine: dict[str, object]) -> str:
    gradient_mib = ENTITIES * SIZE * 4 / 2**20
    lines = ["# The entity-attention operator", ""]
    lines += [f"- {name}: {value}" for name, value in machine.items()]
    lines += ["", "## Predicted", "", PREDICTED, "", "## Peers", ""]
    lines += [f"- {peer}: {said}." for peer, said in PEERS.items()]
    if "faiss" not in next(iter(cases.values()))["forward"]:
        lines += ["- faiss is not installed here and was left out."]
    for work in ("forward", "forward + backward"):
        title = f"## {work.capitalize()}: E = {ENTITIES:,}, d = {SIZE}, k = {K}, fp32"
        lines += ["", title, "", *table_of(cases, work)]
    lines += [
        "",
        "Median of the rounds. Errors are against naive in fp32, as a share of the largest value. Memory is the peak "
        "of the process above what it held before; forward + backward includes the table's gradient, "
        f"{gradient_mib:.0f} MiB, except for matmul, which frees each product.",
    ]
    return "\n".join(lines) + "\n"


def plot(cases: dict[str, dict[str, dict[str, Measured]]], to: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    colours = {peer: f"C{number}" for number, peer in enumerate(PEERS)}
    usual = {int(case.split(",")[0]): found for case, found in cases.items() if case.endswith("usual")}
    figure, axes = plt.subplots(2, 2, figsize=(10, 7), sharex=True, layout="constrained")
    for column, work in enumerate(("forward", "forward + backward")):
        for peer in next(iter(usual.values()))[work]:
            seconds = [found[work][peer].median for found in usual.values()]
            memory = [max(found[work][peer].memory_mib, 0.1) for found in usual.values()]
            axes[0][column].loglog(list(usual), seconds, marker="o", label=peer, color=colours[peer])
            axes[1][column].loglog(list(usual), memory, marker="o", label=peer, color=colours[peer])
        axes[0][column].set(title=work, ylabel="seconds")
        axes[1][column].set(xlabel="mentions", ylabel="extra memory, MiB", xticks=list(usual))
        axes[1][column].set_xticklabels([str(mentions) for mentions in usual])
        axes[1][column].minorticks_off()
    axes[0][0].legend()
    figure.savefig(to, dpi=110, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mentions", type=int, nargs="+", default=list(ROUNDS), help="numbers of mentions")
    parser.add_argument(
        "--kinds", nargs="*", default=["flat", "peaked"], choices=["flat", "peaked"], help="other scores, for M = 400"
    )
    parser.add_argument("--rounds", type=int, help="rounds of each (default: 5, fewer for many mentions)")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    started, load = time.perf_counter(), os.getloadavg()[0]
    table = torch.randn(ENTITIES, SIZE, generator=torch.Generator().manual_seed(0)) / SIZE**0.5
    all_peers = peers(table)
    wanted = [(mentions, "usual") for mentions in arguments.mentions]
    wanted += [(400, kind) for kind in arguments.kinds if 400 in arguments.mentions]
    cases = {}
    run_case(all_peers, make_inputs(table, 24, "usual"), 1)  # warm-up: builds the kernel, starts the threads
    for mentions, kind in wanted:
        rounds = arguments.rounds or ROUNDS.get(mentions, 3)
        cases[f"{mentions}, {kind}"] = run_case(all_peers, make_inputs(table, mentions, kind), rounds)
        print(f"{mentions} mentions, {kind} scores: done after {time.perf_counter() - started:.0f} s", file=sys.stderr)
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    faiss_version = f", faiss {version('faiss-cpu')}" if "faiss" in all_peers["forward"] else ""
    machine = {
        "date": date.today().isoformat(),
        "command": shlex.join(["python", "-m", "tests.benchmarks.bench_knn_entity_attention", *sys.argv[1:]]),
        "CPU": f"{models[0].split(': ')[1] if models else platform.processor()}, {os.cpu_count()} cores, "
        f"{arguments.threads} threads, {torch.backends.cpu.get_cpu_capability()}",
        "memory": f"{psutil.virtual_memory().total / 1e9:.0f} GB",
        "load average at the start and at the end": f"{load:.1f}, {os.getloadavg()[0]:.1f}",
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}{faiss_version}",
        "rounds": arguments.rounds or ", ".join(f"{ROUNDS.get(m, 3)} at M = {m}" for m in arguments.mentions),
        "wall time": f"{time.perf_counter() - started:.0f} s",
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / f"{NAME}.md").write_text(report(cases, machine), encoding="utf-8")
    plain = {case: {work: {p: asdict(m) for p, m in of.items()} for work, of in f.items()} for case, f in cases.items()}
    text = json.dumps({"machine": machine, "predicted": PREDICTED, "cases": plain}, indent=1)
    (arguments.out / f"{NAME}.json").write_text(text + "\n", encoding="utf-8")
    plot(cases, arguments.out / f"{NAME}.png")
    print(report(cases, machine))


if __name__ == "__main__":
    main()
