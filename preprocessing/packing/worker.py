"""Does the units of a packing job: counts concepts, packs groups of parts, packs held-out segments.

The units hand each other files and small counts only, so they can be done by any process on any node that sees the
folders. At most one group's segments are in memory.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tokenizers import Tokenizer

from kebiolm.data import entity_vocab
from kebiolm.data.entity_vocab import NIL_ROW, EntityVocab
from kebiolm.data.shard_format import (
    HELDOUT,
    SPLITS,
    TOKENIZER_FOLDER,
    TRAIN,
    read_shard,
    shard_name,
    write_shard,
)
from kebiolm.errors import UserError
from kebiolm.files import verify_file
from preprocessing.annotation.store import AnnotatedCorpus, part_name
from preprocessing.packing.align import align_mentions, tokenize
from preprocessing.packing.best_fit import pack_segments
from preprocessing.packing.counts import SplitCounts
from preprocessing.packing.segments import NUM_SPECIAL_PIECES, cut_documents, make_segments
from preprocessing.packing.settings import PackSettings
from preprocessing.packing.units import GROUPS, HELDOUT_GROUPS, heldout_name, write_unit

_MEND = "run `kebiolm annotate` again; it makes only what is missing"


class PackWorker:
    """Does one unit after another in one process.

    Args:
        annotated: folder of annotated documents.
        out: the job's folder; tokenizer and entity vocabulary lie there before the first `pack_group`.
        settings: lengths, cap, split.
        special_ids: piece ids of [CLS] and [SEP].
        umask: file mode mask of the user, for the files that the worker writes.
    """

    def __init__(
        self, annotated: Path, out: Path, settings: PackSettings, special_ids: tuple[int, int], umask: int
    ) -> None:
        self._annotated, self._out, self._settings = annotated, out, settings
        self._special_ids, self._umask = special_ids, umask

    def load(self) -> None:
        """Open the corpus; apart from the constructor, so that a failure can be told from a death."""
        os.umask(self._umask)
        self._corpus = AnnotatedCorpus.load(self._annotated, check_hash=False)

    def count(self, parts: Sequence[int]) -> dict[str, int]:
        """Check the bytes of some parts, and count the mentions of each CUI in them."""
        counts: Counter[str] = Counter()
        for part in parts:
            name = f"{part_name(part)}.parquet"
            verify_file(self._corpus.path, name, self._corpus.manifest["files"][name], mend=_MEND)
            mentions = self._read_part(part, ["mentions.list.element.cui"])["mentions"]
            found = pc.struct_field(pc.list_flatten(mentions), "cui").value_counts()
            counts.update(dict(zip(found.field("values").to_pylist(), found.field("counts").to_pylist(), strict=True)))
        return dict(counts)

    def pack_group(self, group: int, groups: int, parts: Sequence[int]) -> dict[str, Any]:
        """Pack one group of parts into its shard; its held-out segments are put aside.

        Args:
            group: number of the group.
            groups: number of groups of the job.
            parts: numbers of the group's parts.

        Returns:
            The unit's manifest.
        """
        segments: dict[str, list[pa.RecordBatch]] = {split: [] for split in SPLITS}
        counts = {split: SplitCounts() for split in SPLITS}
        for part in parts:
            documents = self._read_part(part)
            splits = np.array([split_of(name, self._settings.heldout) for name in documents["doc_id"].to_pylist()])
            for split in SPLITS:
                rows, found = self._segment(documents.filter(pa.array(splits == split)))
                segments[split].append(rows)
                counts[split] += found
        shard, aside = shard_name(TRAIN, group, groups), heldout_name(group)
        sequences = pack_segments(pa.concat_batches(segments[TRAIN]), self._settings.max_length)
        counts[TRAIN] += _count_sequences(sequences)
        files = {
            shard: write_shard(self._out / shard, sequences),
            aside: write_shard(self._out / aside, pa.concat_batches(segments[HELDOUT])),
        }
        return write_unit(self._out, GROUPS, group, splits=counts, files=files)

    def pack_heldout(self, unit: int, units: int, waiting: dict[str, int]) -> dict[str, Any]:
        """Pack the held-out segments of some groups into one shard.

        Args:
            unit: number of the shard.
            units: number of held-out shards of the job.
            waiting: name and rows of each file of segments.

        Returns:
            The unit's manifest.
        """
        shard = shard_name(HELDOUT, unit, units)
        segments = pa.concat_batches([read_shard(self._out / name, rows) for name, rows in waiting.items()])
        sequences = pack_segments(segments, self._settings.max_length)
        files = {shard: write_shard(self._out / shard, sequences)}
        return write_unit(self._out, HELDOUT_GROUPS, unit, splits={HELDOUT: _count_sequences(sequences)}, files=files)

    def _segment(self, documents: pa.Table) -> tuple[pa.RecordBatch, SplitCounts]:
        """Tokenize documents, align their mentions, and cut them into segments."""
        texts = documents["text"].to_pylist()
        mentions = documents["mentions"].combine_chunks()
        documents_of_mentions = np.repeat(np.arange(len(texts)), mentions.value_lengths().to_numpy())
        starts, ends, cuis = (mentions.flatten().field(name) for name in ("start", "end", "cui"))

        pieces = tokenize(self._tokenizer, texts)
        aligned = align_mentions(pieces, documents_of_mentions, starts.to_numpy(), ends.to_numpy())
        cuts = cut_documents(
            pieces,
            aligned.spans,
            texts,
            max_pieces=self._settings.max_length - NUM_SPECIAL_PIECES,
            unit=self._settings.unit,
        )
        made = make_segments(
            pieces,
            cuts,
            documents["doc_id"].combine_chunks(),
            spans=aligned.spans,
            entities=self._vocabulary_rows(cuis)[aligned.sources],
            max_mentions=self._settings.max_mentions,
            special_ids=self._special_ids,
        )
        segments_of_documents = np.diff(np.searchsorted(cuts[:-1], pieces.document_starts))
        return made.rows, SplitCounts(
            documents=len(texts),
            empty_documents=int((segments_of_documents == 0).sum()),
            cut_documents=int((segments_of_documents > 1).sum()),
            mentions_in=len(starts),
            mentions_beyond_cap=made.beyond_cap,
            mentions_unaligned=aligned.unaligned,
            mentions_overlapping=aligned.overlapping,
            mentions_broken=made.broken,
        )

    def _vocabulary_rows(self, cuis: pa.Array) -> np.ndarray:
        """Row of the entity vocabulary of each CUI; each distinct one is looked up once."""
        encoded = cuis.dictionary_encode()
        rows = [self._vocabulary.row(cui) for cui in encoded.dictionary.to_pylist()]
        return np.array(rows, dtype=np.int32)[encoded.indices.to_numpy()]

    def _read_part(self, part: int, columns: list[str] | None = None) -> pa.Table:
        path = self._corpus.path / f"{part_name(part)}.parquet"
        try:
            with pq.ParquetFile(path) as file:
                # With one thread: the other cores belong to other workers.
                return file.read(columns=columns, use_threads=False)
        except pa.ArrowInvalid as error:
            raise UserError(path, got=f"an unreadable file ({error})", expected="Parquet", mend=_MEND) from None

    # Both are loaded when the first group is packed: to count concepts neither is needed, nor is the second there yet.

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        # Not through `transformers`, whose import would take each worker seconds and 200 MB.
        tokenizer = Tokenizer.from_file(str(self._out / TOKENIZER_FOLDER / "tokenizer.json"))
        tokenizer.encode_special_tokens = True  # "[MASK]" in a text is text, as in `kebiolm.data.tokenizer`
        return tokenizer

    @cached_property
    def _vocabulary(self) -> EntityVocab:
        return EntityVocab.load(self._out / entity_vocab.FILE_NAME)


def split_of(doc_id: str, heldout: float) -> str:
    """Split of a document, from its id alone: the same in every corpus, whatever its place."""
    digest = hashlib.sha256(doc_id.encode("utf-8")).digest()
    return HELDOUT if int.from_bytes(digest[:8], "big") < heldout * 2**64 else TRAIN


def _count_sequences(sequences: pa.RecordBatch) -> SplitCounts:
    """What has come through to the shard; the losses are counted before."""
    entities = sequences["mention_entities"].flatten().to_numpy()
    return SplitCounts(
        segments=len(sequences["document_starts"].flatten()),
        sequences=sequences.num_rows,
        pieces=len(sequences["input_ids"].flatten()),
        mentions_kept=len(entities),
        mentions_nil=int((entities == NIL_ROW).sum()),
    )
