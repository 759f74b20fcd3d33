"""Stage 5: a slice's mentions and the links of their texts become a finished part; unlinked mentions are left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from preprocessing.annotation.find_stage import ASIDE_SCHEMA, FOUND_SCHEMA
from preprocessing.annotation.link_stage import LinkTable
from preprocessing.annotation.store import DOCUMENT_SCHEMA, part_name, reject_table, write_part
from preprocessing.annotation.unit_files import map_arrow
from preprocessing.sources.record import make_reject


def join_part(
    out: Path,
    work: Path,
    part: int,
    documents: pa.Table,
    rejects: pa.Table,
    *,
    links: LinkTable,
    cuis: pa.Array,
    source: str,
    abbreviations_skipped: int,
    made_from: str,
) -> dict[str, Any]:
    """Write one finished part.

    Args:
        out: the job's folder.
        work: its work folder.
        part: number of the part.
        documents: the slice's documents: doc_id, text.
        rejects: the slice's rejects.
        links: the links of all texts.
        cuis: the CUIs by concept number.
        source: name of the input file, for what is set aside.
        abbreviations_skipped: documents of the slice with too many brackets to look for abbreviations.
        made_from: fingerprint of the job.

    Returns:
        The part's manifest.
    """
    stem = work / "found" / part_name(part)
    aside = pq.read_table(stem.with_name(f"{stem.name}.aside.parquet"), schema=ASIDE_SCHEMA)
    mentions = pq.read_table(stem.with_name(f"{stem.name}.parquet"), schema=FOUND_SCHEMA)
    texts = map_arrow(stem.with_name(f"{stem.name}.texts.arrow"))
    concept_of_text, score_of_text = links.look_up(texts["digest_high"].to_numpy(), texts["digest_low"].to_numpy())

    text_of_mention = mentions["text"].to_numpy()
    concept = concept_of_text[text_of_mention]
    is_linked = concept >= 0
    linked = pa.StructArray.from_arrays(
        [
            mentions["start"].to_numpy()[is_linked],
            mentions["end"].to_numpy()[is_linked],
            cuis.take(pa.array(concept[is_linked])).cast(pa.string()),
            score_of_text[text_of_mention][is_linked],
        ],
        names=["start", "end", "cui", "score"],
    )
    is_kept = np.ones(documents.num_rows, dtype=bool)
    is_kept[aside["row"].to_numpy()] = False
    per_row = np.bincount(mentions["row"].to_numpy()[is_linked], minlength=documents.num_rows)[is_kept]
    offsets = pa.array(np.concatenate([[0], np.cumsum(per_row)]).astype(np.int32))
    kept = documents.filter(pa.array(is_kept)).append_column("mentions", pa.ListArray.from_arrays(offsets, linked))
    counts = {
        "mentions_found": mentions.num_rows,
        "mentions_linked": int(is_linked.sum()),
        "abbreviations_skipped": abbreviations_skipped,
    }
    all_rejects = pa.concat_tables([rejects, _set_aside(documents, aside, source)])
    return write_part(out, part, kept.cast(DOCUMENT_SCHEMA), all_rejects, counts, made_from=made_from)


def _set_aside(documents: pa.Table, aside: pa.Table, source: str) -> pa.Table:
    ids = documents["doc_id"].take(aside["row"]).to_pylist()
    why = zip(ids, aside["reason"].to_pylist(), aside["detail"].to_pylist(), strict=True)
    return reject_table(
        make_reject(doc_id=doc_id, source=source, reason=reason, detail=detail) for doc_id, reason, detail in why
    )
