"""An annotation job as a ledger of units: what is to be done, what is done, and whether it is still the same job.

One input file is one unit of work. A job's folder begins with `job.json`, which names everything that decides the
output (settings, model, knowledge base, the inputs' bytes); a rerun makes the units that are missing, and refuses when
anything of that has changed, because old and new parts must not be mixed. The driver holds the folder for itself while
it works: a second one would take the first one's unfinished parts for leftovers.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import scispacy
import spacy
from rich.markup import escape
from rich.table import Table

from kebiolm.console import error_console
from kebiolm.data.knowledge_base import KnowledgeBase
from kebiolm.errors import UserError
from kebiolm.files import check_apart, describe_file, write_json
from preprocessing.annotation.annotate import Annotator
from preprocessing.annotation.ner import DICTIONARY, NerLimits, describe_model, load_finder
from preprocessing.annotation.store import FORMAT, VERSION, part_name, read_unit, total_counts, write_unit
from preprocessing.linker import LinkIndex
from preprocessing.sources import find_reader, open_source
from preprocessing.sources.open_source import SUFFIXES

JOB_FORMAT = "kebiolm-annotation-job"
LOCK_FILE = ".lock"

# What a file system answers that has no locks, such as some cluster file systems as they are often mounted.
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


@dataclass(frozen=True, kw_only=True)
class AnnotationJob:
    """Everything that a user asks for.

    Attributes:
        inputs: files of abstracts, or folders of them; each file is one unit of work, numbered in this order.
        kb: folder of the knowledge base.
        model: spaCy pipeline (name or folder), or "dictionary".
        out: folder of the result.
        threshold: keep a concept where its score is strictly above this (paper, section 3.3: 0.85).
        limits: what one document may cost.
    """

    inputs: tuple[Path, ...]
    kb: Path
    model: str
    out: Path
    threshold: float = 0.85
    limits: NerLimits = field(default_factory=NerLimits)

    def __post_init__(self) -> None:
        if not 0 <= self.threshold < 1:
            mend = "give a cosine, such as 0.85"
            raise UserError("--threshold", got=self.threshold, expected="a number from 0 to below 1", mend=mend)


class UnitWorker:
    """Does one unit after another in one process; model and index are loaded once.

    Args:
        job: what to do; its paths must mean the same files where the worker runs.
        umask: file mode mask of the user, for the files that the worker writes.
    """

    def __init__(self, job: AnnotationJob, umask: int) -> None:
        self.job, self.umask = job, umask

    def load(self) -> None:
        """Load model and link index; apart from the constructor, so that a failure can be told from a death."""
        os.umask(self.umask)
        kb = KnowledgeBase.load(self.job.kb, check_hash=False)
        names = kb.names().column("name").to_pylist() if self.job.model == DICTIONARY else ()
        self.finder = load_finder(self.job.model, names=names, limits=self.job.limits)
        self.index = LinkIndex.load(kb.linker_path, check_hash=False)

    def run(self, unit: int, path: Path) -> dict[str, Any]:
        """Annotate one file and write it; returns the unit's manifest."""
        annotator = Annotator(finder=self.finder, index=self.index, threshold=self.job.threshold)
        records = annotator.annotate(open_source(path), source=path.name)
        return write_unit(self.job.out, unit, records, lambda: asdict(annotator.counts))


def list_inputs(paths: Sequence[Path]) -> tuple[Path, ...]:
    """The files to read: folders are replaced by the files of known formats in them, sorted by name.

    Raises:
        UserError: a file is missing, unreadable, of no known format, or named twice; a folder holds none.
    """
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            found = [file for file in sorted(path.iterdir()) if file.name.removesuffix(".gz").endswith(SUFFIXES)]
            if not found:
                expected = f"files ending in {', '.join(SUFFIXES)} (or these with .gz)"
                raise UserError(path, got="a folder with no abstracts", expected=expected, mend="give their folder")
            files += found
        else:
            files.append(path)
    for file in files:
        find_reader(file)
    resolved = [file.resolve() for file in files]
    if twice := sorted({file for file in resolved if resolved.count(file) > 1}):
        raise UserError(twice[0], got="the file more than once", expected="each input once", mend="name it once")
    return tuple(resolved)


@contextmanager
def open_job(job: AnnotationJob, *, overwrite: bool) -> Iterator[list[int]]:
    """Begin a job's folder, or take up one that was interrupted; hold it for this process until the block ends.

    Args:
        job: what to do; its inputs are files.
        overwrite: begin anew, whatever an earlier job left in the folder.

    Yields:
        The units still to be done.

    Raises:
        UserError: the folder holds something else, or the result of another job (says what differs); or another
            process holds it.
    """
    described = _describe(job)
    ledger = job.out / "job.json"
    check_apart(job.out, [*job.inputs, job.kb])
    _check_folder(job.out, described, overwrite=overwrite)
    job.out.mkdir(parents=True, exist_ok=True)
    with _hold(job.out):
        # Until it was held, another process may have put anything there.
        _check_folder(job.out, described, overwrite=overwrite)
        for file in _other_files(job.out):
            if overwrite or (file.name.startswith(".") and file.suffix == ".tmp"):
                shutil.rmtree(file) if file.is_dir() and not file.is_symlink() else file.unlink()
        write_json(ledger, described)
        yield [unit for unit in range(len(job.inputs)) if read_unit(job.out, unit) is None]


def close_job(job: AnnotationJob) -> dict[str, Any]:
    """Check that every unit is done and whole, sum them up, and write the folder's manifest.

    Returns:
        The manifest.
    """
    units = [read_unit(job.out, unit) for unit in range(len(job.inputs))]
    done = [unit for unit in units if unit is not None]
    assert len(done) == len(units), f"{len(units) - len(done)} units are missing"
    counts, reasons = total_counts(done)
    assert counts["documents_in"] == counts["documents_out"] + counts["rejects"], counts
    described = _read_ledger(job.out / "job.json")
    assert described is not None
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "settings": described["settings"],
        "inputs": described["inputs"],
        "counts": {**counts, "units": len(units), "ids_in_several_files": _count_repeated_ids(job)},
        "rejects_by_reason": reasons,
        "files": {name: file for unit in done for name, file in unit["files"].items()},
    }
    write_json(job.out / "manifest.json", manifest)
    return manifest


def summary_table(manifest: dict[str, Any]) -> Table:
    """The counts of a finished folder, for the terminal."""
    counts, settings = manifest["counts"], manifest["settings"]
    table = Table(title="Annotated documents", show_header=False, title_justify="left")
    table.add_column(justify="left")
    table.add_column(justify="right")
    table.add_row("documents in", f"{counts['documents_in']:,}")
    table.add_row("documents out", f"{counts['documents_out']:,}")
    table.add_row("rejects", f"{counts['rejects']:,}")
    for reason, count in manifest["rejects_by_reason"].items():
        table.add_row(f"    {reason}", f"{count:,}")
    table.add_row("ids in several files", f"{counts['ids_in_several_files']:,}")
    table.add_row("abbreviations not looked for", f"{counts['abbreviations_skipped']:,}", end_section=True)
    table.add_row("mentions found", f"{counts['mentions_found']:,}")
    table.add_row(f"    linked (score > {settings['threshold']}), kept", f"{counts['mentions_linked']:,}")
    table.add_row("    not linked, left out", f"{counts['mentions_found'] - counts['mentions_linked']:,}")
    table.add_row("distinct texts linked, summed over files", f"{counts['texts_linked']:,}")
    return table


def _check_folder(out: Path, described: dict[str, Any], *, overwrite: bool) -> None:
    """Refuse a folder that is not ours, and, unless it is to be replaced, one of another job."""
    if out.exists() and not out.is_dir():
        raise UserError(out, got="a file", expected="a folder", mend="choose another --out")
    former = _read_ledger(out / "job.json")
    if former is None and out.is_dir() and _other_files(out):
        got = "a folder with other files and no job.json"
        raise UserError(out, got=got, expected="a new or empty folder", mend="choose another --out")
    if former not in (None, described) and not overwrite:
        raise UserError(
            out,
            got="the result of another job: " + "; ".join(_differences(former, described)),
            expected="the same settings and inputs as before",
            mend="choose another --out or give --overwrite",
        )


def _other_files(out: Path) -> list[Path]:
    """What the folder holds beside the lock."""
    return sorted(file for file in out.iterdir() if file.name != LOCK_FILE)


@contextmanager
def _hold(out: Path) -> Iterator[None]:
    """Keep other drivers out of a folder; the lock ends with this process, however it ends, and its file stays."""
    with open(out / LOCK_FILE, "a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            got, mend = "a folder in which another annotate is running", "wait until it ends or choose another --out"
            raise UserError(out, got=got, expected="a folder that nobody writes to", mend=mend) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            said = "[yellow]this file system has no locks:[/] start one annotate at a time in"
            error_console.print(f"{said} {escape(str(out))}")
        yield


def _describe(job: AnnotationJob) -> dict[str, Any]:
    """Everything that decides the output's bytes; no paths and no times."""
    kb = KnowledgeBase.load(job.kb)
    index = LinkIndex.load(kb.linker_path)
    settings = {
        "threshold": job.threshold,
        "candidates": "the best concept, where its score is strictly above the threshold",
        "filter_for_definitions": False,
        "abbreviations": "linked by their long form",
        "overlaps": "longest first, then leftmost",
        "limits": asdict(job.limits),
        "model": describe_model(job.model),
        "knowledge_base": kb.fingerprint,
        "link_index": {"sha256": index.fingerprint, **index.manifest["settings"]},
        "libraries": {"spacy": spacy.__version__, "scispacy": scispacy.__version__},
    }
    inputs = [{"name": path.name, **describe_file(path)} for path in job.inputs]
    return {"format": JOB_FORMAT, "version": VERSION, "settings": settings, "inputs": inputs}


def _read_ledger(path: Path) -> dict[str, Any] | None:
    try:
        ledger = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return ledger if isinstance(ledger, dict) and ledger.get("format") == JOB_FORMAT else None


def _differences(former: Any, now: Any, name: str = "") -> list[str]:
    """What changed between two JSON values, each as "name: former -> now"."""
    if former == now:
        return []
    if isinstance(former, dict) and isinstance(now, dict):
        keys = sorted(former.keys() | now.keys())
        return [
            text for key in keys for text in _differences(former.get(key), now.get(key), f"{name}.{key}".strip("."))
        ]
    if isinstance(former, list) and isinstance(now, list):
        if len(former) != len(now):
            return [f"{name}: {len(former)} -> {len(now)} of them"]
        pairs = enumerate(zip(former, now, strict=True))
        return [text for place, (one, other) in pairs for text in _differences(one, other, f"{name}[{place}]")]
    return [f"{name}: {_shorten(former)} -> {_shorten(now)}"]


def _shorten(value: Any, length: int = 40) -> str:
    text = str(value)
    return text if len(text) <= length else f"{text[:12]}..."


def _count_repeated_ids(job: AnnotationJob) -> int:
    """Documents whose id an earlier file has too; an update file of PubMed repeats what it revises."""
    files = [job.out / f"{part_name(unit)}.parquet" for unit in range(len(job.inputs))]
    ids = pa.chunked_array(
        [chunk for file in files for chunk in pq.read_table(file, columns=["doc_id"])["doc_id"].chunks],
        type=pa.string(),
    )
    return len(ids) - pc.count_distinct(ids).as_py()
