"""`kebiolm verify`: is a folder still what its manifest says? Every problem is listed, not only the first.

What is common to all folders is here: manifests, sizes and hashes. What the rows must satisfy is in `verify_annotated`,
`verify_shards` and `verify_kb`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
from rich.console import Console
from rich.markup import escape

from kebiolm.console import console as default_console
from kebiolm.console import progress
from kebiolm.data import knowledge_base, shard_format
from kebiolm.errors import UserError
from kebiolm.files import sha256_of_file
from preprocessing.annotation import store
from preprocessing.ledger import JOB_FILE
from preprocessing.watch.readable import printable
from preprocessing.watch.verify_annotated import AnnotatedCheck
from preprocessing.watch.verify_kb import KnowledgeBaseCheck
from preprocessing.watch.verify_shards import ShardsCheck

_VERSIONS = {
    store.FORMAT: store.VERSION,
    shard_format.FORMAT: shard_format.VERSION,
    knowledge_base.FORMAT: knowledge_base.VERSION,
}


def verify(folder: Path, *, kb: Path | None = None, console: Console = default_console) -> int:
    """Check a folder and print what is wrong with it.

    Args:
        folder: annotated documents, training shards or a knowledge base.
        kb: the knowledge base of annotated documents, to check that it has every concept they name.
        console: where to print.

    Returns:
        The exit status: 0 where all is well, 1 where there are problems.

    Raises:
        UserError: the folder is of no known format, or not finished.
    """
    problems = find_problems(folder, kb=kb)
    for problem in problems:
        console.print(f"[red]problem[/] {escape(printable(problem))}")
    where = escape(printable(str(folder)))
    verdict = f"[red]{len(problems):,} problems[/]" if problems else "[green]all is as its manifest says[/]"
    console.print(f"{where}: {verdict}")
    return 1 if problems else 0


def find_problems(folder: Path, *, kb: Path | None = None) -> list[str]:
    """Everything that is wrong with a folder, a line each; see `verify`."""
    manifest = _read_manifest(folder)
    kind = manifest["format"]
    if kb is not None and kind != store.FORMAT:
        mend = "leave --kb out"
        raise UserError("--kb", got=f"a folder of format {kind}", expected="annotated documents", mend=mend)
    files = manifest.get("files")
    if not isinstance(files, dict) or not isinstance(manifest.get("counts"), dict):
        return ["manifest.json: it lacks its files or counts"]
    problems: list[str] = []
    with progress("verifying", len(files), "files") as advance:
        check = _row_check(kind, folder, manifest, kb)
        for name, recorded in sorted(files.items()):
            found = list(_file_problems(folder, name, recorded))
            # A file that cannot be looked into is one problem; one that was altered may have more inside.
            if not any(problem.startswith(f"{name}: no ") for problem in found):
                found += _guarded(name, lambda name=name: check.file_problems(name))
            problems += found
            advance()
    return problems + _guarded("manifest.json", check.folder_problems)


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    formats = ", ".join(_VERSIONS)
    mend = "give a folder made by `kebiolm annotate`, `kebiolm pack` or `kebiolm kb build`"
    if not path.is_file():
        if (folder / JOB_FILE).is_file():
            got, mend = "a job that is not finished", "run its command again, then verify"
        else:
            got = "no manifest.json" if folder.is_dir() else "no such folder"
        raise UserError(folder, got=got, expected=f"a finished folder ({formats})", mend=mend)
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(path, got=f"text that is not JSON ({error})", expected="a manifest", mend=mend) from None
    found = (manifest.get("format"), manifest.get("version")) if isinstance(manifest, dict) else (None, None)
    if found not in _VERSIONS.items():
        expected = ", ".join(f"{kind} version {version}" for kind, version in _VERSIONS.items())
        raise UserError(path, got=f"format {found[0]} version {found[1]}", expected=f"one of {expected}", mend=mend)
    return manifest


def _row_check(kind: str, folder: Path, manifest: dict[str, Any], kb: Path | None) -> Any:
    if kind == store.FORMAT:
        return AnnotatedCheck(folder, manifest, kb=kb)
    return (ShardsCheck if kind == shard_format.FORMAT else KnowledgeBaseCheck)(folder, manifest)


def _file_problems(folder: Path, name: str, recorded: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with a file's name, size and hash."""
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        yield f"{name}: no file of this folder, though its manifest names it"
        return
    path = folder / name
    if not path.is_file():
        yield f"{name}: no such file"
        return
    size = path.stat().st_size
    if size != recorded.get("bytes"):
        yield f"{name}: {size:,} bytes, not {recorded.get('bytes')} as recorded"
    elif (digest := sha256_of_file(path)) != recorded.get("sha256"):
        yield f"{name}: SHA-256 {digest[:12]}..., not {str(recorded.get('sha256'))[:12]}... as recorded"


def _guarded(name: str, check: Callable[[], Iterator[str]]) -> list[str]:
    """The problems that a check finds; data in which it cannot find its way are a problem, too."""
    problems: list[str] = []
    try:
        problems += check()
    except (OSError, ValueError, KeyError, TypeError, IndexError, pa.ArrowException) as error:
        problems.append(f"{name}: cannot be read ({type(error).__name__}: {error})")
    return problems
