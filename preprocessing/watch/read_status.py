"""How far a job is, told by its manifests alone, so that any shell and any machine that sees the folder can ask.

Nothing is written or held: a job never notices that it is looked at. Whether a driver is at work is asked of the
folder's lock; only the driver's machine can tell, or one whose file system shares locks.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kebiolm.data import knowledge_base, shard_format
from kebiolm.errors import UserError
from preprocessing.annotation import store
from preprocessing.annotation.unit_files import WORK_FOLDER
from preprocessing.ledger import JOB_FILE, LOCK_FILE
from preprocessing.packing.units import GROUPS, HELDOUT_GROUPS
from preprocessing.watch.manifests import read_json
from preprocessing.watch.screen import FIND, JOIN, LINK, READ, documents_of
from preprocessing.watch.speed import MovingRate, seconds_left

ANNOTATION_JOB = "kebiolm-annotation-job"
_SHARD_OF = re.compile(r"-of-(\d+)\.arrow$")

FINISHED, RUNNING, STOPPED = "finished", "running", "stopped"
REASON_UNKNOWN = "of a reason not known before parts are joined"

# What a finished folder is called, and what to do with it.
_FINISHED = {
    store.FORMAT: ("annotated documents", "check them with `kebiolm verify`, then pack them with `kebiolm pack`"),
    shard_format.FORMAT: ("training shards", "check them with `kebiolm verify`, then train with `kebiolm pretrain`"),
    knowledge_base.FORMAT: ("knowledge base", "annotate abstracts with `kebiolm annotate`"),
}


@dataclass(frozen=True, kw_only=True)
class StageStatus:
    """One stage of a job.

    Attributes:
        name: "read", "find", "link", "join" of an annotation; "groups" and "heldout" of a packing job.
        done: units that have a manifest.
        total: units in all, None while that is not known.
        documents: documents of the units that are done.
        per_second: documents per second over the last minutes, by the times of the manifests; None where these are few.
        left_s: seconds for the units that are not done, at that speed.
    """

    name: str
    done: int
    total: int | None
    documents: int = 0
    per_second: float | None = None
    left_s: float | None = None

    @property
    def is_done(self) -> bool:
        """Whether all of its units are done."""
        return self.total is not None and self.done >= self.total


@dataclass(frozen=True, kw_only=True)
class JobStatus:
    """What a folder's manifests say.

    Attributes:
        folder: the folder.
        kind: what it is, in words.
        state: "finished", "running" or "stopped".
        stages: in their order; none where the folder was made in one step.
        counts: totals so far.
        set_aside: number of records by reason.
        driver: whether a driver holds the folder; None where the file system cannot tell.
        last_manifest_s: seconds since the newest manifest was written, None where there is none.
        left_s: seconds until the stage at work will be done, None where nobody works or too little is known.
        next: what to do.
    """

    folder: str
    kind: str
    state: str
    stages: tuple[StageStatus, ...] = ()
    counts: dict[str, int] = field(default_factory=dict)
    set_aside: dict[str, int] = field(default_factory=dict)
    driver: bool | None = None
    last_manifest_s: float | None = None
    left_s: float | None = None
    next: str = ""

    @property
    def stage(self) -> StageStatus | None:
        """The stage at work: the first that is not done."""
        return next((stage for stage in self.stages if not stage.is_done), None)


def read_status(folder: Path, *, now: float | None = None) -> JobStatus:
    """Read the manifests of a folder; a manifest that is missing or cannot be read counts as not written yet.

    Args:
        folder: of a job.
        now: seconds since the epoch, for the ages; None takes the clock.

    Raises:
        UserError: the folder is missing or none of ours.
    """
    now = time.time() if now is None else now
    manifest, job = read_json(folder / "manifest.json"), read_json(folder / JOB_FILE)
    if manifest.get("format") in _FINISHED:
        return _finished(folder, manifest, now)
    if not str(job.get("format", "")).startswith("kebiolm-"):
        raise UserError(
            folder,
            got=f"no {JOB_FILE} and no manifest.json of ours" if folder.is_dir() else "no such folder",
            expected="the folder of a job, or what it made",
            mend="give the --out of `kebiolm annotate` or `kebiolm pack`",
        )
    return _unfinished(folder, job, now)


def driver_holds(folder: Path) -> bool | None:
    """Whether a driver holds the folder; None where this file system has no locks. Makes and keeps nothing."""
    try:
        file = os.open(folder / LOCK_FILE, os.O_RDONLY)
    except FileNotFoundError:
        return False
    except OSError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    else:
        fcntl.flock(file, fcntl.LOCK_UN)
        return False
    finally:
        os.close(file)


@dataclass(kw_only=True)
class _Units:
    """The manifests of one stage's units, and when each was written."""

    manifests: list[dict[str, Any]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    @classmethod
    def read(cls, folder: Path, pattern: str) -> _Units:
        units = cls()
        for path in sorted(folder.glob(pattern)):
            manifest = read_json(path)
            if isinstance(manifest.get("counts"), dict):
                units.manifests.append(manifest)
                units.times.append(path.stat().st_mtime)
        return units

    def __len__(self) -> int:
        return len(self.manifests)

    def counts(self) -> Counter[str]:
        total: Counter[str] = Counter()
        for manifest in self.manifests:
            total.update(manifest["counts"])
        return total

    def reasons(self) -> Counter[str]:
        """Records that were set aside, by reason; manifests that only say how many count under `REASON_UNKNOWN`."""
        reasons: Counter[str] = Counter()
        for manifest in self.manifests:
            counts = manifest["counts"]
            number = counts.get("set_aside", counts.get("rejects", 0))
            reasons.update(manifest.get("rejects_by_reason") or ({REASON_UNKNOWN: number} if number else {}))
        return reasons

    def stage(self, name: str, total: int | None, now: float) -> StageStatus:
        documents = [documents_of(manifest["counts"]) for manifest in self.manifests]
        events = sorted(zip(self.times, documents, strict=True))
        per_second = left = None
        if len(events) > 1 and len(events) != total:
            # The first manifest only tells when the rest began.
            window = MovingRate(events[0][0])
            for moment, count in events[1:]:
                window.add(moment, {"documents": count, "units": 1})
            per_second = window.per_second("documents", now) or None
            left = seconds_left(total, len(self), window.per_second("units", now)) if total else None
        return StageStatus(
            name=name, done=len(self), total=total, documents=sum(documents), per_second=per_second, left_s=left
        )


def _unfinished(folder: Path, job: dict[str, Any], now: float) -> JobStatus:
    work = folder / WORK_FOLDER
    if job["format"] == ANNOTATION_JOB:
        kind, command = "annotation job", "kebiolm annotate"
        stages, units = _annotation_stages(folder, work, len(job.get("inputs") or ()), now)
    else:
        kind, command = "packing job", "kebiolm pack"
        stages, units = _packing_stages(work, now)
    driver = driver_holds(folder)
    written = [moment for some in units.values() for moment in some.times]
    again = f"run the same `{command}` command again: it does what is missing"
    here = "wait; `kebiolm status --watch` shows it again and again"
    elsewhere = f"if no driver runs on another machine, {again}"
    at_work = next((stage for stage in stages if not stage.is_done), None)
    return JobStatus(
        folder=str(folder),
        kind=kind,
        state=RUNNING if driver else STOPPED,
        stages=tuple(stages),
        counts=_totals(units),
        set_aside=dict(sorted(_reasons(units).items())),
        driver=driver,
        last_manifest_s=max(0.0, now - max(written)) if written else None,
        left_s=at_work.left_s if driver and at_work is not None else None,
        next=here if driver else elsewhere if driver is None else again,
    )


def _annotation_stages(
    folder: Path, work: Path, inputs: int, now: float
) -> tuple[list[StageStatus], dict[str, _Units]]:
    units = {
        READ: _Units.read(work / "read", "file-*.json"),
        FIND: _Units.read(work / "found", "part-*.json"),
        LINK: _Units.read(work / "links", "bucket-*.json"),
        JOIN: _Units.read(folder, "part-*.json"),
    }
    # How many parts there are is known once every file was read, and how many buckets once every part was searched.
    slices = sum(len(manifest.get("slices", ())) for manifest in units[READ].manifests)
    parts = slices if len(units[READ]) >= inputs else None
    totals = {READ: inputs, FIND: parts, LINK: read_json(work / "links.json").get("buckets"), JOIN: parts}
    return [units[name].stage(name, total, now) for name, total in totals.items()], units


def _packing_stages(work: Path, now: float) -> tuple[list[StageStatus], dict[str, _Units]]:
    units = {name: _Units.read(work / name, "*.json") for name in (GROUPS, HELDOUT_GROUPS)}
    # A shard's name says how many there are: "train-00003-of-00012.arrow".
    totals = {}
    for name, found in units.items():
        files = [file for manifest in found.manifests for file in manifest.get("files", ())]
        numbers = [int(match[1]) for file in files if (match := _SHARD_OF.search(file))]
        totals[name] = max(numbers, default=None)
    return [units[name].stage(name, total, now) for name, total in totals.items()], units


def _totals(units: dict[str, _Units]) -> dict[str, int]:
    """Totals so far, each from the stage that knows it first."""
    sums = {name: some.counts() for name, some in units.items()}
    wanted = (
        (READ, "documents_in", "records_read"),
        (GROUPS, "documents_in", "documents_packed"),
        (FIND, "documents_in", "documents_searched"),
        (FIND, "mentions_found", "mentions_found"),
        (LINK, "texts", "distinct_texts_linked"),
        (JOIN, "documents_out", "documents_finished"),
        (JOIN, "mentions_linked", "mentions_linked"),
    )
    return {shown: sums[name][count] for name, count, shown in wanted if sums.get(name)}


def _reasons(units: dict[str, _Units]) -> Counter[str]:
    """What was set aside: by the joined parts once all are joined, until then by the earlier stages."""
    early = units.get(READ, _Units()).reasons() + units.get(FIND, _Units()).reasons()
    joined = units.get(JOIN, _Units()).reasons()
    return joined if joined.total() >= early.total() else early


def _finished(folder: Path, manifest: dict[str, Any], now: float) -> JobStatus:
    kind, what_next = _FINISHED[manifest["format"]]
    counts = manifest.get("counts", {})
    if manifest["format"] == shard_format.FORMAT:
        # Counts are by split; shares such as the fill rate have no sum.
        sums: Counter[str] = Counter()
        for split in counts.values():
            sums.update({name: count for name, count in split.items() if isinstance(count, int)})
        counts = dict(sums)
    return JobStatus(
        folder=str(folder),
        kind=kind,
        state=FINISHED,
        counts={name: count for name, count in counts.items() if isinstance(count, int)},
        set_aside=manifest.get("rejects_by_reason", {}),
        driver=driver_holds(folder),
        last_manifest_s=max(0.0, now - (folder / "manifest.json").stat().st_mtime),
        next=what_next,
    )
