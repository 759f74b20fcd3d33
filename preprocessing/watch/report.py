"""The report of an annotation job, written at its end as `report.html` and by `kebiolm annotation-report` later."""

from __future__ import annotations

from pathlib import Path

from kebiolm.data import shard_format
from kebiolm.data.knowledge_base import KnowledgeBase
from kebiolm.errors import UserError
from kebiolm.files import read_manifest, sha256_of_json, write_text
from preprocessing.annotation.store import AnnotatedCorpus
from preprocessing.watch.report_figures import collect_figures
from preprocessing.watch.report_page import make_report_page


def write_report(corpus_folder: Path, kb_folder: Path, out_file: Path, *, shards: Path | None = None) -> None:
    """Write the report of a finished folder as one HTML file; the same corpus gives the same bytes.

    One pass over the mentions; memory follows the number of distinct concepts, the file's size is bounded.

    Args:
        corpus_folder: made by `kebiolm annotate`.
        kb_folder: the knowledge base that it was linked to.
        out_file: the page to write; replaced where it exists.
        shards: folder made from these documents by `kebiolm pack`, for the figures of its training positions.

    Raises:
        UserError: a folder is unfinished or damaged, the knowledge base is another one, or the shards were packed from
            other documents.
    """
    corpus = AnnotatedCorpus.load(corpus_folder, check_hash=False)
    base = KnowledgeBase.load(kb_folder, check_hash=False)
    if base.fingerprint != corpus.manifest["settings"]["knowledge_base"]:
        mend = "give the folder that was given to `kebiolm annotate`"
        raise UserError(kb_folder, got="another knowledge base", expected="the one of the job", mend=mend)
    packed = None
    if shards is not None:
        packed = read_manifest(shards, shard_format.FORMAT, shard_format.VERSION, made_by=shard_format.MADE_BY)
        if packed.get("source", {}).get("annotated_manifest_sha256") != sha256_of_json(corpus.manifest):
            mend = "give the shards that were packed from this folder"
            raise UserError(shards, got="shards of other documents", expected=f"those of {corpus_folder}", mend=mend)
    write_text(out_file, make_report_page(collect_figures(corpus, base, packed)))
