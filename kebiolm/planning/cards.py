"""Cards that a run may be planned for: memory, speed, and which precisions they have.

Peaks are those of the makers' data sheets for dense matrix products with fp32 sums, without sparsity. None of them was
measured here.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from kebiolm.errors import UserError

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Utilisation:
    """Share of a card's peak that training reaches, 0 to 1."""

    low: float
    likely: float
    high: float
    source: str
    """Where the shares come from."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """One GPU, or one process on a CPU."""

    name: str
    memory: int | None
    """Bytes that programs see, less than the name says; None: as much as the host has."""
    tflops: dict[str, float]
    """Peak by precision ("fp32", "fp16", "bf16"); absent: the card does not have it, or trains in it far too slowly."""
    utilisation: dict[str, Utilisation]
    """By precision."""

    @property
    def is_cpu(self) -> bool:
        """Whether a process computes on a CPU."""
        return self.memory is None


_VOLTA = Utilisation(
    low=0.20,
    likely=0.32,
    high=0.42,
    source="high: DeepSpeed's published BERT-large run on a V100, 53 TFLOPS at length 512; low, likely: assumed",
)
_TURING = Utilisation(low=0.12, likely=0.22, high=0.35, source="assumed: a T4 lowers its clock at 70 W")
_AMPERE = Utilisation(low=0.25, likely=0.38, high=0.50, source="assumed")
_HOPPER = Utilisation(
    low=0.20, likely=0.33, high=0.45, source="high: this project's target on Hopper; low, likely: assumed"
)
_FP32 = Utilisation(low=0.40, likely=0.55, high=0.75, source="assumed; without TF32")
_CPU = Utilisation(
    low=0.5,
    likely=1.0,
    high=1.2,
    source="of 37 GFLOPS a process with one core: measured here, AMD EPYC, 12 layers of 768, fp32",
)


def _gpu(name: str, gib: float, *, half: float, fp32: float, bf16: bool, utilisation: Utilisation) -> Card:
    tflops = {"fp32": fp32, "fp16": half} | ({"bf16": half} if bf16 else {})
    shares = {precision: _FP32 if precision == "fp32" else utilisation for precision in tflops}
    return Card(name=name, memory=int(gib * GIB), tflops=tflops, utilisation=shares)


CARDS = {
    card.name: card
    for card in (
        _gpu("v100-16gb", 15.8, half=125, fp32=15.7, bf16=False, utilisation=_VOLTA),
        _gpu("v100-32gb", 31.7, half=125, fp32=15.7, bf16=False, utilisation=_VOLTA),
        _gpu("t4", 14.6, half=65, fp32=8.1, bf16=False, utilisation=_TURING),
        _gpu("a10g", 22.1, half=70, fp32=31.2, bf16=True, utilisation=_AMPERE),
        _gpu("l4", 22.0, half=121, fp32=30.3, bf16=True, utilisation=_AMPERE),
        _gpu("l40s", 44.4, half=362, fp32=91.6, bf16=True, utilisation=_AMPERE),
        _gpu("a100-40gb", 39.4, half=312, fp32=19.5, bf16=True, utilisation=_AMPERE),
        _gpu("a100-80gb", 79.1, half=312, fp32=19.5, bf16=True, utilisation=_AMPERE),
        _gpu("h100", 79.1, half=989, fp32=67.0, bf16=True, utilisation=_HOPPER),
        _gpu("h200", 139.8, half=989, fp32=67.0, bf16=True, utilisation=_HOPPER),
        _gpu("rtx-3090", 23.6, half=71, fp32=35.6, bf16=True, utilisation=_AMPERE),
        _gpu("rtx-4090", 23.6, half=165, fp32=82.6, bf16=True, utilisation=_AMPERE),
        _gpu("rtx-5090", 31.3, half=210, fp32=105.0, bf16=True, utilisation=_AMPERE),
        _gpu("rtx-a6000", 47.4, half=155, fp32=38.7, bf16=True, utilisation=_AMPERE),
        # bf16 is emulated by many CPUs: no faster than fp32.
        Card(
            name="cpu",
            memory=None,
            tflops={"fp32": 0.037, "bf16": 0.037},
            utilisation={"fp32": _CPU, "bf16": _CPU},
        ),
    )
}


def find_card(name: str) -> Card:
    """The card of a name.

    Raises:
        UserError: there is none.
    """
    key = name.lower().replace("_", "-").replace(" ", "-")
    if key in CARDS:
        return CARDS[key]
    close = difflib.get_close_matches(key, CARDS, n=1, cutoff=0.4)
    mend = f"use {close[0]}" if close else "use the most similar one"
    raise UserError("--gpu", got=name, expected=f"one of {', '.join(CARDS)}", mend=mend)


def check_precision(card: Card, precision: str, path: object) -> None:
    """Refuse a precision that the card does not have.

    Args:
        card: to train on.
        precision: "fp32", "fp16" or "bf16".
        path: DeepSpeed's settings, which ask for it.

    Raises:
        UserError: with the setting to change.
    """
    if precision in card.tflops:
        return
    others = [other for other in ("fp16", "fp32") if other in card.tflops]
    file = str(path).replace(precision, others[0])
    raise UserError(path, got=f"{precision} on {card.name}", expected=" or ".join(others), mend=f"set deepspeed={file}")
