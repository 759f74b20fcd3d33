"""Files that are either whole or absent: temporary name, fsync, rename; and their hashes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
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
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        _fsync(temporary)
        os.replace(temporary, path)
        _fsync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(
    path: Path, *, overwrite: bool, mend: str = "choose another --out or give --overwrite"
) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on a clean exit it becomes `path`, on an exception it is removed.

    Raises:
        UserError: `path` exists and `overwrite` is false.
    """
    if path.exists() and not overwrite:
        raise UserError(path, got="a folder or file that exists", expected="a new folder", mend=mend)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        for file in sorted(temporary.rglob("*")):
            _fsync(file)
        _replace_folder(temporary, path)
        _fsync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


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


def _replace_folder(temporary: Path, path: Path) -> None:
    """Put `temporary` at `path`; a folder that was there is moved aside first and removed last."""
    if not path.exists():
        os.rename(temporary, path)
        return
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    os.rename(path, old)
    os.rename(temporary, path)
    shutil.rmtree(old, ignore_errors=True)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
