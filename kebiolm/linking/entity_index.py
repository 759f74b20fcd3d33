"""Nearest entities from a faiss index instead of the exact search: for inference with very large entity tables.

An index is a file in faiss's own format, and beside it FILE.json, which says what it was made of:

    format, version     "kebiolm-entity-index", 1
    kind, settings      flat, ivf or hnsw, and its numbers
    table               rows, size and SHA-256 of the entity table, and its first row that is an entity
    faiss               version of the library that made it
    file                bytes and SHA-256 of the file
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding

from kebiolm.errors import UserError
from kebiolm.files import atomic_path, describe_file, verify_file, write_json

FORMAT, VERSION = "kebiolm-entity-index", 1
KINDS = {"flat": (), "ivf": ("nlist", "nprobe"), "hnsw": ("m", "ef_construction", "ef_search")}
"""The kinds of index, and the settings that each has of its own."""
_PARTS = {"table": {"rows": int, "size": int, "first_row": int, "sha256": str}, "file": {"bytes": int, "sha256": str}}
"""What these parts of a manifest have."""
_MEND = "make one with `kebiolm index MODEL --out FILE`"
# Rows given to faiss at a time: the steps in which progress shows.
_ROWS_AT_ONCE = 16_384
# k-means below 39 points for each cell is poor, and faiss says so; beyond 64 it gains little and takes long.
_LEAST_POINTS_PER_CELL, _MOST_POINTS_PER_CELL = 39, 64
_SEED = 1234


@dataclass(frozen=True, kw_only=True)
class IndexSettings:
    """How to build an index; None is replaced by what suits the table's size.

    Raises:
        UserError: a number is out of its range or belongs to another kind, or the kind is unknown.
    """

    kind: str = "hnsw"
    """flat: all rows, exact. ivf: rows in cells, of which the nearest are searched. hnsw: a graph of rows, which finds
    more than ivf in the same time where vectors differ in length, but takes long to build."""
    nlist: int | None = None
    """ivf: cells; None: 4 sqrt(rows)."""
    nprobe: int | None = None
    """ivf: cells searched for a mention; None: a sixteenth of them, at least 8."""
    m: int | None = None
    """hnsw: edges of a row in the graph; None: 32."""
    ef_construction: int | None = None
    """hnsw: rows kept in view while building; None: 100."""
    ef_search: int | None = None
    """hnsw: rows kept in view while searching; None: 256. A search for more than that keeps k in view."""
    threads: int | None = None
    """Processor threads for building; None: all, but one for hnsw, whose graph depends on the order of insertions."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError("--kind", got=self.kind, expected=f"one of {', '.join(KINDS)}", mend="choose one of them")
        numbers = {name: value for name, value in asdict(self).items() if name != "kind" and value is not None}
        for name, value in numbers.items():
            option = "--" + name.replace("_", "-")
            # A graph of one edge for each row does not hang together.
            least = 2 if name == "m" else 1
            if value < least:
                raise UserError(option, got=value, expected=f"{least} or more", mend="give a larger number")
            owner = next((kind for kind, names in KINDS.items() if name in names), self.kind)
            if owner != self.kind:
                raise UserError(
                    option, got=f"it with --kind {self.kind}", expected=f"--kind {owner}", mend="leave it out"
                )

    def complete(self, rows: int) -> IndexSettings:
        """All numbers of this kind, for an index of so many rows.

        Raises:
            UserError: there are more cells than rows.
        """
        if self.kind == "hnsw":
            return replace(
                self,
                m=self.m or 32,
                ef_construction=self.ef_construction or 100,
                ef_search=self.ef_search or 256,
                threads=self.threads or 1,
            )
        if self.kind == "flat":
            return self
        nlist = self.nlist or max(1, min(int(4 * rows**0.5), rows // _LEAST_POINTS_PER_CELL))
        if nlist > rows:
            raise UserError("--nlist", got=nlist, expected=f"at most {rows}, the entities", mend="give fewer cells")
        return replace(self, nlist=nlist, nprobe=min(self.nprobe or max(8, nlist // 16), nlist))


class EntityIndex:
    """Finds the rows of the entity table with the largest dot products; a `kebiolm.model.entity_memory.SearchIndex`.

    The scores are computed from the table itself, so only the choice of rows can be approximate.

    Args:
        index: a faiss index of the rows from `first_row` on.
        table: [E, d] the entity table, not copied. If it is on a GPU and faiss can use one, so is the index there
            (flat and ivf; faiss has no hnsw on GPUs).
        first_row: rows before it are no entities and are never found.
        settings: how the index was built.
    """

    def __init__(self, index: Any, table: Tensor, *, first_row: int, settings: IndexSettings) -> None:
        self.table, self.first_row, self.settings = table, first_row, settings
        self._index = index
        self._searcher = move_to_gpu(import_faiss(), index, settings.kind, table.device)

    @classmethod
    def build(
        cls,
        table: Tensor,
        settings: IndexSettings,
        *,
        first_row: int = 0,
        advance: Callable[..., None] = lambda rows, note="": None,
    ) -> EntityIndex:
        """Make an index; the same table and settings give the same bytes (hnsw: with one thread).

        Args:
            table: [E, d] entities, on any device and of any floating-point dtype; the index holds fp32.
            settings: what to make.
            first_row: rows of the table before it are left out.
            advance: told how many rows have been added since the last call, and what else is being done.

        Raises:
            UserError: faiss is not installed, or the settings do not fit the table.
        """
        faiss = import_faiss()
        settings = settings.complete(len(table) - first_row)
        threads_before = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(settings.threads or threads_before)
        try:
            index = _empty_index(faiss, settings, table.shape[1])
            if not index.is_trained:
                advance(0, "finding cells")
                count = min(settings.nlist * _MOST_POINTS_PER_CELL, len(table) - first_row)
                generator = torch.Generator().manual_seed(_SEED)
                chosen = torch.randperm(len(table) - first_row, generator=generator)[:count].sort().values + first_row
                index.train(_as_numpy(table[chosen.to(table.device)]))
            for start in range(first_row, len(table), _ROWS_AT_ONCE):
                rows = table[start : start + _ROWS_AT_ONCE]
                index.add(_as_numpy(rows))
                advance(len(rows))
        finally:
            faiss.omp_set_num_threads(threads_before)
        return cls(index, table, first_row=first_row, settings=settings)

    def search(self, vectors: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Find the nearest entities.

        Args:
            vectors: [M, d] on the table's device.
            k: how many; with fewer entities, all of them.

        Returns:
            Dot products [M, k] fp32, largest first, and rows of the table [M, k] int64, of equal products the lower
            first; which of those equal to the k-th are found is up to faiss. Where the index finds fewer (the cells
            searched by ivf have fewer rows), the rest is -inf and -1.
        """
        k = min(k, len(self.table) - self.first_row)
        parameters = None
        if (graph := getattr(self._index, "hnsw", None)) is not None:
            # With fewer rows in view than k, faiss finds fewer than k.
            parameters = import_faiss().SearchParametersHNSW(efSearch=max(graph.efSearch, k))
        found = self._searcher.search(_as_numpy(vectors), k, params=parameters)[1]
        places = torch.from_numpy(found).to(vectors.device)
        # Behind all rows what was not found, so that the order of rows decides between equal scores.
        rows = torch.where(places < 0, len(self.table), places + self.first_row).sort(dim=1).values
        neighbours = embedding(rows.clamp(max=len(self.table) - 1), self.table).float()
        scores = (neighbours @ vectors.float().unsqueeze(2)).squeeze(2)
        scores = scores.masked_fill(rows == len(self.table), -torch.inf)
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        rows = rows.gather(1, order)
        return scores, rows.masked_fill(rows == len(self.table), -1)

    def save(self, path: Path) -> None:
        """Write the index to `path` and its manifest beside it."""
        faiss = import_faiss()
        with atomic_path(path) as temporary:
            faiss.write_index(self._index, str(temporary))
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "kind": self.settings.kind,
            "settings": {name: value for name, value in asdict(self.settings).items() if value is not None},
            "table": describe_table(self.table, self.first_row),
            "faiss": faiss.__version__,
            "file": describe_file(path),
        }
        write_json(manifest_path(path), manifest)

    @classmethod
    def load(cls, path: Path, table: Tensor, *, first_row: int = 0) -> EntityIndex:
        """Read an index and check that it is one of this table.

        Raises:
            UserError: faiss is not installed, a file is missing or broken, or the index is of another table.
        """
        faiss = import_faiss()
        manifest = _read_manifest(path)
        recorded, ours = manifest["table"], describe_table(table, first_row)
        if recorded != ours:
            name = next(name for name in ours if recorded.get(name) != ours[name])
            got = (
                f"an index of another entity table ({name} {str(recorded.get(name))[:12]}, not {str(ours[name])[:12]})"
            )
            raise UserError(path, got=got, expected="an index of this model", mend=_MEND)
        verify_file(path.parent, path.name, manifest["file"], mend=_MEND)
        try:
            index = faiss.read_index(str(path))
        except RuntimeError as error:
            got = f"what faiss {faiss.__version__} cannot read ({error}; made by {manifest['faiss']})"
            raise UserError(path, got=got, expected="an index", mend=_MEND) from None
        return cls(index, table, first_row=first_row, settings=manifest["settings"])


def import_faiss() -> ModuleType:
    """The library, imported when it is first needed.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module("faiss")
    except ModuleNotFoundError as error:
        if error.name != "faiss":
            raise
        mend = "pip install 'kebiolm[index]' (faiss-cpu), or a faiss-gpu build that suits your CUDA"
        got, expected = "a package that is not installed", "the package that makes and reads entity indexes"
        raise UserError("faiss", got=got, expected=expected, mend=mend) from None


def manifest_path(path: Path) -> Path:
    """Where the manifest of an index lies."""
    return path.with_name(path.name + ".json")


def describe_table(table: Tensor, first_row: int) -> dict[str, Any]:
    """What tells entity tables apart: sizes, first entity, and SHA-256 of all rows as fp32."""
    digest = hashlib.sha256()
    for start in range(0, len(table), _ROWS_AT_ONCE):
        digest.update(_as_numpy(table[start : start + _ROWS_AT_ONCE]))
    return {"rows": len(table), "size": table.shape[1], "first_row": first_row, "sha256": digest.hexdigest()}


def move_to_gpu(faiss: ModuleType, index: Any, kind: str, device: torch.device) -> Any:
    """The index on the GPU that the table is on, if faiss can use it; else the index as it is."""
    if device.type != "cuda" or kind == "hnsw" or not getattr(faiss, "get_num_gpus", lambda: 0)():
        return index
    return faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), device.index or 0, index)


def _empty_index(faiss: ModuleType, settings: IndexSettings, size: int) -> Any:
    # All by dot product: reduced to distances, with one more dimension, each kind finds fewer of the true neighbours.
    if settings.kind == "flat":
        return faiss.IndexFlatIP(size)
    if settings.kind == "hnsw":
        index = faiss.IndexHNSWFlat(size, settings.m, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction, index.hnsw.efSearch = settings.ef_construction, settings.ef_search
        return index
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(size), size, settings.nlist, faiss.METRIC_INNER_PRODUCT)
    index.nprobe, index.cp.seed = settings.nprobe, _SEED
    return index


def _as_numpy(vectors: Tensor) -> Any:
    return vectors.detach().float().cpu().contiguous().numpy()


def _read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of an index; its settings as `IndexSettings`."""
    manifest_file = manifest_path(path)
    for file in (path, manifest_file):
        if not file.is_file():
            raise UserError(file, got="no such file", expected="an entity index and its manifest", mend=_MEND)
    try:
        parts = json.loads(manifest_file.read_text(encoding="utf-8"))
        manifest = {name: parts[name] for name in ("format", "version", "settings", "table", "faiss", "file")}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(manifest_file, got=f"no manifest ({error})", expected=FORMAT, mend=_MEND) from None
    if (manifest["format"], manifest["version"]) != (FORMAT, VERSION):
        got = f"format {manifest['format']} version {manifest['version']}"
        raise UserError(manifest_file, got=got, expected=f"{FORMAT} version {VERSION}", mend=_MEND)
    for name, fields in _PARTS.items():
        part = manifest[name]
        if not isinstance(part, dict) or {field: type(value) for field, value in part.items()} != fields:
            expected = f"{name} with {', '.join(f'{field} ({kind.__name__})' for field, kind in fields.items())}"
            raise UserError(manifest_file, got=f"{name} {str(part)[:80]}", expected=expected, mend=_MEND)
    return manifest | {"settings": _read_settings(manifest["settings"], manifest_file)}


def _read_settings(recorded: Any, manifest_file: Path) -> IndexSettings:
    fault = None
    if not isinstance(recorded, dict) or not isinstance(kind := recorded.get("kind"), str):
        fault = str(recorded)[:80]
    elif odd := [name for name in recorded if name not in {"kind", "threads", *KINDS.get(kind, ())}]:
        fault = f"{odd[0]!r} with kind {kind!r}"
    elif odd := [name for name, value in recorded.items() if name != "kind" and type(value) is not int]:
        fault = f"{odd[0]} {recorded[odd[0]]!r}"
    else:
        try:
            return IndexSettings(**recorded)
        except UserError as error:
            fault = f"{error.where.removeprefix('--')} {error.got}"
    expected = "the kind of the index (flat, ivf or hnsw) and whole numbers of this kind"
    raise UserError(manifest_file, got=f"settings: {fault}", expected=expected, mend=_MEND)
