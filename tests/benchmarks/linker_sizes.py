"""Measures the link index at one size, each step in a process that holds nothing else.

python -m tests.benchmarks.linker_sizes grow NAMES SIZE OUT      # names.parquet of the real and of made-up names
python -m tests.benchmarks.linker_sizes build NAMES OUT          # prints seconds, peak memory, bytes
python -m tests.benchmarks.linker_sizes load INDEX               # prints seconds
python -m tests.benchmarks.linker_sizes serve INDEX TEXTS        # links or checks for each line on stdin
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq

from preprocessing.linker import LinkIndex, build_link_index
from tests.benchmarks.synthetic_names import grow_names

REPOSITORY = Path(__file__).resolve().parents[2]
THRESHOLD = 0.85
CHECKED = 300  # texts that the exhaustive search checks at each size
LEAST_SECONDS = 1.0  # a speed is measured over so long at least


def measure_size(names: Path, size: int, texts: Path, rounds: int) -> dict[str, Any]:
    """Grow, build, and link in two processes at the same time, of which the first is timed.

    Args:
        names: names.parquet of the real knowledge base.
        size: distinct names to grow to.
        texts: a JSON list of the texts to link.
        rounds: how often to measure the speed.
    """
    with tempfile.TemporaryDirectory(dir=texts.parent) as folder:
        grown, index = f"{folder}/names.parquet", f"{folder}/index"
        _run("grow", str(names), str(size), grown)
        built = _run("build", grown, index)
        servers = [_start("serve", index, str(texts)) for _ in range(2)]
        load_seconds = [_read(server)["seconds"] for server in servers]
        for server in servers:
            _ask(server, "link")
        rates = [_ask(servers[0], "link")["rate"] for _ in range(rounds)]
        memory = [psutil.Process(server.pid).memory_full_info() for server in servers]
        wrong = _ask(servers[0], "check")["wrong"]
        for server in servers:
            server.communicate()
    return {
        **built,
        "load_seconds": load_seconds[0],
        "rates": rates,
        "wrong": wrong,
        "own_mib": statistics.mean(each.uss for each in memory) / 2**20,
        "shared_mib": sum(each.pss - each.uss for each in memory) / 2**20,
    }


def measure_first_use(index: Path) -> dict[str, float]:
    """Seconds until an index is loaded: with an empty cache of machine code, and in the next process."""
    with tempfile.TemporaryDirectory() as cache:
        seconds = [_run("load", str(index), NUMBA_CACHE_DIR=cache)["seconds"] for _ in range(2)]
    return {"compiled": seconds[0], "from cache": seconds[1]}


def _grow(names: str, size: str, out: str) -> None:
    table = pq.read_table(names)
    pq.write_table(grow_names(table["name"].to_pylist(), table["cui"].to_pylist(), int(size)), out)
    _say({})


def _build(names: str, out: str) -> None:
    started = time.perf_counter()
    table = pq.read_table(names, columns=["name", "cui"])
    manifest = build_link_index(table["name"], table["cui"], Path(out))
    seconds = time.perf_counter() - started
    # Not ru_maxrss, which begins at what the parent had.
    status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    size = sum(file["bytes"] for file in manifest["files"].values())
    _say({"seconds": seconds, "peak_gb": peak * 1024 / 1e9, "bytes": size, "counts": manifest["counts"]})


def _load(path: str) -> LinkIndex:
    started = time.perf_counter()
    index = LinkIndex.load(Path(path), check_hash=False)
    _say({"seconds": time.perf_counter() - started})
    return index


def _serve(path: str, texts_file: str) -> None:
    index = _load(path)
    texts = json.loads(Path(texts_file).read_text(encoding="utf-8"))
    for line in sys.stdin:
        if line.strip() == "check":
            _say({"wrong": count_wrong(index, texts[:: max(1, len(texts) // CHECKED)][:CHECKED])})
            continue
        started, times = time.perf_counter(), 0
        while times == 0 or time.perf_counter() - started < LEAST_SECONDS:
            index.link_above(texts, THRESHOLD)
            times += 1
        _say({"rate": len(texts) * times / (time.perf_counter() - started)})


def count_wrong(index: LinkIndex, texts: list[str]) -> int:
    """How many answers differ from the exhaustive search's."""
    linked, cuis = index.link_above(texts, THRESHOLD), index.concepts
    wrong = 0
    for best, concept, score in zip(index.link(texts), linked.concept.tolist(), linked.score, strict=True):
        expected = (best[0].cui, np.float32(best[0].score)) if best and best[0].score > THRESHOLD else None
        wrong += expected != ((cuis[concept].as_py(), score) if concept >= 0 else None)
    return wrong


def _start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.benchmarks.linker_sizes", *arguments]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=REPOSITORY, env=os.environ | environment, **pipes)


def _run(*arguments: str, **environment: str) -> dict[str, Any]:
    process = _start(*arguments, **environment)
    said, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"{arguments[0]} failed with status {process.returncode}")
    return json.loads(said.splitlines()[-1])


def _ask(server: subprocess.Popen[str], request: str) -> dict[str, Any]:
    server.stdin.write(f"{request}\n")
    server.stdin.flush()
    return _read(server)


def _read(server: subprocess.Popen[str]) -> dict[str, Any]:
    return json.loads(server.stdout.readline())


def _say(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    # One core, as a worker has.
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    {"grow": _grow, "build": _build, "load": _load, "serve": _serve}[sys.argv[1]](*sys.argv[2:])
