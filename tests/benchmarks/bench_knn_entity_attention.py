"""The entity-attention operator beside plain PyTorch, its matrix multiplications alone, and other libraries.

    python -m tests.benchmarks.bench_knn_entity_attention                    # about 20 minutes on 2 quiet cores
    python -m tests.benchmarks.bench_knn_entity_attention --mentions 24 200 --rounds 1
    python -m tests.benchmarks.bench_knn_entity_attention --device cuda --dtype fp16      # on a GPU; also bf16, fp32

One process, peers in turns, all on the same inputs; results are compared with plain PyTorch in the same run. Writes
knn_entity_attention.md, .json and .png to tests/benchmarks/results/ (`--out` names another folder), on a GPU
knn_entity_attention_CARD_DTYPE.*.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import torch

from tests.benchmarks.knn_peers import FORWARD, OURS, Inputs, find_peers, make_inputs, make_table
from tests.benchmarks.knn_report import Case, Measured, write_report
from tests.benchmarks.machine import describe_machine

RESULTS = Path(__file__).parent / "results"
ROUNDS = {24: 5, 200: 5, 400: 5, 800: 3, 3200: 1}
GPU_ROUNDS = 20
INPUT_SETS = 3
"""On a GPU they take turns, so that no round finds its inputs in the cache."""
LARGEST_ERROR = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 3e-2}
"""Against naive in the same dtype, which in fp32 is itself some 1e-4 off where peaked scores cancel."""
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def measure_on_cpu(run: Callable[[Inputs], object], inputs: Inputs, measured: Measured) -> object:
    """One timed run; memory is the peak of the process above what it held before."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # memory that earlier calls freed must not hide what this one takes
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew
    before = _memory_bytes("VmRSS")
    started = time.perf_counter()
    result = run(inputs)
    measured.seconds.append(time.perf_counter() - started)
    measured.memory_mib = max(measured.memory_mib, (_memory_bytes("VmHWM") - before) / 2**20)
    return result


def measure_on_gpu(run: Callable[[Inputs], object], inputs: Inputs, measured: Measured) -> object:
    """One timed run, by events on the device; memory is the peak of torch's allocator above what it held before."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    result = run(inputs)
    end.record()
    torch.cuda.synchronize()
    measured.seconds.append(start.elapsed_time(end) / 1000)
    measured.memory_mib = max(measured.memory_mib, (torch.cuda.max_memory_allocated() - before) / 2**20)
    return result


def _memory_bytes(which: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(which))


def compare(work: str, result: object, exact: object) -> dict[str, float]:
    """Largest difference, as a share of the largest value; exact is what naive returned."""
    if work == FORWARD:
        names = ("att", "lse", "gold_logit", "topk_val")
        pairs = {name: (getattr(result, name), getattr(exact, name)) for name in names}
    else:
        pairs = dict(zip(("grad_h", "grad_table"), zip(result, exact, strict=True), strict=True))
    return {name: _difference(one.float(), other.float()) for name, (one, other) in pairs.items()}


def _difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return ((one - other).abs().max() / other.abs().max()).item()


def run_case(peers: dict, inputs: list[Inputs], rounds: int) -> Case:
    """All peers in turns, `rounds` times; the first round is compared with naive.

    Raises:
        AssertionError: a result of this project differs from naive's by more than its dtype allows.
    """
    measure = measure_on_gpu if inputs[0].h.is_cuda else measure_on_cpu
    found = {work: {peer: Measured() for peer in runs} for work, runs in peers.items()}
    for number in range(rounds):
        for work, runs in peers.items():
            exact = None
            for peer, run in runs.items():
                result = measure(run, inputs[number % len(inputs)], found[work][peer])
                if number == 0 and peer == "naive":
                    exact = result
                if number == 0 and peer in OURS:
                    errors = found[work][peer].errors = compare(work, result, exact)
                    assert max(errors.values()) < LARGEST_ERROR[inputs[0].h.dtype], (work, peer, errors)
                del result
    return found


def run_all(arguments: argparse.Namespace) -> dict[str, Case]:
    """Each number of mentions, and other kinds of scores at M = 400."""
    started, on_gpu = time.perf_counter(), arguments.device == "cuda"
    table = make_table(arguments.device, DTYPES[arguments.dtype])
    peers = find_peers(table)
    wanted = [(mentions, "usual") for mentions in arguments.mentions]
    wanted += [(400, kind) for kind in arguments.kinds if 400 in arguments.mentions]
    cases = {}
    run_case(peers, [make_inputs(table, 24, "usual")], 1)  # builds kernels, starts threads
    for mentions, kind in wanted:
        rounds = arguments.rounds or (GPU_ROUNDS if on_gpu else ROUNDS.get(mentions, 3))
        inputs = [make_inputs(table, mentions, kind, seed) for seed in range(INPUT_SETS if on_gpu else 1)]
        if on_gpu:
            run_case(peers, inputs, 1)  # compiles for this number of mentions, fills the allocator
        cases[f"{mentions}, {kind}"] = run_case(peers, inputs, rounds)
        print(f"{mentions} mentions, {kind} scores: done after {time.perf_counter() - started:.0f} s", file=sys.stderr)
    return cases


def describe(arguments: argparse.Namespace) -> dict[str, str]:
    """The machine as far as it matters here."""
    packages = ["torch"]
    for name in ("faiss-cpu", "triton", "liger-kernel", "cut-cross-entropy"):
        try:
            version(name)
            packages.append(name)
        except PackageNotFoundError:
            continue
    machine = describe_machine(packages)
    machine["device"] = (
        f"{torch.cuda.get_device_name()}, {arguments.dtype}"
        if arguments.device == "cuda"
        else f"{arguments.threads} threads, {torch.backends.cpu.get_cpu_capability()}, {arguments.dtype}, "
        f"{psutil.virtual_memory().total / 1e9:.0f} GB"
    )
    machine["rounds"] = str(arguments.rounds or (GPU_ROUNDS if arguments.device == "cuda" else ROUNDS))
    return machine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mentions", type=int, nargs="+", default=list(ROUNDS), help="numbers of mentions")
    parser.add_argument(
        "--kinds", nargs="*", default=["flat", "peaked"], choices=["flat", "peaked"], help="other scores, for M = 400"
    )
    parser.add_argument("--rounds", type=int, help="rounds of each (default: 5, fewer for many mentions)")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=list(DTYPES), default="fp32")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    machine, started = describe(arguments), time.perf_counter()
    cases = run_all(arguments)
    machine["load average at the end"] = f"{os.getloadavg()[0]:.1f}"
    machine["wall time"] = f"{time.perf_counter() - started:.0f} s"
    name = "knn_entity_attention"
    if arguments.device == "cuda":
        name += f"_{torch.cuda.get_device_name().replace(' ', '_')}_{arguments.dtype}"
    arguments.out.mkdir(parents=True, exist_ok=True)
    plain = {case: {work: {p: asdict(m) for p, m in of.items()} for work, of in f.items()} for case, f in cases.items()}
    text = json.dumps({"machine": machine, "cases": plain}, indent=1) + "\n"
    (arguments.out / f"{name}.json").write_text(text, encoding="utf-8")
    print(write_report(cases, machine, arguments.out / name))


if __name__ == "__main__":
    main()
