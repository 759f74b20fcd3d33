"""From packed sequences to the tensors of one micro batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from kebiolm.data.entity_vocab import NIL_ROW
from kebiolm.data.masking import IGNORE, Masker, MaskingSettings
from kebiolm.data.shard_format import PackedSequence, PackedShards

_LENGTH_MULTIPLE = 8  # tensor cores want sizes that are multiples of 8

Batch = dict[str, Tensor]


class PretrainingCollator:
    """Masks packed sequences and puts them into one batch.

    Args:
        masker: draws the masks of each sample.
        pad_id: piece id outside of a row's sequence.
        pad_to: fixed length L of every batch; None: the longest row, rounded up to a multiple of 8.
    """

    def __init__(self, masker: Masker, *, pad_id: int, pad_to: int | None = None) -> None:
        self._masker, self._pad_id, self._pad_to = masker, pad_id, pad_to

    @classmethod
    def from_shards(
        cls, shards: PackedShards, *, seed: int, masking: MaskingSettings | None = None, pad_to_max: bool = False
    ) -> PretrainingCollator:
        """The collator for a shards folder; with `pad_to_max` every batch has the folder's full length."""
        tokenizer = shards.manifest["tokenizer"]
        masker = Masker(masking or MaskingSettings(), tokenizer, seed)
        return cls(masker, pad_id=tokenizer["pad_id"], pad_to=_round_up(shards.max_length) if pad_to_max else None)

    def __call__(self, sequences: Sequence[PackedSequence], sample_ids: Sequence[int], epochs: Sequence[int]) -> Batch:
        """Build one batch of B rows.

        Args:
            sequences: B sequences.
            sample_ids: number of each sequence within its split.
            epochs: pass over the data to which each sample belongs; it decides the masks.

        Returns:
            Tensors, all int64, L = padded length, N = mentions of all rows (no padding mentions), K = masked positions
            and S = segments of all rows, the padding of a row being one of them:
            "input_ids" [B, L] after masking;
            "document_index" [B, L], 0 = padding, 1.. = number of the segment in its row;
            "segment_offsets" [S + 1], where each segment begins in the flattened batch, at last B L;
            "position_ids" [B, L], from 0 in each segment;
            "mlm_labels" [B, L], original piece at masked positions, -100 elsewhere;
            "mlm_positions" [K], where these are in the flattened batch, ascending;
            "bio_labels" [B, L], 0 = O, 1 = B, 2 = I, -100 = padding;
            "mention_spans" [N, 3], (row, start, end exclusive), sorted;
            "entity_labels" [N], row of the entity table, -100 where the concept is outside the vocabulary;
            "sample_ids" [B].
        """
        rows = len(sequences)
        length = self._pad_to or _round_up(max(len(sequence) for sequence in sequences))
        input_ids = np.full((rows, length), self._pad_id, dtype=np.int64)
        document_index = np.zeros((rows, length), dtype=np.int64)
        position_ids = np.zeros((rows, length), dtype=np.int64)
        mlm_labels = np.full((rows, length), IGNORE, dtype=np.int64)
        bio_labels = np.full((rows, length), IGNORE, dtype=np.int64)
        spans, entities, segment_begins = [], [], []
        for row, (sequence, sample_id, epoch) in enumerate(zip(sequences, sample_ids, epochs, strict=True)):
            used = len(sequence)
            masked = self._masker.mask(sequence, epoch=int(epoch), sample_id=int(sample_id))
            input_ids[row, :used], mlm_labels[row, :used] = masked
            bio_labels[row, :used] = sequence.bio_labels
            segment_lengths = np.diff(sequence.document_starts, append=used)
            document_index[row, :used] = np.repeat(np.arange(1, len(segment_lengths) + 1), segment_lengths)
            position_ids[row, :used] = np.arange(used) - np.repeat(sequence.document_starts, segment_lengths)
            begins = sequence.document_starts if used == length else np.append(sequence.document_starts, used)
            segment_begins.append(row * length + begins)
            mention_rows = np.full(len(sequence.mention_starts), row)
            spans.append(np.stack([mention_rows, sequence.mention_starts, sequence.mention_ends], axis=1))
            entities.append(sequence.mention_entities)
        entity_rows = np.concatenate(entities).astype(np.int64)
        arrays = {
            "input_ids": input_ids,
            "document_index": document_index,
            "segment_offsets": np.concatenate([*segment_begins, [rows * length]]).astype(np.int64),
            "position_ids": position_ids,
            "mlm_labels": mlm_labels,
            "mlm_positions": np.flatnonzero(mlm_labels != IGNORE),
            "bio_labels": bio_labels,
            "mention_spans": np.concatenate(spans).astype(np.int64),
            "entity_labels": np.where(entity_rows == NIL_ROW, IGNORE, entity_rows),
            "sample_ids": np.asarray(sample_ids, dtype=np.int64),
        }
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


def without_targets(batch: Batch) -> Batch:
    """The same batch with nothing to predict: a forward pass over it adds nothing to any loss or metric."""
    labels = {name: torch.full_like(batch[name], IGNORE) for name in ("mlm_labels", "bio_labels", "entity_labels")}
    return {**batch, **labels, "mlm_positions": batch["mlm_positions"][:0]}


def _round_up(length: int) -> int:
    return -(-length // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE
