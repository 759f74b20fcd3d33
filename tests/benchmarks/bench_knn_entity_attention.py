"""The entity-attention operator beside plain PyTorch, its matrix multiplications alone, and other libraries.

    python -m tests.benchmarks.bench_knn_entity_attention                    # about 20 minutes on 2 quiet cores
    python -m tests.benchmarks.bench_knn_entity_attention --mentions 24 200 --rounds 1
    python -m tests.benchmarks.bench_knn_entity_attention --device cuda --dtype fp16      # on a GPU; also bf16, fp32

One process, peers in turns, all on the same inputs, in another order in each round; results are compared with plain
PyTorch in fp32 in the same run. On a GPU this operator gets rows of a multiple of 16 bytes, as training stores them.
Writes knn_entity_attention.md, .json and .png to tests/benchmarks/results/ (`--out` names another folder) after each
number of mentions, on a GPU knn_entity_attention_CARD_DTYPE.*.
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

from tests.benchmarks.knn_peers import (
    FORWARD,
    OURS,
    SIZE,
    Inputs,
    exact,
    find_peers,
    make_inputs,
    make_table,
    with_wide_rows,
)
from tests.benchmarks.knn_report import Case, Measured, write_report
from tests.benchmarks.machine import describe_machine

RESULTS = Path(__file__).parent / "results"
ROUNDS = {24: 5, 200: 5, 400: 5, 800: 3, 3200: 3}
GPU_ROUNDS = 20
INPUT_SETS = 3
"""On a GPU they take turns, so that no round finds its inputs in the cache."""
LARGEST_ERROR = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 3e-2}
"""Beyond it a result is called wrong. Naive in fp32 is itself some 1e-4 off where peaked scores cancel."""
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


def errors_of(work: str, result: object, expected: dict[str, torch.Tensor]) -> dict[str, float]:
    """Largest difference of each result or gradient, as a share of the largest value."""
    found = result._asdict() if work == FORWARD else dict(zip(expected, result, strict=True))
    return {name: _difference(found[name].float(), other) for name, other in expected.items()}


def _difference(one: torch.Tensor, other: torch.Tensor) -> float:
    if one.ndim == 2 and other.shape[1] == SIZE:
        one = one[:, :SIZE]
    return ((one - other).abs().max() / other.abs().max()).item()


def run_case(peers: dict, inputs: list[Inputs], rounds: int) -> Case:
    """All peers in turns, `rounds` times; this project's results of the first round are compared with naive in fp32."""
    on_gpu = inputs[0].h.is_cuda
    measure = measure_on_gpu if on_gpu else measure_on_cpu
    wide = [with_wide_rows(one) if on_gpu else one for one in inputs]
    found = {work: {peer: Measured() for peer in runs} for work, runs in peers.items()}
    for number in range(rounds):
        for work, runs in peers.items():
            expected = exact(work, inputs[0]) if number == 0 else {}
            order = list(runs)[number % len(runs) :] + list(runs)[: number % len(runs)]
            for peer in order:
                given = wide if peer in OURS else inputs
                result = measure(runs[peer], given[number % len(given)], found[work][peer])
                if number == 0 and peer in OURS:
                    found[work][peer].errors = errors_of(work, result, expected)
                del result
    return found


def run_all(arguments: argparse.Namespace, machine: dict[str, str]) -> None:
    """Each number of mentions, and other kinds of scores at M = 400; ends with an error if a result was wrong."""
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
        seconds = time.perf_counter() - started
        print(f"{mentions} mentions, {kind} scores: done after {seconds:.0f} s", file=sys.stderr)
        machine |= {"load average at the end": f"{os.getloadavg()[0]:.1f}", "wall time": f"{seconds:.0f} s"}
        text = write(cases, machine, arguments)
    print(text)
    wrong = [
        f"{case}, {work}, {peer}: {measured.errors}"
        for case, found in cases.items()
        for work, peers in found.items()
        for peer, measured in peers.items()
        if not all(error < LARGEST_ERROR[DTYPES[arguments.dtype]] for error in measured.errors.values())
    ]
    if wrong:
        sys.exit("wrong results:\n" + "\n".join(wrong))


def write(cases: dict[str, Case], machine: dict[str, str], arguments: argparse.Namespace) -> str:
    """The three files, with what has been measured so far; returns the text of the first."""
    name = "knn_entity_attention"
    if arguments.device == "cuda":
        name += f"_{torch.cuda.get_device_name().replace(' ', '_')}_{arguments.dtype}"
    arguments.out.mkdir(parents=True, exist_ok=True)
    plain = {case: {work: {p: asdict(m) for p, m in of.items()} for work, of in f.items()} for case, f in cases.items()}
    text = json.dumps({"machine": machine, "cases": plain}, indent=1) + "\n"
    (arguments.out / f"{name}.json").write_text(text, encoding="utf-8")
    return write_report(cases, machine, arguments.out / name)


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
    run_all(arguments, describe(arguments))


if __name__ == "__main__":
    main()
