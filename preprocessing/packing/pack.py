"""`kebiolm pack`: an annotated corpus becomes packed training shards.

Two passes over the corpus: the first counts concepts and makes the entity vocabulary; the second tokenizes, aligns
mentions, cuts documents into segments, and packs these. One step per file: `align`, `segments`, `best_fit`; the format
of the output is in `kebiolm.data.shard_format`.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from kebiolm.console import console, progress
from kebiolm.data import entity_vocab
from kebiolm.data.entity_vocab import NIL_ROW, NUM_SPECIAL_ROWS, EntityVocab
from kebiolm.data.knowledge_base import KnowledgeBase
from kebiolm.data.shard_format import (
    BEGIN,
    FORMAT,
    HELDOUT,
    SPLITS,
    TOKENIZER_FOLDER,
    TRAIN,
    VERSION,
    PackedSequence,
    ShardWriter,
)
from kebiolm.data.tokenizer import describe_tokenizer, load_tokenizer, save_tokenizer
from kebiolm.errors import UserError
from kebiolm.files import atomic_folder, describe_file, has_format, sha256_of_json, write_json
from preprocessing.annotation.store import AnnotatedCorpus
from preprocessing.document import Document
from preprocessing.packing.align import TokenizedDocument, tokenize_documents
from preprocessing.packing.best_fit import NUM_SPECIAL_PIECES, SequencePacker
from preprocessing.packing.segments import UNIT_DOCUMENT, UNITS, segment_document

_TOKENIZED_TOGETHER = 256  # documents of one tokenizer call
_MIN_LENGTH = 8

# Rows of the summary, and after which of them a line is drawn.
_SUMMARY_ROWS = (
    ("documents", False),
    ("empty_documents", False),
    ("cut_documents", True),
    ("segments", False),
    ("sequences", False),
    ("pieces", False),
    ("fill_rate", True),
    ("mentions_in", False),
    ("mentions_kept", False),
    ("mentions_nil", True),
    ("mentions_beyond_cap", False),
    ("mentions_unaligned", False),
    ("mentions_overlapping", False),
    ("mentions_broken", False),
)


@dataclass(frozen=True, kw_only=True)
class PackSettings:
    """How documents become sequences; the defaults are the paper's where it says (section 4.1)."""

    max_length: int = 512
    """Most pieces of a sequence, [CLS] and [SEP] of every segment included."""
    max_mentions: int = 50
    """Most mentions of a sequence that are listed with their entity; the excess keeps its BIO labels."""
    unit: str = UNIT_DOCUMENT
    """"document": a segment is a document, cut only where it is too long; "sentence": a segment is a sentence."""
    min_count: int = 1
    """Concepts with fewer mentions get no row of the entity table; their mentions are NIL."""
    heldout: float = 0.01
    """Share of the documents for evaluation, chosen by a hash of the document id."""
    sequences_per_shard: int = 16384
    """Sequences of one file."""
    window: int = 8192
    """Segments that are packed together: more fill better and take more memory."""

    def __post_init__(self) -> None:
        for name, least in (("max_length", _MIN_LENGTH), ("max_mentions", 1), ("min_count", 1)):
            _check(name, getattr(self, name) >= least, getattr(self, name), f"at least {least}")
        for name in ("sequences_per_shard", "window"):
            _check(name, getattr(self, name) >= 1, getattr(self, name), "at least 1")
        _check("heldout", 0 <= self.heldout < 1, self.heldout, "0 <= heldout < 1")
        _check("unit", self.unit in UNITS, self.unit, " or ".join(UNITS))


@dataclass(kw_only=True)
class SplitCounts:
    """What became of the documents and mentions of one split; nothing is lost without being counted."""

    documents: int = 0
    empty_documents: int = 0
    """Documents without a single piece."""
    cut_documents: int = 0
    """Documents of more than one segment."""
    segments: int = 0
    sequences: int = 0
    pieces: int = 0
    """Special pieces included."""
    mentions_in: int = 0
    mentions_kept: int = 0
    """Mentions that are listed with their entity, NIL included."""
    mentions_nil: int = 0
    """Those of the kept whose concept is outside the entity vocabulary."""
    mentions_beyond_cap: int = 0
    """Mentions beyond `max_mentions`: BIO labels only."""
    mentions_unaligned: int = 0
    """Mentions without a piece."""
    mentions_overlapping: int = 0
    """Mentions that share a piece with an earlier one."""
    mentions_broken: int = 0
    """Mentions longer than a whole segment."""

    def add_document(self, document: TokenizedDocument, *, segments: int, broken: int) -> None:
        """Count one document and the losses before packing."""
        mentions = document.mentions
        self.documents += 1
        self.empty_documents += segments == 0
        self.cut_documents += segments > 1
        self.segments += segments
        self.mentions_in += len(mentions.spans) + mentions.unaligned + mentions.overlapping
        self.mentions_unaligned += mentions.unaligned
        self.mentions_overlapping += mentions.overlapping
        self.mentions_broken += broken

    def add_sequence(self, sequence: PackedSequence) -> None:
        """Count one packed sequence."""
        kept = len(sequence.mention_starts)
        self.sequences += 1
        self.pieces += len(sequence)
        self.mentions_kept += kept
        self.mentions_nil += int((sequence.mention_entities == NIL_ROW).sum())
        self.mentions_beyond_cap += int((sequence.bio_labels == BEGIN).sum()) - kept

    def as_dict(self, max_length: int) -> dict[str, Any]:
        """All counts and the share of positions that hold a piece; checks that no mention is missing."""
        lost = self.mentions_beyond_cap + self.mentions_unaligned + self.mentions_overlapping + self.mentions_broken
        assert self.mentions_in == self.mentions_kept + lost, "mentions in = mentions kept + mentions lost"
        fill = self.pieces / (self.sequences * max_length) if self.sequences else 0.0
        return {**asdict(self), "fill_rate": round(fill, 6)}


@dataclass(kw_only=True)
class _SplitOutput:
    """Where the segments of one split go."""

    packer: SequencePacker
    writer: ShardWriter
    counts: SplitCounts = field(default_factory=SplitCounts)

    def write(self, sequences: Iterable[PackedSequence]) -> None:
        for sequence in sequences:
            self.counts.add_sequence(sequence)
            self.writer.add(sequence)


def pack(
    annotated: Path,
    tokenizer: Path,
    out: Path,
    *,
    settings: PackSettings | None = None,
    knowledge_base: Path | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Pack an annotated corpus into a shards folder.

    The same corpus, tokenizer and settings give the same bytes.

    Args:
        annotated: folder made by `kebiolm annotate`.
        tokenizer: folder of a word-piece tokenizer.
        out: the shards folder to make.
        settings: lengths, cap, split.
        knowledge_base: folder made by `kebiolm kb build`, for the names and semantic types in the entity vocabulary.
        overwrite: replace an earlier shards folder at `out`.

    Returns:
        The manifest that was written.

    Raises:
        UserError: an input folder is broken, `out` may not be written, or there is nothing to train on.
    """
    settings = settings or PackSettings()
    corpus = AnnotatedCorpus.load(annotated)
    base = KnowledgeBase.load(knowledge_base) if knowledge_base else None
    pieces = load_tokenizer(tokenizer)
    inputs = [annotated, tokenizer, *([knowledge_base] if knowledge_base else [])]
    with atomic_folder(
        out, overwrite=overwrite, is_ours=lambda folder: has_format(folder, FORMAT), inputs=inputs
    ) as folder:
        vocab = _build_vocabulary(corpus, settings, base)
        vocab.save(folder / entity_vocab.FILE_NAME)
        names = [f"{TOKENIZER_FOLDER}/{name}" for name in save_tokenizer(pieces, folder / TOKENIZER_FOLDER)]
        description = describe_tokenizer(pieces)
        splits = {split: _open_split(folder, split, settings, description) for split in SPLITS}
        with progress("packing", len(corpus), "documents") as advance:
            for batch in _batches(corpus.iter_documents(), _TOKENIZED_TOGETHER):
                for document, tokenized in zip(batch, tokenize_documents(pieces, batch, vocab), strict=True):
                    _pack_document(
                        tokenized, document.text, splits[split_of(document.doc_id, settings.heldout)], settings
                    )
                advance(len(batch))
        files = {name: describe_file(folder / name) for name in [entity_vocab.FILE_NAME, *names]}
        for output in splits.values():
            output.write(output.packer.finish())
            files |= output.writer.close()
        if not splits[TRAIN].counts.sequences:
            raise UserError(
                annotated,
                got=f"{splits[TRAIN].counts.documents} documents to train on, none with text",
                expected="at least one",
                mend="annotate more documents, or lower --heldout",
            )
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "settings": asdict(settings),
            "source": {
                "annotated_manifest_sha256": sha256_of_json(corpus.manifest),
                "knowledge_base": base.fingerprint if base else None,
            },
            "tokenizer": description,
            "entity_vocab": {"rows": len(vocab), "sha256": vocab.sha256},
            "counts": {split: output.counts.as_dict(settings.max_length) for split, output in splits.items()},
            "files": files,
        }
        write_json(folder / "manifest.json", manifest)
    return manifest


def split_of(doc_id: str, heldout: float) -> str:
    """Split of a document, from its id alone: the same in every corpus, whatever its place."""
    digest = hashlib.sha256(doc_id.encode("utf-8")).digest()
    return HELDOUT if int.from_bytes(digest[:8], "big") < heldout * 2**64 else TRAIN


def print_summary(manifest: dict[str, Any], out: Path) -> None:
    """Print the counts of a shards folder as a table."""
    concepts = manifest["entity_vocab"]["rows"] - NUM_SPECIAL_ROWS
    table = Table(title=f"[bold]{escape(str(out))}[/]  {concepts:,} concepts", title_justify="left", title_style="")
    table.add_column("")
    for split in SPLITS:
        table.add_column(split, justify="right")
    for name, last_of_section in _SUMMARY_ROWS:
        values = [manifest["counts"][split][name] for split in SPLITS]
        cells = [f"{value:.2%}" if name == "fill_rate" else f"{value:,}" for value in values]
        table.add_row(name.replace("_", " "), *cells, end_section=last_of_section)
    console.print(table)
    if not manifest["counts"][HELDOUT]["sequences"]:
        console.print("[yellow]No held-out sequence: training cannot evaluate. Give a larger --heldout.[/]")


def _build_vocabulary(corpus: AnnotatedCorpus, settings: PackSettings, base: KnowledgeBase | None) -> EntityVocab:
    counts: Counter[str] = Counter()
    with progress("counting concepts", len(corpus), "documents") as advance:
        for document in corpus.iter_documents():
            counts.update(mention.cui for mention in document.mentions)
            advance(1)
    return EntityVocab.build(
        counts,
        min_count=settings.min_count,
        names=base.preferred_names() if base else None,
        semantic_types=base.semantic_types() if base else None,
    )


def _open_split(folder: Path, split: str, settings: PackSettings, tokenizer: dict[str, Any]) -> _SplitOutput:
    packer = SequencePacker(
        max_length=settings.max_length,
        max_mentions=settings.max_mentions,
        window=settings.window,
        cls_id=tokenizer["cls_id"],
        sep_id=tokenizer["sep_id"],
    )
    return _SplitOutput(
        packer=packer, writer=ShardWriter(folder, split, sequences_per_shard=settings.sequences_per_shard)
    )


def _pack_document(document: TokenizedDocument, text: str, output: _SplitOutput, settings: PackSettings) -> None:
    max_pieces = settings.max_length - NUM_SPECIAL_PIECES
    segments, broken = segment_document(document, text, max_pieces=max_pieces, unit=settings.unit)
    output.counts.add_document(document, segments=len(segments), broken=broken)
    for segment in segments:
        output.write(output.packer.add(segment))


def _batches(documents: Iterable[Document], size: int) -> Iterator[list[Document]]:
    documents = iter(documents)
    while batch := list(islice(documents, size)):
        yield batch


def _check(name: str, right: bool, got: object, expected: str) -> None:
    if not right:
        option = f"--{name.replace('_', '-')}"
        raise UserError(option, got=got, expected=expected, mend=f"give another {option}")
