"""What annotated documents must satisfy: counts that add up, and mentions where the text is."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from kebiolm.data.knowledge_base import CONCEPTS_FILE, KnowledgeBase
from preprocessing.annotation.store import DOCUMENT_SCHEMA, REJECT_SCHEMA, part_name, total_counts
from preprocessing.watch.manifests import read_json

_DOCUMENTS_FILE = re.compile(r"part-\d+\.parquet")


class AnnotatedCheck:
    """Checks a folder of annotated documents file by file, then as a whole.

    It keeps 8 bytes for each document and the distinct CUIs.

    Args:
        folder: the folder.
        manifest: its manifest.
        kb: folder of the knowledge base, or None to leave the concepts unchecked.

    Raises:
        UserError: `kb` is no knowledge base.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any], *, kb: Path | None) -> None:
        self._folder, self._manifest = folder, manifest
        self._base = None if kb is None else KnowledgeBase.load(kb, check_hash=False)
        self._threshold = np.float32(manifest.get("settings", {}).get("threshold", 0.0))
        self._id_digests: list[np.ndarray] = []
        self._cuis: set[str] = set()
        self._mentions = Counter[str]()  # file -> linked mentions
        self._reasons: dict[str, Counter[str]] = {}  # file -> rejects by reason

    def file_problems(self, name: str) -> Iterator[str]:
        """What is wrong with the rows of one file."""
        is_documents = _DOCUMENTS_FILE.fullmatch(name) is not None
        table = pq.read_table(self._folder / name)
        schema, rows = DOCUMENT_SCHEMA if is_documents else REJECT_SCHEMA, self._manifest["files"][name].get("rows")
        if not table.schema.equals(schema):
            yield f"{name}: columns {', '.join(table.schema.names)}, not those of its format"
            return
        if table.num_rows != rows:
            yield f"{name}: {table.num_rows:,} rows, not {rows} as recorded"
        if not is_documents:
            self._reasons[name] = Counter(table["reason"].to_pylist())
            return
        self._id_digests.append(_digests(table["doc_id"]))
        mentions = table["mentions"].combine_chunks()
        self._mentions[name] = pc.sum(pc.list_value_length(mentions)).as_py() or 0
        self._cuis.update(pc.unique(pc.struct_field(mentions.flatten(), "cui")).to_pylist())
        for what, rows_with in _mention_problems(table["text"], mentions, self._threshold):
            yield f"{name}: {what} ({len(rows_with)}; the first in document {table['doc_id'][rows_with[0]]})"

    def folder_problems(self) -> Iterator[str]:
        """What is wrong with the counts, the concepts and the ids of all parts together."""
        counts, reasons = self._manifest["counts"], self._manifest.get("rejects_by_reason", {})
        parts = []
        for number in range(counts["parts"]):
            name = f"{part_name(number)}.json"
            part = read_json(self._folder / name)
            if not isinstance(part.get("counts"), dict) or not isinstance(part.get("files"), dict):
                yield f"{name}: no readable manifest of a part"
                continue
            parts.append(part)
            yield from self._part_problems(name, part)
        yield from _identity_problems("manifest.json", counts, reasons)
        if len(parts) == counts["parts"]:
            sums, summed_reasons = total_counts(parts)
            for name in sorted(sums.keys() & counts.keys()):
                if sums[name] != counts[name]:
                    yield f"manifest.json: {name} is {counts[name]:,}, the parts' sum is {sums[name]:,}"
            if summed_reasons != reasons:
                yield "manifest.json: the rejects by reason are not the sums of the parts'"
        recorded = self._manifest["files"]
        for path in sorted(self._folder.glob("part-*.parquet")):
            if path.name not in recorded:
                yield f"{path.name}: a file that the manifest does not name"
        yield from self._repeated_ids()
        yield from self._concept_problems()

    def _part_problems(self, name: str, part: dict[str, Any]) -> Iterator[str]:
        """A part's own manifest against the folder's, and against the rows that were read."""
        yield from _identity_problems(name, part["counts"], part.get("rejects_by_reason", {}))
        for file, recorded in part["files"].items():
            if self._manifest["files"].get(file) != recorded:
                yield f"{name}: it records another {file} than manifest.json"
            linked = part["counts"].get("mentions_linked")
            if file in self._mentions and linked not in (None, self._mentions[file]):
                yield f"{name}: mentions_linked is {linked:,}, {file} has {self._mentions[file]:,}"
            if file in self._reasons and self._reasons[file] != part.get("rejects_by_reason", {}):
                yield f"{name}: rejects_by_reason differs from the rows of {file}"

    def _repeated_ids(self) -> Iterator[str]:
        digests = np.sort(np.concatenate([np.empty(0, np.uint64), *self._id_digests]))
        repeated = np.unique(digests[1:][digests[1:] == digests[:-1]])
        if not len(repeated):
            return
        # Rare, so the ids are read again only then.
        for name in sorted(self._mentions):
            ids = pq.read_table(self._folder / name, columns=["doc_id"])["doc_id"]
            places = np.flatnonzero(np.isin(_digests(ids), repeated))
            if len(places):
                yield f"{name}: {len(repeated):,} ids have several documents; the first is {ids[places[0]]}"
                return

    def _concept_problems(self) -> Iterator[str]:
        if self._base is None:
            return
        made_with = self._manifest.get("settings", {}).get("knowledge_base")
        if made_with != self._base.fingerprint:
            yield f"manifest.json: linked to knowledge base {str(made_with)[:12]}..., not to this one"
        known = pq.read_table(self._base.path / CONCEPTS_FILE, columns=["cui"])["cui"]
        used = pa.array(sorted(self._cuis), pa.string())
        unknown = used.filter(pc.invert(pc.is_in(used, value_set=known.combine_chunks())))
        if len(unknown):
            yield f"mentions: {len(unknown):,} CUIs are not in the knowledge base; the first is {unknown[0]}"


def _identity_problems(name: str, counts: dict[str, int], reasons: dict[str, int]) -> Iterator[str]:
    documents_in, out, rejects = (counts.get(key) for key in ("documents_in", "documents_out", "rejects"))
    if None in (documents_in, out, rejects) or documents_in != out + rejects:
        yield f"{name}: documents_in {documents_in} is not documents_out {out} + rejects {rejects}"
    if rejects is not None and sum(reasons.values()) != rejects:
        yield f"{name}: {rejects:,} rejects, but {sum(reasons.values()):,} by reason"
    if counts.get("mentions_linked", 0) > counts.get("mentions_found", np.inf):
        yield f"{name}: more mentions are linked than were found"


def _mention_problems(
    texts: pa.ChunkedArray, mentions: pa.ListArray, threshold: np.float32
) -> Iterator[tuple[str, np.ndarray]]:
    """(what is wrong, rows of the documents concerned), vectorised over all mentions of a part."""
    values = mentions.flatten()
    lengths = pc.list_value_length(mentions).to_numpy()
    row = np.repeat(np.arange(len(mentions)), lengths)
    if any(field.null_count for field in values.flatten()):
        is_null = np.any([field.is_null().to_numpy(zero_copy_only=False) for field in values.flatten()], axis=0)
        yield "mentions with an empty field", np.unique(row[is_null])
        return
    start, end, score = (pc.struct_field(values, name).to_numpy() for name in ("start", "end", "score"))
    characters = pc.utf8_length(texts).to_numpy()[row]
    wrong = {
        "mentions outside their text": ~((start >= 0) & (start < end) & (end <= characters)),
        f"scores outside ({threshold:g}, 1]": ~((score > threshold) & (score <= 1)),
        "mentions that overlap or are out of order": np.append(False, (row[1:] == row[:-1]) & (start[1:] < end[:-1])),
    }
    for what, is_wrong in wrong.items():
        if is_wrong[: len(row)].any():
            yield what, np.unique(row[is_wrong[: len(row)]])


def _digests(ids: pa.ChunkedArray) -> np.ndarray:
    """[D] uint64 for each id; equal for two different ones of 13 million with a chance of 1 in 200,000."""
    digests = b"".join(blake2b(doc_id.encode("utf-8"), digest_size=8).digest() for doc_id in ids.to_pylist())
    return np.frombuffer(digests, np.uint64)
