"""Whole-entity masking: shares, whole units, determinism."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_sequences import TOKENIZER, make_sequence

from kebiolm.data.masking import IGNORE, Masker, MaskingSettings
from kebiolm.data.shard_format import PackedSequence
from kebiolm.errors import UserError

MASK = TOKENIZER["mask_id"]


def make_masker(seed: int = 0, **options) -> Masker:
    return Masker(MaskingSettings(**options), TOKENIZER, seed)


def shares(masker: Masker, sequences: list[PackedSequence], epochs: int) -> np.ndarray:
    """Shares of [MASK], random and kept pieces among the non-special ones."""
    counts, total = np.zeros(3), 0
    for epoch in range(epochs):
        for sample_id, sequence in enumerate(sequences):
            ids, labels = masker.mask(sequence, epoch=epoch, sample_id=sample_id)
            chosen = labels != IGNORE
            masked, kept = ids[chosen] == MASK, ids[chosen] == labels[chosen]
            counts += [masked.sum(), (~masked & ~kept).sum(), kept.sum()]
            total += int((sequence.input_ids > MASK).sum())
    return counts / total


@pytest.mark.parametrize("outcome_per", ["unit", "piece"])
def test_shares_of_the_paper(outcome_per: str):
    rng = np.random.default_rng(3)
    sequences = [make_sequence(rng, [300, 150, 62]) for _ in range(60)]
    masked, replaced, kept = shares(make_masker(outcome_per=outcome_per), sequences, epochs=25)
    # 770,000 pieces: the standard deviation of the first share is about 0.0003.
    assert masked == pytest.approx(0.12, abs=0.001)
    assert replaced == pytest.approx(0.015, abs=0.0008)
    assert kept == pytest.approx(0.015, abs=0.0008)


def test_shares_hold_for_short_sequences_of_long_entities():
    rng = np.random.default_rng(4)
    sequences = [make_sequence(rng, [int(length)]) for length in rng.integers(4, 12, 400)]
    assert shares(make_masker(), sequences, epochs=15).sum() == pytest.approx(0.15, abs=0.008)


def test_each_sequence_is_near_its_share():
    sequence = make_sequence(np.random.default_rng(5), [512])
    for epoch in range(50):
        labels = make_masker().mask(sequence, epoch=epoch, sample_id=0)[1]
        assert abs((labels != IGNORE).sum() - 0.15 * 510) < 4  # the longest unit has 4 pieces


@settings(max_examples=80, deadline=None)
@given(
    lengths=st.lists(st.integers(3, 40), min_size=1, max_size=4),
    seed=st.integers(0, 2**31),
    whole_entity=st.booleans(),
    outcome_per=st.sampled_from(["unit", "piece"]),
)
def test_units_are_whole_and_special_pieces_untouched(lengths, seed, whole_entity, outcome_per):
    sequence = make_sequence(np.random.default_rng(seed), lengths)
    masker = make_masker(seed, whole_entity=whole_entity, outcome_per=outcome_per, probability=0.4)
    ids, labels = masker.mask(sequence, epoch=1, sample_id=7)
    chosen = labels != IGNORE
    special = np.isin(sequence.input_ids, TOKENIZER["special_ids"])
    assert not (chosen & special).any()
    np.testing.assert_array_equal(ids[~chosen], sequence.input_ids[~chosen])
    np.testing.assert_array_equal(labels[chosen], sequence.input_ids[chosen])
    # The only special piece that masking writes is [MASK].
    assert not np.isin(ids[chosen], [0, 1, 2, 3]).any()
    continues = sequence.word_starts == 0
    if whole_entity:
        continues = continues | (sequence.bio_labels == 2)
        for start, end in zip(sequence.mention_starts, sequence.mention_ends, strict=True):
            assert len(set(chosen[start:end])) == 1
    joined = np.flatnonzero(continues)
    np.testing.assert_array_equal(chosen[joined], chosen[joined - 1])
    if outcome_per == "unit":
        np.testing.assert_array_equal((ids == MASK)[joined], (ids == MASK)[joined - 1])


def test_an_entity_inside_a_word_takes_the_whole_word():
    base = make_sequence(np.random.default_rng(0), [8])
    # One word of six pieces, with an entity over its pieces 3 and 4.
    changed = {
        "input_ids": np.array([2, 10, 11, 12, 13, 14, 15, 3], np.int32),
        "word_starts": np.array([1, 1, 0, 0, 0, 0, 0, 1], np.uint8),
        "bio_labels": np.array([0, 0, 0, 1, 2, 0, 0, 0], np.uint8),
    }
    sequence = PackedSequence(**{field.name: getattr(base, field.name) for field in fields(base)} | changed)
    counts = {
        int((make_masker(probability=0.5).mask(sequence, epoch=epoch, sample_id=0)[1] != IGNORE).sum())
        for epoch in range(30)
    }
    assert counts == {0, 6}


def test_masks_follow_from_seed_epoch_and_sample_id_alone():
    sequence = make_sequence(np.random.default_rng(1), [100, 28])
    masker = make_masker(seed=11)
    first = masker.mask(sequence, epoch=2, sample_id=5)
    masker.mask(sequence, epoch=9, sample_id=1)  # other draws in between change nothing
    for again in (
        masker.mask(sequence, epoch=2, sample_id=5),
        make_masker(seed=11).mask(sequence, epoch=2, sample_id=5),
    ):
        np.testing.assert_array_equal(first[0], again[0])
        np.testing.assert_array_equal(first[1], again[1])
    for seed, epoch, sample_id in ((12, 2, 5), (11, 3, 5), (11, 2, 6)):
        other = make_masker(seed=seed).mask(sequence, epoch=epoch, sample_id=sample_id)
        assert (other[1] != first[1]).any()


def test_random_pieces_come_from_the_whole_vocabulary():
    sequence = make_sequence(np.random.default_rng(2), [512])
    masker = make_masker(mask_share=0.0, random_share=1.0, probability=0.9)
    drawn = set()
    for epoch in range(40):
        ids, labels = masker.mask(sequence, epoch=epoch, sample_id=0)
        drawn |= set(ids[labels != IGNORE].tolist())
    assert drawn == set(range(5, TOKENIZER["vocab_size"]))


def test_a_sequence_of_special_pieces_only_is_left_alone():
    sequence = make_sequence(np.random.default_rng(0), [2, 2])
    ids, labels = make_masker().mask(sequence, epoch=0, sample_id=0)
    np.testing.assert_array_equal(ids, sequence.input_ids)
    assert (labels == IGNORE).all()


@pytest.mark.parametrize(
    "options", [{"probability": 0.0}, {"mask_share": 0.9, "random_share": 0.2}, {"outcome_per": "token"}]
)
def test_impossible_settings_are_refused(options: dict):
    with pytest.raises(UserError):
        MaskingSettings(**options)
