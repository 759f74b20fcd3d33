"""The order of the samples: once per epoch, the same for any number of processes, resumable by step number."""

from __future__ import annotations

import threading
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kebiolm.data.collator import PretrainingCollator
from kebiolm.data.loader import PretrainingLoader, evaluation_batches
from kebiolm.data.masking import IGNORE
from kebiolm.data.shard_format import PackedShards
from kebiolm.errors import UserError


def make_loader(shards: PackedShards, seed: int = 0, **options) -> PretrainingLoader:
    options = {"global_batch_size": 12, "micro_batch_size": 2} | options
    return PretrainingLoader(shards.train, PretrainingCollator.from_shards(shards, seed=seed), seed=seed, **options)


def ids_of_step(shards: PackedShards, step: int, world_size: int, **options) -> list[int]:
    loaders = [make_loader(shards, rank=rank, world_size=world_size, **options) for rank in range(world_size)]
    return [
        index for loader in loaders for batch in loader.step_batches(step) for index in batch["sample_ids"].tolist()
    ]


@pytest.mark.parametrize("world_size", [1, 2, 3, 6])
def test_every_sample_once_per_epoch(tiny_shards: PackedShards, world_size: int):
    # 30 samples in steps of 12: the borders of epochs lie inside steps, and 5 steps are 2 epochs.
    counts = Counter(index for step in range(5) for index in ids_of_step(tiny_shards, step, world_size))
    assert counts == dict.fromkeys(range(30), 2)
    first_epoch = [index for step in range(3) for index in ids_of_step(tiny_shards, step, 1)][:30]
    assert sorted(first_epoch) == list(range(30)) != first_epoch


@settings(max_examples=25, deadline=None)
@given(step=st.integers(0, 50), world_size=st.sampled_from([2, 3, 6]), micro=st.sampled_from([1, 2]))
def test_a_step_has_the_same_samples_for_any_division(tiny_shards, step, world_size, micro):
    alone = ids_of_step(tiny_shards, step, 1, micro_batch_size=12)
    assert Counter(ids_of_step(tiny_shards, step, world_size, micro_batch_size=micro)) == Counter(alone)


def test_a_global_batch_larger_than_the_split(tiny_shards: PackedShards):
    counts = Counter(ids_of_step(tiny_shards, 0, 1, global_batch_size=90, micro_batch_size=30))
    assert counts == dict.fromkeys(range(30), 3)


def test_samples_of_another_epoch_get_other_masks(tiny_shards: PackedShards):
    by_epoch = []
    loader = make_loader(tiny_shards, global_batch_size=30, micro_batch_size=30)
    for step in (0, 1):
        (batch,) = loader.step_batches(step)
        row = batch["sample_ids"].tolist().index(3)
        by_epoch.append(batch["mlm_labels"][row, : len(tiny_shards.train[3])])
    assert not torch.equal(*by_epoch)


def test_seeds_give_other_orders(tiny_shards: PackedShards):
    assert ids_of_step(tiny_shards, 0, 1, seed=0) != ids_of_step(tiny_shards, 0, 1, seed=1)


def test_iterate_gives_what_a_resumed_run_gives(tiny_shards: PackedShards):
    whole = list(make_loader(tiny_shards).iterate(0, 9))
    resumed = list(make_loader(tiny_shards).iterate(4, 9))
    assert [step for step, _ in whole] == list(range(9))
    for (step, batches), (again, same) in zip(whole[4:], resumed, strict=True):
        assert step == again
        for batch, copy in zip(batches, same, strict=True):
            assert all(torch.equal(batch[name], copy[name]) for name in batch)


def test_iterate_ends_its_thread_when_given_up(tiny_shards: PackedShards):
    steps = make_loader(tiny_shards).iterate(0, 10_000)
    next(steps)
    steps.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "kebiolm-loader"]


def test_iterate_raises_errors_of_its_thread(tiny_shards: PackedShards, monkeypatch: pytest.MonkeyPatch):
    loader = make_loader(tiny_shards)
    right = loader.step_batches

    def fail_at_step_2(step: int):
        if step == 2:
            raise OSError("disk is gone")
        return right(step)

    monkeypatch.setattr(loader, "step_batches", fail_at_step_2)
    seen = []
    with pytest.raises(OSError, match="disk is gone"):
        seen += [step for step, _ in loader.iterate(0, 5)]
    assert not [thread for thread in threading.enumerate() if thread.name == "kebiolm-loader"]


def test_number_of_steps(tiny_shards: PackedShards):
    assert make_loader(tiny_shards, epochs=1).steps_total == 3
    assert make_loader(tiny_shards, epochs=2).steps_total == 5
    assert make_loader(tiny_shards, epochs=0.4).steps_total == 1  # 0.4 x 30 is 12.000000000000002 as a double
    assert make_loader(tiny_shards, epochs=2, max_steps=4).steps_total == 4
    assert make_loader(tiny_shards, epochs=2, max_steps=9).steps_total == 9
    assert make_loader(tiny_shards).gradient_accumulation_steps == 6


def test_a_global_batch_that_cannot_be_divided_is_refused(tiny_shards: PackedShards):
    with pytest.raises(UserError, match=r"12 with micro_batch_size 5 in 2 processes.*multiple of 5 x 2 = 10; use 20"):
        make_loader(tiny_shards, micro_batch_size=5, world_size=2)


@pytest.mark.parametrize(("world_size", "batch_size"), [(1, 4), (2, 4), (3, 2), (4, 8)])
def test_evaluation_sees_each_sequence_once(tiny_shards: PackedShards, world_size: int, batch_size: int):
    collator = PretrainingCollator.from_shards(tiny_shards, seed=0)
    of_ranks = [
        list(evaluation_batches(tiny_shards.heldout, collator, batch_size=batch_size, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    assert len({len(batches) for batches in of_ranks}) == 1, "all processes need equally many batches"
    with_targets = [
        index
        for batches in of_ranks
        for batch in batches
        if (batch["bio_labels"] != IGNORE).any()
        for index in batch["sample_ids"].tolist()
    ]
    assert sorted(with_targets) == list(range(11))


def test_evaluation_masks_are_fixed(tiny_shards: PackedShards):
    collator = PretrainingCollator.from_shards(tiny_shards, seed=0)
    first, second = (
        list(evaluation_batches(tiny_shards.heldout, collator, batch_size=4, max_sequences=6)) for _ in range(2)
    )
    assert sum(len(batch["sample_ids"]) for batch in first) == 6
    for batch, again in zip(first, second, strict=True):
        assert all(torch.equal(batch[name], again[name]) for name in batch)
