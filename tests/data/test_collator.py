"""Batches: shapes, padding, positions, mentions."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from random_sequences import TOKENIZER

from kebiolm.data.collator import PretrainingCollator, without_targets
from kebiolm.data.entity_vocab import NIL_ROW
from kebiolm.data.masking import IGNORE
from kebiolm.data.shard_format import PackedShards


def make_batch(shards: PackedShards, sample_ids: list[int], **options):
    collator = PretrainingCollator.from_shards(shards, seed=0, **options)
    return collator([shards.train[index] for index in sample_ids], sample_ids, [0] * len(sample_ids))


def test_rows_hold_their_sequences(tiny_shards: PackedShards):
    sample_ids = [4, 0, 17, 21, 8, 12]
    batch = make_batch(tiny_shards, sample_ids)
    longest = max(len(tiny_shards.train[index]) for index in sample_ids)
    assert batch["input_ids"].shape[1] == -(-longest // 8) * 8
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())
    assert batch["sample_ids"].tolist() == sample_ids
    mentions, segment_begins = [], []
    for row, index in enumerate(sample_ids):
        sequence, used = tiny_shards.train[index], len(tiny_shards.train[index])
        labels, ids = batch["mlm_labels"][row].numpy(), batch["input_ids"][row].numpy()
        original = np.where(labels == IGNORE, ids, labels)
        np.testing.assert_array_equal(original[:used], sequence.input_ids)
        np.testing.assert_array_equal(batch["bio_labels"][row, :used], sequence.bio_labels)
        for name, padding in (
            ("input_ids", TOKENIZER["pad_id"]),
            ("document_index", 0),
            ("position_ids", 0),
            ("mlm_labels", IGNORE),
            ("bio_labels", IGNORE),
        ):
            assert (batch[name][row, used:] == padding).all(), name
        index_row, positions = batch["document_index"][row, :used], batch["position_ids"][row, :used]
        borders = [*sequence.document_starts.tolist(), used]
        for number, (start, end) in enumerate(pairwise(borders), start=1):
            assert (index_row[start:end] == number).all()
            assert positions[start:end].tolist() == list(range(end - start))
        segment_begins += [row * batch["input_ids"].shape[1] + begin for begin in borders[:-1]]
        if used < batch["input_ids"].shape[1]:
            segment_begins.append(row * batch["input_ids"].shape[1] + used)
        for start, end, entity in zip(
            sequence.mention_starts, sequence.mention_ends, sequence.mention_entities, strict=True
        ):
            mentions.append(([row, int(start), int(end)], IGNORE if entity == NIL_ROW else int(entity)))
    assert batch["mention_spans"].tolist() == [span for span, _ in mentions] == sorted(span for span, _ in mentions)
    assert batch["entity_labels"].tolist() == [entity for _, entity in mentions]
    assert batch["segment_offsets"].tolist() == [*segment_begins, batch["input_ids"].numel()]
    assert batch["mlm_positions"].tolist() == (batch["mlm_labels"].flatten() != IGNORE).nonzero().squeeze(1).tolist()
    assert IGNORE in batch["entity_labels"].tolist(), "the sample should have a mention outside the vocabulary"


def test_masks_do_not_depend_on_batch_mates(tiny_shards: PackedShards):
    together, alone = make_batch(tiny_shards, [2, 9, 5]), make_batch(tiny_shards, [9])
    used = len(tiny_shards.train[9])
    for name in ("input_ids", "mlm_labels"):
        assert torch.equal(together[name][1, :used], alone[name][0, :used])


def test_pad_to_max(tiny_shards: PackedShards):
    assert make_batch(tiny_shards, [0], pad_to_max=True)["input_ids"].shape == (1, 64)


def test_without_targets_keeps_the_input(tiny_shards: PackedShards):
    batch = make_batch(tiny_shards, [1, 2])
    bare = without_targets(batch)
    assert torch.equal(bare["input_ids"], batch["input_ids"])
    assert torch.equal(bare["mention_spans"], batch["mention_spans"])
    assert len(bare["mlm_positions"]) == 0
    assert all((bare[name] == IGNORE).all() for name in ("mlm_labels", "bio_labels", "entity_labels"))
    assert (batch["bio_labels"] != IGNORE).any(), "the given batch must stay as it was"
