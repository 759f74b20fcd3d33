"""What one training step costs: the trainer as built, BERT on padded documents, and the way of the released code.

    python -m tests.benchmarks.bench_pretrain          # about 10 minutes on 2 quiet cores, 16 GB
    python -m tests.benchmarks.bench_pretrain --layers 3 --hidden 256 --entities 10000 --rounds 2      # 1 minute
    python -m tests.benchmarks.bench_pretrain --device cuda --dtype bf16 --entities 477039 --rows 64

The text is 1,093 real abstracts (KEBIOLM_TEST_DATA), annotated and packed once into build/pretrain-bench, or any folder
of `kebiolm pack` (--shards DIR). Each peer is a process of its own, so that peaks of
memory are its own; the peers' steps take turns, and only one works at a time. The loader is measured alone, before.
Writes pretrain.md and .json to tests/benchmarks/results/ (pretrain_DEVICE_DTYPE.* where a GPU works).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from kebiolm.data.shard_format import PackedShards
from tests.benchmarks.machine import describe_machine
from tests.benchmarks.pretrain_peers import ENTITY_SIZE, PEERS, Sizes, Work, make_loader

REPOSITORY = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).parent / "results"
WORK_FOLDER = REPOSITORY / "build" / "pretrain-bench"
LOADER_STEPS = 300
PEAK_TFLOPS = {"H200": 989, "H100": 989, "A100": 312, "V100": 125}
"""Dense matrix products in half precision, by a part of the card's name, as its maker says."""
OWN, TEXT, BERT, RELEASED = PEERS


class Worker:
    """A peer in its own process; `step()` runs one optimizer step of it."""

    def __init__(self, name: str, arguments: argparse.Namespace) -> None:
        options = [
            f"--{key}={value}" for key, value in vars(arguments).items() if key not in ("worker", "out", "rounds")
        ]
        environment = os.environ | {"DS_ACCELERATOR": arguments.device, "OMP_NUM_THREADS": str(arguments.threads)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.bench_pretrain", *options, f"--worker={name}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        json.loads(self._read())  # it says so once it has warmed up

    def step(self) -> dict[str, Any]:
        """Seconds of a step, by the clock and of the processor, and the fields of `Work`."""
        print("step", file=self._process.stdin, flush=True)
        return json.loads(self._read())

    def finish(self) -> dict[str, float]:
        """Peak memory; ends the process."""
        self._process.stdin.close()
        answer = json.loads(self._read())
        self._process.wait()
        return answer

    def _read(self) -> str:
        # DeepSpeed and torch may print as well.
        while line := self._process.stdout.readline():
            if line.startswith("{"):
                return line
        raise SystemExit(f"a peer ended with status {self._process.wait()}")


def work(arguments: argparse.Namespace) -> None:
    """A worker's life: a step for each line on stdin."""
    from kebiolm.training.deepspeed_engine import init_distributed

    init_distributed()
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)  # after DeepSpeed, which sets its own number
    on_gpu = arguments.device == "cuda"
    step = PEERS[arguments.worker](PackedShards.load(arguments.shards), sizes_of(arguments))
    step()  # warms up: optimizer states are made, kernels chosen
    _forget_peak(on_gpu)
    print(json.dumps({"ready": True}), flush=True)
    for _ in sys.stdin:
        started, cpu_started = time.perf_counter(), time.process_time()
        done: Work = step()
        if on_gpu:
            torch.cuda.synchronize()
        took = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - cpu_started}
        print(json.dumps(took | asdict(done)), flush=True)
    print(json.dumps({"peak_mib": _peak_mib(on_gpu)}), flush=True)


def make_shards() -> Path:
    """Annotate and pack the real abstracts, or take what an earlier call made."""
    data, made = Path(os.environ.get("KEBIOLM_TEST_DATA", REPOSITORY.parent / "shared" / "data")), WORK_FOLDER
    if not (data / "kb" / "openkb").is_dir():
        raise SystemExit(f"no real abstracts at {data}: set KEBIOLM_TEST_DATA, or give --shards")
    texts = [data / "corpora" / name for name in ("cdr_train.pubtator.txt", "ncbi_disease_train.pubtator.txt")]
    model, tokenizer = data / "models" / "en_ner_open_sm", data / "released_checkpoint"
    for command in (
        ["kb", "build", "--umls", data / "kb" / "openkb", "--out", made / "kb"],
        ["annotate", *texts, "--kb", made / "kb", "--model", model, "--out", made / "annotated"],
        ["pack", made / "annotated", "--kb", made / "kb", "--tokenizer", tokenizer, "--out", made / "shards"],
    ):
        if not (command[-1] / "manifest.json").is_file():
            subprocess.run([Path(sys.executable).parent / "kebiolm", *command], check=True)
    return made / "shards"


def sizes_of(arguments: argparse.Namespace) -> Sizes:
    """The part of the options that peers know."""
    return Sizes(
        arguments.layers, arguments.hidden, arguments.entities, arguments.rows, arguments.dtype, arguments.dropout
    )


def flops_of_step(done: dict[str, Any], sizes: Sizes, pieces: int) -> float:
    """Multiply-adds, twice, of the matrix products that real positions need, forward and backward.

    Layers: 12 H^2 a position. Attention: scores and mean, 2 H for each pair of positions of a document. Pieces: the
    head at masked positions. Entities: dot products with the whole table.
    """
    hidden = sizes.hidden
    layers = sizes.layers * (12 * hidden**2 * done["real"] + 2 * hidden * done["squares"])
    heads = (hidden**2 + hidden * pieces) * done["targets"] + sizes.entities * ENTITY_SIZE * done["mentions"]
    return 3 * 2 * (layers + heads)


def loader_tokens_per_second(arguments: argparse.Namespace) -> float:
    """What the loader delivers to a step that takes no time."""
    loader = make_loader(PackedShards.load(arguments.shards), arguments.rows)
    steps = loader.iterate(0, LOADER_STEPS + 10)
    list(islice(steps, 10))
    started = time.perf_counter()
    tokens = sum(int((batch["document_index"] > 0).sum()) for _, batches in steps for batch in batches)
    return tokens / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=Path, help="made by `kebiolm pack`; none: made of KEBIOLM_TEST_DATA")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--entities", type=int, default=100_000)
    parser.add_argument("--rows", type=int, default=2, help="packed sequences of a step")
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--dtype", choices=("fp32", "bf16", "fp16"), default="fp32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--worker", choices=tuple(PEERS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments)
        return
    machine = describe_machine(["torch", "deepspeed", "transformers"])
    arguments.shards = arguments.shards or make_shards()
    if arguments.device == "cuda":
        machine["GPU"] = torch.cuda.get_device_name()
    delivered = loader_tokens_per_second(arguments)
    workers = {name: Worker(name, arguments) for name in PEERS}  # one after the other, for their peaks of memory
    steps: dict[str, list[dict[str, Any]]] = {name: [] for name in PEERS}
    for _ in range(arguments.rounds):
        for name, worker in workers.items():
            steps[name].append(worker.step())
    peaks = {name: worker.finish()["peak_mib"] for name, worker in workers.items()}
    machine["load average at the end"] = f"{os.getloadavg()[0]:.1f}"
    write(steps, peaks, delivered, machine, arguments)


def write(
    steps: dict[str, list[dict[str, Any]]],
    peaks: dict[str, float],
    delivered: float,
    machine: dict[str, str],
    arguments: argparse.Namespace,
) -> None:
    """pretrain.md and .json."""
    real, processed = _rates(steps, "real"), _rates(steps, "processed")
    sizes, shards = sizes_of(arguments), PackedShards.load(arguments.shards)
    lines = ["# A step of pretraining", "", *(f"- {name}: {said}" for name, said in machine.items())]
    lines += [
        f"- model: {sizes.layers} layers of {sizes.hidden}, {sizes.entities:,} entities of {ENTITY_SIZE}, dropout "
        f"{sizes.dropout}; {sizes.dtype}, AdamW, ZeRO stage 1, one process, {arguments.threads} threads",
        f"- text: {len(shards.train):,} packed sequences, {sizes.rows} a step",
        "",
        "| peer | step, s (lowest - highest) | real tokens/s | processed tokens/s | real share | peak memory, MiB |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, of_peer in steps.items():
        seconds = [step["seconds"] for step in of_peer]
        share = sum(step["real"] for step in of_peer) / sum(step["processed"] for step in of_peer)
        lines.append(
            f"| {name} | {statistics.median(seconds):.3g} ({min(seconds):.3g} - {max(seconds):.3g}) "
            f"| {real[name]:,.0f} | {processed[name]:,.0f} | {share:.1%} | {peaks[name]:,.0f} |"
        )
    lines += [
        "",
        f"- real tokens/s of kebiolm: {_ratio(steps, OWN, RELEASED, 'real')} times the released way's, "
        f"{_ratio(steps, OWN, BERT, 'real')} times BERT's",
        f"- time of kebiolm for a processed token: {_ratio(steps, BERT, OWN, 'processed')} times BERT's, "
        f"{_ratio(steps, TEXT, OWN, 'processed')} times that of kebiolm's text alone",
        f"- the same in seconds of the processor, which a load beside it hardly changes: "
        f"{_ratio(steps, OWN, RELEASED, 'real', 'cpu_seconds')}, {_ratio(steps, OWN, BERT, 'real', 'cpu_seconds')}; "
        f"{_ratio(steps, BERT, OWN, 'processed', 'cpu_seconds')}, "
        f"{_ratio(steps, TEXT, OWN, 'processed', 'cpu_seconds')}",
        f"- the loader alone delivers {delivered:,.0f} tokens/s, {delivered / real[OWN]:,.0f} times what a step takes",
    ]
    if peak := next((value for card, value in PEAK_TFLOPS.items() if card in machine.get("GPU", "")), None):
        pieces = shards.manifest["tokenizer"]["vocab_size"]
        tflops = statistics.median(flops_of_step(step, sizes, pieces) / step["seconds"] for step in steps[OWN]) / 1e12
        lines.append(
            f"- kebiolm computes {tflops:.0f} TFLOP/s, {tflops / peak:.0%} of the card's {peak} in half precision"
        )
    lines += [
        "",
        f"Medians of {arguments.rounds} steps of each in turns; of ratios, the median over rounds (lowest - highest), "
        "so that a load that comes and goes slows both sides. Peak: of the process (GPU: of tensors) after its first "
        "step.",
        "",
        "- kebiolm, text only: the trainer with its entity part left out",
        "- bert: Hugging Face, a document a row, padded to the batch's longest, logits at all positions",
        "- released way: a document a row, padded to full length, plain attention, logits of all pieces at all "
        "positions and of all entities, mentions in a Python loop",
    ]
    arguments.out.mkdir(parents=True, exist_ok=True)
    stem = "pretrain" if arguments.device == "cpu" else f"pretrain_{arguments.device}_{arguments.dtype}"
    (arguments.out / f"{stem}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    content = {"machine": machine, "steps": steps, "peak_mib": peaks, "loader_tokens_per_second": delivered}
    (arguments.out / f"{stem}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print("\n".join(lines))


def _rates(steps: dict[str, list[dict[str, Any]]], field: str) -> dict[str, float]:
    """Median over steps of a peer's tokens per second."""
    return {
        name: statistics.median(step[field] / step["seconds"] for step in of_peer) for name, of_peer in steps.items()
    }


def _ratio(steps: dict[str, list[dict[str, Any]]], first: str, second: str, field: str, clock: str = "seconds") -> str:
    """Tokens per second of the first peer over the second's, round by round."""
    rates = [[step[field] / step[clock] for step in steps[name]] for name in (first, second)]
    ratios = [of_first / of_second for of_first, of_second in zip(*rates, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} - {max(ratios):.2f})"


def _forget_peak(on_gpu: bool) -> None:
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _peak_mib(on_gpu: bool) -> float:
    """Highest memory since `_forget_peak`: of tensors on a GPU, of the whole process on a CPU."""
    if on_gpu:
        return torch.cuda.max_memory_allocated() / 2**20
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
