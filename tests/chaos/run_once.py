"""Annotates and packs like the commands do, with workers that meet a document that kills and one that hangs.

    python -m tests.chaos.run_once FOLDER [--ray-address ADDRESS]

FOLDER has in/ (abstracts), kb/ and tokenizer/; annotated/ and shards/ are made. Interrupted, it goes on when started
again.
"""

from __future__ import annotations

import argparse
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kebiolm.console import exit_on_user_error
from preprocessing.annotation import run
from preprocessing.annotation.job import AnnotationJob, list_inputs
from preprocessing.annotation.worker import AnnotationWorker
from preprocessing.packing.pack import pack
from preprocessing.packing.settings import PackSettings

POISON, TARPIT = "KILLS-ITS-PROCESS", "NEVER-ENDS"
SLICE_DOCUMENTS = 25
DOCUMENT_SECONDS = 2.0
WORKERS = 2

# The dictionary takes no time; this is what a document costs a small spaCy model.
SECONDS_PER_DOCUMENT = 0.02


class SlowFinder:
    """The dictionary's finder, as slow as a model, and with two documents that no process survives."""

    def __init__(self, finder: Any) -> None:
        self._finder = finder

    def find(self, texts: Sequence[str], *, before_batch: Callable[[Sequence[int]], None]) -> list[Any]:
        def search(places: Sequence[int]) -> None:
            before_batch(places)
            for place in places:
                time.sleep(SECONDS_PER_DOCUMENT)
                if POISON in texts[place]:
                    os.kill(os.getpid(), signal.SIGSEGV)
                while TARPIT in texts[place]:
                    time.sleep(1)

        return self._finder.find(texts, before_batch=search)


class SlowWorker(AnnotationWorker):
    """Works with a `SlowFinder`."""

    def load(self) -> None:
        super().load()
        self._finder = SlowFinder(self._finder)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--ray-address")
    arguments = parser.parse_args()
    folder = arguments.folder
    run.AnnotationWorker = SlowWorker
    job = AnnotationJob(
        inputs=list_inputs([folder / "in"]),
        kb=folder / "kb",
        model="dictionary",
        out=folder / "annotated",
        slice_documents=SLICE_DOCUMENTS,
        document_seconds=DOCUMENT_SECONDS,
    )
    with exit_on_user_error():
        run.run_job(job, workers=WORKERS, ray_address=arguments.ray_address)
        pack(
            folder / "annotated",
            folder / "tokenizer",
            folder / "shards",
            settings=PackSettings(max_length=128, heldout=0.1),
            knowledge_base=folder / "kb",
            workers=WORKERS,
            ray_address=arguments.ray_address,
        )


if __name__ == "__main__":
    main()
