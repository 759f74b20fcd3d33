"""Which settings to change so that a run fits a card: the fewest and cheapest changes first."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from kebiolm.errors import UserError
from kebiolm.planning.cards import Card
from kebiolm.planning.memory import Memory, predict_memory
from kebiolm.planning.workload import Workload, Zero, read_zero

GIB = 2**30
AMPLE = 0.85
"""Share of a card that a run should stay below: the arithmetic may be off by 15%, and nothing was measured on a GPU."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Change:
    """A run with other settings."""

    settings: tuple[str, ...]
    """As overrides of the command line."""
    workload: Workload
    memory: Memory

    @property
    def says(self) -> str:
        """The change as advice."""
        host = f" and {self.memory.host / GIB:.1f} GiB of host memory for each process" if self.memory.host else ""
        return f"set {' '.join(self.settings)} ({self.memory.total / GIB:.1f} GiB{host}; the same global batch)"


def check_fit(workload: Workload, card: Card, memory: Memory) -> None:
    """Refuse a run that does not fit its card, naming the settings with which it would.

    Raises:
        UserError: with the overrides to add.
    """
    if card.memory is None or memory.total <= card.memory:
        return
    change = find_fitting(workload, card)
    need = f"{memory.total / GIB:.1f} GiB at the {memory.moment}"
    mend = "use a card with more memory, or a smaller model" if change is None else change.says
    raise UserError(
        f"{workload.processes} x {card.name}", got=need, expected=f"at most {card.memory / GIB:.1f} GiB", mend=mend
    )


def find_fitting(workload: Workload, card: Card, *, share: float = 1.0) -> Change | None:
    """The first change that fits: a smaller micro batch, then also activation checkpointing, then also more ZeRO.

    The micro batch is the largest that fits and divides the batch of a process, so that accumulation makes it up: the
    run computes the same but for dropout, which is drawn for each micro batch. Below half of the asked one,
    checkpointing is tried, where it is off, before the micro batch is made smaller still.

    Args:
        workload: the run as asked.
        card: to fit into.
        share: of the card's memory that may be used, 0 to 1.
    """
    optimization = workload.config.optimization
    asked = optimization.micro_batch_size
    for settings, changed in _variants(workload):
        is_last_resort = bool(settings) or optimization.activation_checkpointing
        for size in _sizes(changed, smallest=1 if is_last_resort else -(-asked // 2)):
            smaller = _with(changed, micro_batch_size=size)
            memory = predict_memory(smaller, card)
            if card.memory is not None and memory.total <= share * card.memory:
                named = () if size == asked else (f"optimization.micro_batch_size={size}",)
                return Change(settings=(*named, *settings), workload=smaller, memory=memory)
    return None


def _variants(workload: Workload) -> Iterator[tuple[tuple[str, ...], Workload]]:
    """Settings to change beside the micro batch, cheapest first."""
    yield (), workload
    checkpointed = _with(workload, activation_checkpointing=True)
    saving: tuple[str, ...] = ()
    if not workload.config.optimization.activation_checkpointing:
        saving = ("optimization.activation_checkpointing=true",)
        yield saving, checkpointed
    for path, zero in _heavier(workload):
        of_zero = (f"deepspeed={path}",)
        yield of_zero, dataclasses.replace(workload, zero=zero)
        if saving:
            yield (*saving, *of_zero), dataclasses.replace(checkpointed, zero=zero)


def _heavier(workload: Workload) -> Iterator[tuple[Path, Zero]]:
    """The files beside the recipe's DeepSpeed settings that share more, in the same precision."""
    folder, now = workload.config.deepspeed.parent, workload.zero
    for name in ("zero2", "zero3", "zero3_offload"):
        path = folder / f"{name}_{now.precision}.json"
        if not path.is_file():
            continue
        zero = read_zero(path)
        if (zero.stage, zero.offloads_optimizer) > (now.stage, now.offloads_optimizer):
            yield path, zero


def _sizes(workload: Workload, *, smallest: int) -> Iterator[int]:
    """Micro batches up to the asked one that divide a process's batch, largest first."""
    optimization = workload.config.optimization
    of_process = optimization.global_batch_size // workload.processes
    for size in range(optimization.micro_batch_size, smallest - 1, -1):
        if of_process % size == 0:
            yield size


def _with(workload: Workload, **settings: object) -> Workload:
    """The run with other settings of its `optimization` section."""
    config = workload.config
    optimization = config.optimization.model_copy(update=settings)
    return dataclasses.replace(workload, config=config.model_copy(update={"optimization": optimization}))
