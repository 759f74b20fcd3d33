"""Files that are either whole or absent: temporary name, fsync, rename; and their hashes."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kebiolm.errors import UserError

_HASH_BLOCK_BYTES = 1 << 20


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on a clean exit it is fsynced and renamed to `path`.

    A reader therefore sees the old file, the new file, or none, never half a file. On an exception the temporary
    file is removed and `path` stays as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Process numbers repeat from one container or machine to the next, and these may share the folder.
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        fsync_path(temporary)
        os.replace(temporary, path)
        fsync_path(path.parent)
    except OSError as error:
        # The error of a write, such as that of a full disk, does not say of which file.
        error.filename = error.filename or str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(
    path: Path, *, overwrite: bool, is_ours: Callable[[Path], bool], inputs: Sequence[Path] = ()
) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on a clean exit it becomes `path`, on an exception it is removed.

    Args:
        path: the folder to make.
        overwrite: replace `path` if it is an empty folder, or one that `is_ours`.
        is_ours: tells whether a folder was made by the step that calls; nobody else's files are ever removed.
        inputs: files and folders that the step reads; `path` must lie apart from them.

    Raises:
        UserError: `path` exists and may not be replaced, or is not apart from the inputs.
    """
    # A link is followed: its target is what is replaced, and the temporary folder lies on the target's disk.
    path = path.resolve()
    check_apart(path, inputs)
    if path.exists():
        _check_replaceable(path, overwrite, is_ours)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        for file in sorted(temporary.rglob("*")):
            fsync_path(file)
        _replace_folder(temporary, path)
        fsync_path(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_apart(path: Path, inputs: Sequence[Path]) -> None:
    """Refuse an output that is one of the inputs, contains one, or lies inside one.

    Raises:
        UserError: names the input.
    """
    path = path.resolve()
    for given in inputs:
        source = given.resolve()
        if path.is_relative_to(source) or source.is_relative_to(path):
            relation = "is" if path == source else "lies inside" if path.is_relative_to(source) else "contains"
            raise UserError(
                path,
                got=f"an output folder that {relation} the input {given}",
                expected="a folder apart from the inputs",
                mend="choose another output folder",
            )


def has_format(folder: Path, kind: str) -> bool:
    """Whether `folder/manifest.json` is of this format, such as "kebiolm-shards", in whatever version."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(manifest, dict) and manifest.get("format") == kind


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, with sorted keys, so that equal values are equal bytes."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def read_manifest(folder: Path, kind: str, version: int, *, made_by: str) -> dict[str, Any]:
    """Read `folder/manifest.json` and check that it describes what the caller expects.

    Args:
        folder: a self-describing folder.
        kind: expected value of the manifest's "format" field, such as "kebiolm-shards".
        version: expected value of its "version" field.
        made_by: the command that makes such a folder, for the error message.

    Raises:
        UserError: the manifest is absent, is not JSON, or describes something else.
    """
    path = folder / "manifest.json"
    mend = f"give a folder made by `{made_by}`"
    if not path.is_file():
        got = "no such file" if folder.is_dir() else "no such folder"
        raise UserError(path, got=got, expected=f"the manifest of a {kind} folder", mend=mend)
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(path, got=f"text that is not JSON ({error})", expected="a manifest", mend=mend) from None
    found = (manifest.get("format"), manifest.get("version")) if isinstance(manifest, dict) else (None, None)
    if found != (kind, version):
        got, expected = f"format {found[0]} version {found[1]}", f"{kind} version {version}"
        raise UserError(path, got=got, expected=expected, mend=mend)
    return manifest


def describe_file(path: Path) -> dict[str, Any]:
    """Size in bytes and SHA-256 of a file, as manifests record them."""
    return {"bytes": path.stat().st_size, "sha256": sha256_of_file(path)}


def verify_file(folder: Path, name: str, recorded: dict[str, Any], *, mend: str, check_hash: bool = True) -> Path:
    """Check a file against what its manifest recorded and return its path.

    Args:
        folder: the folder that the manifest describes.
        name: file name inside it.
        recorded: {"bytes": ..., "sha256": ...} as `describe_file` returned.
        mend: what the user can do when it differs.
        check_hash: also read the whole file for its SHA-256; otherwise only its size is compared.

    Raises:
        UserError: the file is missing, shorter or longer than recorded, or its bytes differ.
    """
    path = folder / name
    if not path.is_file():
        raise UserError(path, got="no such file", expected="a file that the manifest names", mend=mend)
    size = path.stat().st_size
    if size != recorded["bytes"]:
        raise UserError(path, got=f"{size} bytes", expected=f"{recorded['bytes']} bytes (cut short?)", mend=mend)
    if check_hash and (digest := sha256_of_file(path)) != recorded["sha256"]:
        raise UserError(path, got=f"SHA-256 {digest[:12]}...", expected=f"{recorded['sha256'][:12]}...", mend=mend)
    return path


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_HASH_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def sha256_of_json(value: Any) -> str:
    """SHA-256 of a JSON value's canonical text, in hex: a fingerprint of settings."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def user_umask() -> int:
    """File mode mask of this process, to hand it to processes that do not inherit it (Ray's workers)."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _check_replaceable(path: Path, overwrite: bool, is_ours: Callable[[Path], bool]) -> None:
    """Refuse to replace what exists at `path`, unless the user wants it and it is empty or of our making."""
    if not overwrite:
        mend = "choose another output folder or give --overwrite"
        raise UserError(path, got="a folder or file that exists", expected="a new folder", mend=mend)
    if not path.is_dir() or (any(path.iterdir()) and not is_ours(path)):
        got = "a folder that this command did not make" if path.is_dir() else "a file"
        expected = "an empty folder, or an earlier output of this command"
        mend = "choose another output folder; --overwrite replaces nothing else"
        raise UserError(path, got=got, expected=expected, mend=mend)


def _replace_folder(temporary: Path, path: Path) -> None:
    """Put `temporary` at `path`; a folder that was there is moved aside first and removed last."""
    if not path.exists():
        os.rename(temporary, path)
        return
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    os.rename(path, old)
    os.rename(temporary, path)
    shutil.rmtree(old, ignore_errors=True)


def fsync_path(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        os.close(descriptor)
