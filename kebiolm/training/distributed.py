"""Work that one process does for all."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist

from kebiolm.console import as_user_error
from kebiolm.errors import UserError

Result = TypeVar("Result")


def run_on_first_process(work: Callable[[], Result]) -> Result | None:
    """Run `work` on global rank 0 while the others wait; a user's mistake found there ends all of them.

    Without this the others would wait for a process that is gone, and end in a traceback about the network.

    Returns:
        What `work` returned on rank 0, None elsewhere.

    Raises:
        UserError: on every process, if `work` raised it, or was refused a file.
    """
    result, mistake = None, None
    if dist.get_rank() == 0:
        try:
            result = work()
        except (UserError, OSError) as error:
            mistake = as_user_error(error)
    box = [mistake]
    dist.broadcast_object_list(box, src=0)
    if box[0] is not None:
        raise box[0]
    return result


def decide_on_first_process(work: Callable[[], Result]) -> Result:
    """Run `work` on global rank 0 and tell all processes what it returned, so that all go the same way.

    Raises:
        UserError: on every process, if `work` raised it.
    """
    box = [run_on_first_process(work)]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def is_true_anywhere(flag: bool, device: torch.device) -> bool:
    """Whether `flag` is true on some process; all processes must call this, and all get the same answer."""
    votes = torch.tensor(int(flag), device=device)
    dist.all_reduce(votes)
    return bool(votes > 0)
