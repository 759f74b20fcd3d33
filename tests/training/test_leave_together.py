"""After a user's mistake nobody leaves before the first process has done its last work, and nobody waits for ever."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist
from torch import multiprocessing

from kebiolm.errors import UserError
from kebiolm.training import leave_together
from kebiolm.training.deepspeed_engine import init_distributed
from kebiolm.training.leave_together import first_process_leaves_first

LAST_WORK_S = 2.0


def meet_a_mistake(rank: int, folder: str, queue: multiprocessing.Queue) -> None:
    """One of two processes; the first one works on for two seconds."""
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=60))
    dist.barrier()
    began = time.monotonic()
    try:
        with first_process_leaves_first():
            try:
                raise UserError("x", got="a", expected="b", mend="c")
            finally:
                time.sleep(LAST_WORK_S if rank == 0 else 0.0)
    except UserError:
        queue.put((rank, time.monotonic() - began))
    dist.destroy_process_group()


def test_others_wait_for_the_first_process(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    processes = [context.Process(target=meet_a_mistake, args=(rank, str(tmp_path), queue)) for rank in range(2)]
    for process in processes:
        process.start()
    seconds = dict(queue.get(timeout=120) for _ in processes)
    for process in processes:
        process.join(timeout=60)
    assert LAST_WORK_S - 0.5 < seconds[1] < leave_together.SECONDS_TO_WAIT / 2


def test_others_do_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    init_distributed()
    monkeypatch.setattr(leave_together, "_KEY", "a key that nobody sets")
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    began = time.monotonic()
    with pytest.raises(UserError), first_process_leaves_first(seconds=0.5):
        raise UserError("x", got="a", expected="b", mend="c")
    assert 0.4 < time.monotonic() - began < 10
