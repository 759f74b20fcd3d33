"""The end by a user's mistake: every process has met it, and the first one still has figures to put into safety.

A launcher ends all processes as soon as one is gone (Slurm at once, DeepSpeed's after 30 seconds), so the others wait.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

import torch.distributed as dist

from kebiolm.errors import UserError

SECONDS_TO_WAIT = 60.0
"""The others leave after so long in any case: a mistake may be one of theirs, of which the first process is unaware."""

_KEY = "kebiolm/first_process_is_done"


@contextmanager
def first_process_leaves_first(seconds: float = SECONDS_TO_WAIT) -> Iterator[None]:
    """Where the body ends with a user's mistake, hold it back until global rank 0 has left its own body.

    Args:
        seconds: to wait at most.

    Raises:
        UserError: the body's own.
    """
    # A key of the store rather than a barrier: nobody can be kept by a process that does something else. PyTorch gives
    # out the store that the processes found each other with by this name only.
    store = dist.distributed_c10d._get_default_store()
    try:
        yield
    except UserError:
        if dist.get_rank() != 0:
            # The limit is over, or the first process, which holds the store, is gone.
            with suppress(RuntimeError):
                store.wait([_KEY], timedelta(seconds=seconds))
        raise
    finally:
        if dist.get_rank() == 0:
            store.set(_KEY, "")
