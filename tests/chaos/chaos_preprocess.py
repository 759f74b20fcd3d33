"""Kills annotation and packing at random moments, again and again, and proves that nothing is lost or repeated.

    python -m tests.chaos.chaos_preprocess [--seeds 20] [--first-seed 0] [--work DIR]

Every seed chooses when and what is killed with SIGKILL: a worker, the driver, or the driver's whole process group.
After a death of the driver the same command is started again. One document kills the process that reads it, one hangs.
Each run must end with the bytes of an undisturbed run: annotated documents, rejects, and packed shards.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from kebiolm.console import console
from preprocessing.annotation.duplicates import REPLACED
from preprocessing.annotation.journal import KILLED, TIMED_OUT
from preprocessing.annotation.store import AnnotatedCorpus
from preprocessing.sample.build import SampleSettings, build_sample
from preprocessing.umls.build_kb import build_kb
from tests.chaos.run_once import POISON, TARPIT

SET_ASIDE = {REPLACED: 1, "empty-abstract": 1, KILLED: 1, TIMED_OUT: 1}
WORKER, DRIVER, GROUP = "worker", "driver", "group"
RUN_TIMEOUT_S = 300.0
REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(kw_only=True)
class Run:
    """What happened in the run of one seed."""

    seed: int
    kills: Counter[str] = field(default_factory=Counter)
    starts: int = 0
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)


def make_inputs(folder: Path) -> int:
    """The sample's abstracts, one that kills, one that hangs, a repeated id and a broken record; knowledge base and
    tokenizer. Returns the number of records."""
    settings = SampleSettings()
    build_sample(folder / "sample", settings)
    build_kb(folder / "sample" / "umls", folder / "kb")
    (folder / "sample" / "pubmed").rename(folder / "in")
    (folder / "sample" / "tokenizer").rename(folder / "tokenizer")
    extra = [
        {"id": "kills", "text": f"A document that {POISON}."},
        {"id": "hangs", "text": f"A document that {TARPIT}."},
        {"id": "twice", "text": "The first version."},
        {"id": "twice", "text": "The second version."},
        {"id": "empty", "text": ""},
    ]
    lines = "".join(f"{json.dumps(record)}\n" for record in extra)
    (folder / "in" / "zz_extra.jsonl").write_text(lines, encoding="utf-8")
    return settings.num_abstracts + len(extra)


def start(folder: Path, log: Path) -> subprocess.Popen[bytes]:
    """Start the commands in a process group of their own."""
    with open(log, "ab") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.run_once", str(folder)],
            cwd=REPOSITORY,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def kill_something(target: str, driver: subprocess.Popen[bytes], rng: random.Random) -> bool:
    """SIGKILL a worker, the driver, or everything; false where there is no worker (yet)."""
    try:
        children = psutil.Process(driver.pid).children(recursive=True)
        if target == WORKER:
            workers = [child for child in children if "Worker" in " ".join(child.cmdline()[:1])]
            if not workers:
                return False
            rng.choice(workers).kill()
            return True
        driver.kill()
    except psutil.NoSuchProcess:
        return False
    driver.wait()
    if target == GROUP:
        for child in children:
            try:
                child.kill()
            except psutil.NoSuchProcess:
                continue
    return True


def run_seed(seed: int, source: Path, folder: Path, seconds: float) -> Run:
    """One run with deaths at random moments.

    Args:
        seed: of all choices.
        source: what `make_inputs` made.
        folder: where to work.
        seconds: how long an undisturbed run takes.
    """
    rng, run = random.Random(seed), Run(seed=seed)
    for name in ("in", "kb", "tokenizer"):
        (folder / name).symlink_to(source / name)
    began = time.monotonic()
    # One death of the driver in every run, some deaths of workers around it.
    deaths = [WORKER] * rng.randint(0, 2) + [rng.choice((DRIVER, GROUP))] + [WORKER] * rng.randint(0, 2)
    driver, log = start(folder, folder / "log.txt"), folder / "log.txt"
    run.starts += 1
    while True:
        moment = time.monotonic() + (rng.uniform(0.02, 0.3) * seconds if deaths else RUN_TIMEOUT_S)
        while driver.poll() is None and time.monotonic() < moment:
            time.sleep(0.02)
        if not deaths and driver.poll() is None:
            run.problems.append(f"no end after {RUN_TIMEOUT_S:.0f} s")
            driver.kill()
            break
        while driver.poll() is None:
            if kill_something(deaths[0], driver, rng):
                run.kills[deaths.pop(0)] += 1
                break
            time.sleep(0.1)  # there is no worker yet
        if driver.poll() is not None:
            if driver.returncode != -signal.SIGKILL:
                break
            driver = start(folder, log)
            run.starts += 1
    if not run.kills[DRIVER] + run.kills[GROUP]:
        run.problems.append("the job ended before its driver was killed")
    if driver.returncode != 0:
        run.problems.append(f"exit status {driver.returncode}: {log.read_text(errors='replace').splitlines()[-1:]}")
    run.seconds = time.monotonic() - began
    return run


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of the result that must be equal in every run."""
    files = [*(folder / "annotated").glob("*.parquet"), *(folder / "shards").rglob("*")]
    files += [folder / "annotated" / "manifest.json"]
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(files) if file.is_file()}


def check(run: Run, folder: Path, expected: dict[str, bytes], records: int) -> tuple[int, int, int]:
    """Compare a run with the undisturbed one and with the number of records that were written.

    Returns:
        (documents in, out, set aside); what is wrong is added to the run's problems.
    """
    if run.problems:
        return 0, 0, 0
    corpus = AnnotatedCorpus.load(folder / "annotated")
    ids = [document.doc_id for document in corpus.iter_documents()]
    aside = [reject.doc_id for reject in corpus.iter_rejects()]
    counts = corpus.manifest["counts"]
    if len(ids) != len(set(ids)):
        run.problems.append("a document is there twice")
    if corpus.manifest["rejects_by_reason"] != SET_ASIDE:
        run.problems.append(f"set aside: {corpus.manifest['rejects_by_reason']}, expected {SET_ASIDE}")
    if not records == counts["documents_in"] == len(ids) + len(aside):
        run.problems.append(f"{records} written, {counts['documents_in']} in, {len(ids)} out, {len(aside)} aside")
    found = contents(folder)
    different = [name for name in sorted(expected.keys() | found.keys()) if expected.get(name) != found.get(name)]
    if different:
        run.problems.append(f"other bytes: {different}")
    if (folder / "annotated" / "work").exists():
        run.problems.append("annotated/work was left behind")
    return counts["documents_in"], len(ids), len(aside)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=20, help="number of runs")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="keep everything in this folder")
    arguments = parser.parse_args()
    work = arguments.work or Path(tempfile.mkdtemp(prefix="chaos-"))
    source = work / "undisturbed"
    source.mkdir(parents=True)
    records = make_inputs(source)
    began = time.monotonic()
    driver = start(source, source / "log.txt")
    driver.wait(timeout=RUN_TIMEOUT_S)
    seconds = time.monotonic() - began
    expected = contents(source)
    totals = check(undisturbed := Run(seed=-1), source, expected, records)
    problems = [*undisturbed.problems, *([f"exit status {driver.returncode}"] if driver.returncode else [])]
    console.print(
        f"undisturbed: {totals[0]} documents in = {totals[1]} out + {totals[2]} set aside {SET_ASIDE}, "
        f"{len(expected)} files, {seconds:.0f} s"
    )
    kills: Counter[str] = Counter()
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        folder = work / f"seed-{seed:02d}"
        folder.mkdir()
        run = run_seed(seed, source, folder, seconds)
        found = check(run, folder, expected, records)
        kills.update(run.kills)
        killed = ", ".join(f"{count} {target}" for target, count in sorted(run.kills.items())) or "nothing"
        verdict = "; ".join(run.problems) or "same bytes"
        console.print(
            f"seed {seed:2d}: killed {killed}; {run.starts} starts; {found[0]} in = {found[1]} out + {found[2]} "
            f"set aside; {run.seconds:.0f} s; {verdict}"
        )
        problems += [f"seed {seed}: {problem}" for problem in run.problems]
        if not run.problems:
            shutil.rmtree(folder)
    console.print(f"{arguments.seeds} runs, killed: {dict(sorted(kills.items()))}; problems: {problems or 'none'}")
    if arguments.work is None and not problems:
        shutil.rmtree(work)
    return bool(problems)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main())
