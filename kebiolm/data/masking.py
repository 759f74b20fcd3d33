"""Whole-entity masking (paper section 3.2): all pieces of a word or of an entity are masked together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from kebiolm.data.shard_format import INSIDE, PackedSequence
from kebiolm.errors import UserError

IGNORE = -100  # label of a position that is not to be predicted

# Evaluation masks are drawn as those of one epoch that training never reaches, so they are the same at every step.
EVALUATION_EPOCH = 2**32 - 1

_MASK_STREAM = 1  # keeps these draws apart from those of the sample order, which has the same seed


@dataclass(frozen=True, kw_only=True)
class MaskingSettings:
    """How positions are chosen and what becomes of them; the defaults give the paper's 12% / 1.5%."""

    probability: float = 0.15
    """Share of the non-special pieces that are to be predicted."""
    mask_share: float = 0.8
    """Share of the chosen that become [MASK]: 12% of all."""
    random_share: float = 0.1
    """Share of the chosen that become a random piece: 1.5% of all; the rest (1.5%) is kept as it is."""
    whole_entity: bool = True
    """False: units are whole words only, the paper's ablation "-wem"."""
    outcome_per: str = "unit"
    """"unit": all pieces of a unit share one outcome; "piece": each piece draws its own."""

    def __post_init__(self) -> None:
        if not 0 < self.probability < 1:
            raise UserError("masking.probability", got=self.probability, expected="0 < p < 1", mend="use 0.15")
        if min(self.mask_share, self.random_share) < 0 or self.mask_share + self.random_share > 1:
            raise UserError(
                "masking.mask_share and random_share",
                got=f"{self.mask_share} and {self.random_share}",
                expected="shares >= 0 with a sum of at most 1",
                mend="use 0.8 and 0.1",
            )
        if self.outcome_per not in ("unit", "piece"):
            raise UserError("masking.outcome_per", got=self.outcome_per, expected="unit or piece", mend="use unit")


class Masker:
    """Draws the masks of packed sequences.

    A sample's masks follow from (seed, epoch, sample id) alone: each draw makes its own NumPy generator from these
    numbers. Batch size, number of ranks, order and resuming therefore cannot change them, and there is no state to
    save. (NumPy keeps `Generator` streams within one version, so pin NumPy to repeat a run exactly.)

    Args:
        settings: how many positions, and what becomes of them.
        tokenizer: the "tokenizer" entry of a shards manifest.
        seed: the run's seed.
    """

    def __init__(self, settings: MaskingSettings, tokenizer: Mapping[str, Any], seed: int) -> None:
        self._settings, self._seed = settings, seed
        self._mask_id = tokenizer["mask_id"]
        self._is_special = np.zeros(tokenizer["vocab_size"], dtype=bool)
        self._is_special[[tokenizer["cls_id"], tokenizer["sep_id"], tokenizer["pad_id"]]] = True
        never_drawn = np.zeros(tokenizer["vocab_size"], dtype=bool)
        never_drawn[tokenizer["special_ids"]] = True
        self._replacements = np.flatnonzero(~never_drawn)

    def mask(self, sequence: PackedSequence, *, epoch: int, sample_id: int) -> tuple[np.ndarray, np.ndarray]:
        """Mask one sequence.

        Units are drawn in random order until 15% of the non-special pieces are reached. The unit that would cross
        that mark is taken with the probability with which it would fit, so the expected number of chosen pieces
        is exactly the wanted one, also for short sequences and long entities.

        Args:
            sequence: L pieces.
            epoch: number of the pass over the data, or `EVALUATION_EPOCH`.
            sample_id: the sequence's number within its split.

        Returns:
            input_ids [L] int64 after masking, and labels [L] int64: the original id at chosen positions, `IGNORE`
            elsewhere.
        """
        settings = self._settings
        rng = np.random.default_rng([_MASK_STREAM, self._seed, epoch, sample_id])
        input_ids = sequence.input_ids.astype(np.int64)
        labels = np.full(len(input_ids), IGNORE, dtype=np.int64)

        starts, lengths = self._units(sequence)
        chosen = _choose_units(lengths, settings.probability, rng)
        starts, lengths = starts[chosen], lengths[chosen]

        # Positions of all pieces of the chosen units: each unit's start, repeated, plus a count within the unit.
        total = int(lengths.sum())
        before = np.cumsum(lengths) - lengths
        positions = np.repeat(starts - before, lengths) + np.arange(total)
        labels[positions] = input_ids[positions]

        draw = np.repeat(rng.random(len(starts)), lengths) if settings.outcome_per == "unit" else rng.random(total)
        replacements = self._replacements[rng.integers(len(self._replacements), size=total)]
        masked = draw < settings.mask_share
        replaced = ~masked & (draw < settings.mask_share + settings.random_share)
        input_ids[positions[masked]] = self._mask_id
        input_ids[positions[replaced]] = replacements[replaced]
        return input_ids, labels

    def _units(self, sequence: PackedSequence) -> tuple[np.ndarray, np.ndarray]:
        """Starts and lengths (in pieces) of the units without special pieces.

        A unit begins where a word begins outside of an entity. An entity that begins or ends inside a word thus
        takes the whole word with it, so that no rest of the word gives it away.
        """
        begins = sequence.word_starts.astype(bool)
        if self._settings.whole_entity:
            begins &= sequence.bio_labels != INSIDE
        starts = np.flatnonzero(begins)
        lengths = np.diff(starts, append=len(sequence))
        ordinary = ~self._is_special[sequence.input_ids[starts]]
        return starts[ordinary], lengths[ordinary]


def _choose_units(lengths: np.ndarray, probability: float, rng: np.random.Generator) -> np.ndarray:
    """Indices of units whose lengths sum to `probability` of all, exactly in expectation, nearly in each draw."""
    order = rng.permutation(len(lengths))
    reached = np.cumsum(lengths[order])
    wanted = probability * lengths.sum()
    count = int(np.searchsorted(reached, wanted, side="right"))
    if count < len(order):
        left = wanted - (reached[count - 1] if count else 0)
        count += int(rng.random() * lengths[order[count]] < left)
    return np.sort(order[:count])
