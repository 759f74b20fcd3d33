"""`kebiolm pack`: an annotated corpus becomes packed training shards.

    count            ->  groups                         ->  heldout              ->  manifest
    concepts of all      tokenize, align, cut, pack;        pack what the            card, counts
    parts: vocabulary    put held-out segments aside        groups put aside

One step per file: `align`, `segments`, `best_fit`, done by `worker`; `units` says what is a unit of work. The format of
the output is in `kebiolm.data.shard_format`.
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kebiolm.console import console, progress, stop_politely
from kebiolm.data import entity_vocab
from kebiolm.data.entity_vocab import EntityVocab
from kebiolm.data.knowledge_base import KnowledgeBase
from kebiolm.data.shard_format import (
    FORMAT,
    SPLITS,
    TOKENIZER_FOLDER,
    TRAIN,
    VERSION,
    WORK_FOLDER,
    PackedShards,
)
from kebiolm.data.tokenizer import describe_tokenizer, load_tokenizer, save_tokenizer
from kebiolm.errors import UserError
from kebiolm.files import atomic_folder, describe_file, sha256_of_json, user_umask, write_json
from preprocessing.annotation.store import AnnotatedCorpus
from preprocessing.ledger import open_ledger, remove_unfinished
from preprocessing.packing.card import write_card
from preprocessing.packing.settings import PackSettings
from preprocessing.packing.units import GROUPS, HELDOUT_GROUPS, counts_of, group_sizes, heldout_name, read_unit
from preprocessing.packing.worker import PackWorker

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

JOB_FORMAT, JOB_VERSION = "kebiolm-pack-job", 1

Manifest = dict[str, Any]
Run = Callable[..., Iterator[tuple[int, Any]]]
"""`WorkerPool.run` of `preprocessing.ray_pool`, or the same in this process."""


def pack(
    annotated: Path,
    tokenizer: Path,
    out: Path,
    *,
    settings: PackSettings | None = None,
    knowledge_base: Path | None = None,
    workers: int = 1,
    ray_address: str | None = None,
    overwrite: bool = False,
) -> Manifest:
    """Pack an annotated corpus into a shards folder.

    The same corpus, tokenizer and settings give the same bytes, for any number of workers, killed or not. A job that
    was interrupted goes on where it stopped.

    Args:
        annotated: folder made by `kebiolm annotate`.
        tokenizer: folder of a word-piece tokenizer.
        out: the shards folder to make.
        settings: lengths, cap, split.
        knowledge_base: folder made by `kebiolm kb build`, for the names and semantic types in the entity vocabulary.
        workers: processes with one thread each; a single one is this process, unless it is to run on a cluster.
        ray_address: a running Ray cluster; all paths must be on storage that every node shares.
        overwrite: begin anew, whatever an earlier job left at `out`.

    Returns:
        The manifest of the finished folder.

    Raises:
        UserError: an input folder is broken, `out` holds something else, groups failed in every attempt (the others
            are done and kept), or there is nothing to train on.
    """
    settings = settings or PackSettings()
    annotated, out = annotated.absolute(), out.absolute()  # a worker may run in another folder
    corpus = AnnotatedCorpus.load(annotated, check_hash=False)  # the workers check
    base = KnowledgeBase.load(knowledge_base) if knowledge_base else None
    pieces = load_tokenizer(tokenizer)
    described = {
        "settings": asdict(settings),
        "source": {
            "annotated_manifest_sha256": sha256_of_json(corpus.manifest),
            "knowledge_base": base.fingerprint if base else None,
        },
        "tokenizer": describe_tokenizer(pieces),
    }
    job = {"format": JOB_FORMAT, "version": JOB_VERSION, **described}
    inputs = [annotated, tokenizer, *([knowledge_base] if knowledge_base else [])]
    with open_ledger(out, job, inputs=inputs, overwrite=overwrite):
        manifest = _finished_manifest(out, described)
        if manifest is not None:
            console.print("every shard was packed before: nothing to do")
        else:
            started = time.monotonic()
            (out / WORK_FOLDER).mkdir(exist_ok=True)
            _save_tokenizer(pieces, out / TOKENIZER_FOLDER)
            special_ids = pieces.cls_token_id, pieces.sep_token_id
            with _workers((annotated, out, settings, special_ids, user_umask()), workers, ray_address) as run:
                stages = _Stages(corpus, out, settings, run)
                stages.count(base)
                groups = stages.pack_groups()
                heldout = stages.pack_heldout(groups)
            manifest = _close(out, described, [*groups, *heldout], corpus)
            console.print(f"packed in {time.monotonic() - started:.1f} s, starting included")
        shutil.rmtree(out / WORK_FOLDER, ignore_errors=True)
    return manifest


class _Stages:
    """The stages of one job, in order; each does the units that are missing.

    Args:
        corpus: what is packed.
        out: the job's folder.
        settings: lengths, cap, split.
        run: does units.
    """

    def __init__(self, corpus: AnnotatedCorpus, out: Path, settings: PackSettings, run: Run) -> None:
        self._out, self._settings, self._run = out, settings, run
        self._sizes = corpus.part_sizes
        self._groups = group_sizes(self._sizes, settings.documents_per_shard)

    def count(self, base: KnowledgeBase | None) -> None:
        """Write the entity vocabulary of the corpus, unless it is there."""
        path = self._out / entity_vocab.FILE_NAME
        if path.exists():
            return
        counts: Counter[str] = Counter()
        units = {group: (parts,) for group, parts in enumerate(self._groups)}
        with progress("counting concepts", sum(self._sizes), "documents") as advance:
            for group, found in self._do("count", units):
                counts.update(found)
                advance(self._documents(group))
        EntityVocab.build(
            counts,
            min_count=self._settings.min_count,
            names=base.preferred_names() if base else None,
            semantic_types=base.semantic_types() if base else None,
        ).save(path)

    def pack_groups(self) -> list[Manifest]:
        """Pack each group of parts; returns the manifests of all groups."""
        units = {group: (group, len(self._groups), parts) for group, parts in enumerate(self._groups)}
        with progress("packing", sum(self._sizes), "documents") as advance:
            return self._missing("pack_group", GROUPS, units, lambda group: advance(self._documents(group)))

    def pack_heldout(self, groups: Sequence[Manifest]) -> list[Manifest]:
        """Pack the held-out segments that all groups put aside; returns the manifests of the shards."""
        names = [heldout_name(number) for number in range(len(groups))]
        rows = [group["files"][name]["rows"] for group, name in zip(groups, names, strict=True)]
        aside = [(name, count) for name, count in zip(names, rows, strict=True) if count]
        shards = group_sizes([count for _, count in aside], self._settings.documents_per_shard)
        units = {
            shard: (shard, len(shards), dict(aside[files.start : files.stop])) for shard, files in enumerate(shards)
        }
        if not units:
            return []
        with progress("packing held-out documents", len(units), "shards") as advance:
            return self._missing("pack_heldout", HELDOUT_GROUPS, units, lambda shard: advance(1))

    def _missing(
        self, method: str, stage: str, units: Mapping[int, tuple[Any, ...]], advance: Callable[[int], None]
    ) -> list[Manifest]:
        """Do the units of one stage that are not done; returns the manifests of all, in order."""
        manifests = {unit: manifest for unit in units if (manifest := read_unit(self._out, stage, unit)) is not None}
        for unit in manifests:
            advance(unit)
        missing = {unit: arguments for unit, arguments in units.items() if unit not in manifests}
        for unit, manifest in self._do(method, missing):
            manifests[unit] = manifest
            advance(unit)
        return [manifests[unit] for unit in units]

    def _do(self, method: str, units: Mapping[int, tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        """Yield (unit, result) of each unit, in any order.

        Raises:
            UserError: at the end, if units failed in every attempt.
        """
        failed: dict[int, str] = {}
        yield from self._run(method, units, failed=failed)
        if failed:
            reasons = "; ".join(f"unit {unit} ({reason})" for unit, reason in sorted(failed.items()))
            raise UserError(
                f"packing, {method}",
                got=f"{len(failed)} of {len(units)} units that failed in every attempt: {reasons}",
                expected="every unit done",
                mend="the other units are done and kept: mend the cause and run the command again",
            )

    def _documents(self, group: int) -> int:
        return sum(self._sizes[part] for part in self._groups[group])


@contextmanager
def _workers(arguments: tuple[Any, ...], workers: int, ray_address: str | None) -> Iterator[Run]:
    """What does the units: a pool of Ray actors, or, where one process is enough, this one."""
    stopped = stop_politely("the same command goes on from here")
    if workers == 1 and ray_address is None:
        worker = PackWorker(*arguments)
        with stopped:
            worker.load()
            yield lambda method, units, failed: (
                (unit, getattr(worker, method)(*of_unit)) for unit, of_unit in units.items()
            )
        return

    from preprocessing.ray_pool import WorkerPool, ray_session

    # Ray takes the signals for itself when it starts: ours come after.
    with ray_session(ray_address, workers), stopped, WorkerPool(PackWorker, arguments, workers=workers) as pool:
        yield pool.run


def _finished_manifest(out: Path, described: Manifest) -> Manifest | None:
    """The manifest of a folder that this job finished; None where there is something to do.

    Where a finished folder lost a file it is not finished any more, and is made again.
    """
    try:
        manifest = PackedShards.load(out).manifest
        if {name: manifest.get(name) for name in described} == described:
            return manifest
    except UserError:
        pass
    if (out / "manifest.json").exists():
        (out / entity_vocab.FILE_NAME).unlink(missing_ok=True)
        shutil.rmtree(out / TOKENIZER_FOLDER, ignore_errors=True)
        (out / "manifest.json").unlink()
    return None


def _save_tokenizer(tokenizer: PreTrainedTokenizerFast, path: Path) -> None:
    """Write the tokenizer's folder, unless it is there; it is what the workers load."""
    if not path.exists():
        with atomic_folder(path, overwrite=False, is_ours=lambda folder: False) as folder:
            save_tokenizer(tokenizer, folder)


def _close(out: Path, described: Manifest, units: Sequence[Manifest], corpus: AnnotatedCorpus) -> Manifest:
    """Check that nothing is missing, and write the card and the manifest of the whole folder."""
    max_length = described["settings"]["max_length"]
    counts = {split: counts_of(units, split) for split in SPLITS}
    documents = {split: found.documents for split, found in counts.items()}
    assert sum(documents.values()) == len(corpus), "documents in = documents of all splits"
    if not counts[TRAIN].sequences:
        raise UserError(
            corpus.path,
            got=f"{documents[TRAIN]} documents to train on, none with text",
            expected="at least one",
            mend="annotate more documents, or lower --heldout",
        )
    tokenizer_files = [f"{TOKENIZER_FOLDER}/{path.name}" for path in sorted((out / TOKENIZER_FOLDER).iterdir())]
    files = {name: describe_file(out / name) for name in [entity_vocab.FILE_NAME, *tokenizer_files]}
    for unit in units:
        files |= {name: file for name, file in unit["files"].items() if not name.startswith(f"{WORK_FOLDER}/")}
    vocab = EntityVocab.load(out / entity_vocab.FILE_NAME)
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        **described,
        "entity_vocab": {"rows": len(vocab), "sha256": vocab.sha256},
        "counts": {split: found.as_dict(max_length) for split, found in counts.items()},
        "files": files,
    }
    remove_unfinished(out)
    write_card(out, manifest)
    write_json(out / "manifest.json", manifest)
    return manifest
