"""Which samples belong to which optimizer step, process and micro batch.

The order is a pure function, so there is nothing to save for a resume but the step number: the stream of samples is a
permutation of epoch 0, then one of epoch 1, and so on; step k takes stream[k * G : (k + 1) * G], where G is the global
batch size. How these G samples are dealt to processes and micro batches never changes which samples they are.
"""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Iterator
from fractions import Fraction

import numpy as np

from kebiolm.data.collator import Batch, PretrainingCollator, without_targets
from kebiolm.data.masking import EVALUATION_EPOCH
from kebiolm.data.shard_format import ShardSplit
from kebiolm.errors import UserError

_ORDER_STREAM = 2  # keeps these draws apart from those of the masks, which have the same seed
_PREFETCHED_STEPS = 4
_POLL_S = 0.1


class PretrainingLoader:
    """One process's micro batches of every optimizer step.

    Args:
        split: the training sequences, N of them.
        collator: makes batches.
        seed: decides the order of the samples.
        global_batch_size: G, samples of one optimizer step over all processes.
        micro_batch_size: samples of one forward pass of one process.
        rank: number of this process, 0 <= rank < world_size.
        world_size: number of processes.
        epochs: passes over the split; decides `steps_total` only.
        max_steps: number of steps, whatever `epochs` says.
        pin_memory: `iterate` leaves batches in page-locked memory, from which a GPU copies while the host goes on;
            needs CUDA.

    Raises:
        UserError: there is no sample, or G does not divide into processes and micro batches.
    """

    def __init__(
        self,
        split: ShardSplit,
        collator: PretrainingCollator,
        *,
        seed: int,
        global_batch_size: int,
        micro_batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        epochs: float = 1.0,
        max_steps: int | None = None,
        pin_memory: bool = False,
    ) -> None:
        assert 0 <= rank < world_size
        if len(split) == 0:
            raise UserError("shards", got="no training sequence", expected="at least one", mend="pack more documents")
        per_pass = micro_batch_size * world_size
        if global_batch_size % per_pass:
            raise UserError(
                "global_batch_size",
                got=f"{global_batch_size} with micro_batch_size {micro_batch_size} in {world_size} processes",
                expected=f"a multiple of {micro_batch_size} x {world_size} = {per_pass}",
                mend=f"use {math.ceil(global_batch_size / per_pass) * per_pass}, or another micro_batch_size",
            )
        self._split, self._collator, self._seed = split, collator, seed
        self._global_batch_size, self._micro_batch_size = global_batch_size, micro_batch_size
        self._rank, self._world_size, self._pin_memory = rank, world_size, pin_memory
        self._permutation: tuple[int, np.ndarray] | None = None
        # As a fraction, because 0.1 epochs of 30 samples in floating point is a little more than 3 samples.
        samples = Fraction(str(epochs)) * len(split)
        steps = math.ceil(samples / global_batch_size)
        self.steps_total = steps if max_steps is None else max_steps
        """Optimizer steps of the whole run; the last one is filled up from the next epoch."""
        self.gradient_accumulation_steps = global_batch_size // per_pass
        """Micro batches of one process in one optimizer step."""

    def step_batches(self, step: int) -> list[Batch]:
        """This process's micro batches of one optimizer step, in order."""
        epochs, sample_ids = self._samples(step)
        # Micro batch i of all processes is one block of the step, cut into equal slices, one for each process.
        shape = (self.gradient_accumulation_steps, self._world_size, self._micro_batch_size)
        mine = zip(sample_ids.reshape(shape)[:, self._rank], epochs.reshape(shape)[:, self._rank], strict=True)
        return [self._collator([self._split[int(i)] for i in ids], ids, of_epoch) for ids, of_epoch in mine]

    def iterate(self, first_step: int, last_step: int) -> Iterator[tuple[int, list[Batch]]]:
        """Yield (step, micro batches) for first_step <= step < last_step.

        A background thread prepares a few steps ahead, so that masking happens while the model computes. It ends
        with the iteration, also when that is given up early; its errors are raised here.
        """
        ready: queue.Queue[tuple[int, list[Batch]] | BaseException] = queue.Queue(maxsize=_PREFETCHED_STEPS)
        stop = threading.Event()

        def put(item: tuple[int, list[Batch]] | BaseException) -> None:
            while not stop.is_set():
                try:
                    return ready.put(item, timeout=_POLL_S)
                except queue.Full:
                    continue

        def work() -> None:
            try:
                for step in range(first_step, last_step):
                    if stop.is_set():
                        return
                    batches = self.step_batches(step)
                    put((step, [_pinned(batch) for batch in batches] if self._pin_memory else batches))
            except BaseException as error:
                put(error)

        worker = threading.Thread(target=work, name="kebiolm-loader", daemon=True)
        worker.start()
        try:
            for _ in range(first_step, last_step):
                item = ready.get()
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            stop.set()
            worker.join()

    def _samples(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Epochs [G] and sample ids [G] of one optimizer step; a step may reach over the end of an epoch."""
        places = np.arange(step * self._global_batch_size, (step + 1) * self._global_batch_size)
        epochs, within = np.divmod(places, len(self._split))
        sample_ids = np.empty_like(places)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            sample_ids[here] = self._order(int(epoch))[within[here]]
        return epochs, sample_ids

    def _order(self, epoch: int) -> np.ndarray:
        """Permutation of all sample ids for one epoch; the newest one is kept."""
        kept = self._permutation
        if kept is None or kept[0] != epoch:
            rng = np.random.default_rng([_ORDER_STREAM, self._seed, epoch])
            kept = self._permutation = (epoch, rng.permutation(len(self._split)))
        return kept[1]


def _pinned(batch: Batch) -> Batch:
    return {name: tensor.pin_memory() for name, tensor in batch.items()}


def evaluation_batches(
    split: ShardSplit,
    collator: PretrainingCollator,
    *,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    max_sequences: int | None = None,
) -> Iterator[Batch]:
    """One process's share of a split, each sample once over all processes, with the same masks at every call.

    All processes get equally many batches, because under ZeRO-3 a forward pass needs them all. A process whose share
    is shorter gets a last batch without targets, which adds nothing to sums and counts.

    Args:
        split: the held-out sequences; nothing is yielded where it is empty.
        collator: makes batches.
        batch_size: sequences of one batch.
        rank: number of this process.
        world_size: number of processes.
        max_sequences: use the first so many sequences only; None: all.
    """
    total = len(split) if max_sequences is None else min(len(split), max_sequences)
    for first in range(0, total, batch_size * world_size):
        mine = range(first + rank * batch_size, min(first + (rank + 1) * batch_size, total))
        sample_ids = mine or range(1)
        sequences = [split[index] for index in sample_ids]
        batch = collator(sequences, sample_ids, [EVALUATION_EPOCH] * len(sequences))
        yield batch if mine else without_targets(batch)
