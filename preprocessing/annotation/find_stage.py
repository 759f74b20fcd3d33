"""Stage 3: the mentions of one slice are found, but not linked yet; their distinct texts are listed for that.

A document that raises, hangs or kills its process is set aside with the reason; the rest of its slice goes on (see
`preprocessing.annotation.journal`).
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kebiolm.files import atomic_path
from preprocessing.annotation.journal import MAX_CONDEMNED, Journal, open_journal, read_journal
from preprocessing.annotation.ner import FoundMentions, MentionFinder, NerFailure
from preprocessing.annotation.store import part_name
from preprocessing.annotation.unit_files import (
    describe_table,
    read_unit_manifest,
    write_arrow,
    write_unit_manifest,
)
from preprocessing.linker import link_key

# Mentions of a slice: `row` of the document there, characters [start, end), number of the text to link by.
FOUND_SCHEMA = pa.schema([(name, pa.int32()) for name in ("row", "start", "end", "text")])
# Distinct texts to link by, sorted by their 128-bit digest, which is how they are looked up once they are linked.
TEXTS_SCHEMA = pa.schema([("digest_high", pa.uint64()), ("digest_low", pa.uint64()), ("text", pa.string())])
# Rows of the slice that are set aside here.
ASIDE_SCHEMA = pa.schema([("row", pa.int32()), ("reason", pa.string()), ("detail", pa.string())])


@dataclass(kw_only=True)
class _Found:
    """What was found so far."""

    mentions: dict[int, FoundMentions] = field(default_factory=dict)
    aside: dict[int, tuple[str, str]] = field(default_factory=dict)

    def add(self, rows: list[int], results: list[FoundMentions | NerFailure]) -> None:
        for row, result in zip(rows, results, strict=True):
            if isinstance(result, NerFailure):
                self.aside[row] = result.reason, result.detail
            else:
                self.mentions[row] = result


def find_mentions(
    folder: Path,
    part: int,
    texts: list[str],
    finder: MentionFinder,
    *,
    replaced: Mapping[int, tuple[str, str]],
    seconds: float,
    made_from: str,
) -> dict[str, Any]:
    """Search the documents of one slice.

    Args:
        folder: where the found mentions go.
        part: number of the slice among all.
        texts: of the slice's documents.
        finder: finds mentions.
        replaced: row -> (reason, detail) of documents that are not searched.
        seconds: a batch of documents, or one alone, that takes longer ends this process.
        made_from: fingerprint of the slice and of what is replaced.

    Returns:
        The unit's manifest.

    Raises:
        RuntimeError: more documents than `MAX_CONDEMNED` ended their process.
    """
    journal_file = journal_path(folder, part)
    before = read_journal(journal_file)
    if len(before.condemned) > MAX_CONDEMNED:
        raise RuntimeError(f"{len(before.condemned)} documents ended their process; is there too little memory?")
    found = _Found(aside=dict(replaced))
    for row, reason in before.condemned.items():
        found.aside[row] = reason, "the process that searched this document alone ended early, each time it was tried"
    suspects = sorted(before.suspects - found.aside.keys())
    others = [row for row in range(len(texts)) if row not in found.aside and row not in before.suspects]
    with open_journal(journal_file, seconds) as journal:
        # The suspects first: if one of them ends this process too, little is lost.
        for rows in [*([row] for row in suspects), others]:
            found.add(rows, finder.find([texts[row] for row in rows], before_batch=_begin_batch(journal, rows)))
            journal.end()
    manifest = _write(folder, part, found, made_from)
    journal_file.unlink(missing_ok=True)  # a worker of a killed driver may have done the same unit meanwhile
    return manifest


def journal_path(folder: Path, part: int) -> Path:
    """The journal of a unit that is not done."""
    return folder / f"{part_name(part)}.journal"


def found_done(folder: Path, part: int, made_from: str) -> dict[str, Any] | None:
    """The manifest of a slice that was searched, None where it must be searched (again)."""
    return read_unit_manifest(folder / f"{part_name(part)}.json", made_from)


def text_digest(key: str) -> tuple[int, int]:
    """128 bits that stand for a text: two different texts with equal ones are not to be expected in this universe."""
    digest = blake2b(key.encode("utf-8"), digest_size=16).digest()
    return int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:], "big")


def _begin_batch(journal: Journal, rows: list[int]) -> Callable[[Sequence[int]], None]:
    return lambda places: journal.begin([rows[place] for place in places])


def _write(folder: Path, part: int, found: _Found, made_from: str) -> dict[str, Any]:
    digests: dict[str, tuple[int, int]] = {}
    keys: list[str] = []
    columns = {name: array("i") for name in ("row", "start", "end")}
    for row in sorted(found.mentions):
        for mention in found.mentions[row].mentions:
            key = link_key(mention.link_text)
            if key not in digests:
                digests[key] = text_digest(key)
            keys.append(key)
            for name, value in (("row", row), ("start", mention.start), ("end", mention.end)):
                columns[name].append(value)
    ordered = sorted(digests, key=digests.__getitem__)
    number = {key: place for place, key in enumerate(ordered)}
    mentions = {name: np.asarray(column) for name, column in columns.items()}
    tables = {
        f"{part_name(part)}.parquet": pa.table(
            {**mentions, "text": np.array([number[key] for key in keys], dtype=np.int32)}, schema=FOUND_SCHEMA
        ),
        f"{part_name(part)}.aside.parquet": pa.table(
            {
                "row": sorted(found.aside),
                "reason": [found.aside[row][0] for row in sorted(found.aside)],
                "detail": [found.aside[row][1] for row in sorted(found.aside)],
            },
            schema=ASIDE_SCHEMA,
        ),
        f"{part_name(part)}.texts.arrow": pa.table(
            {
                "digest_high": np.array([digests[key][0] for key in ordered], dtype=np.uint64),
                "digest_low": np.array([digests[key][1] for key in ordered], dtype=np.uint64),
                "text": ordered,
            },
            schema=TEXTS_SCHEMA,
        ),
    }
    files = {}
    for name, table in tables.items():
        with atomic_path(folder / name) as path:
            if name.endswith(".arrow"):
                write_arrow(path, table)
            else:
                pq.write_table(table, path, compression="zstd")
        files[name] = describe_table(folder / name, table)
    counts = {
        "documents_in": len(found.mentions) + len(found.aside),
        "set_aside": len(found.aside),
        "mentions_found": len(keys),
        "texts": len(ordered),
        "abbreviations_skipped": sum(result.abbreviations_skipped for result in found.mentions.values()),
    }
    reasons = Counter(reason for reason, _ in found.aside.values())
    return write_unit_manifest(
        folder / f"{part_name(part)}.json", made_from, counts, files, rejects_by_reason=dict(sorted(reasons.items()))
    )
