"""Precision, recall and F1 from counts."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """How well a set of predictions meets a set of gold answers; ratios without a denominator are 0."""

    correct: int
    predicted: int
    gold: int

    @property
    def precision(self) -> float:
        """Share of the predictions that are correct, 0 to 1."""
        return self.correct / self.predicted if self.predicted else 0.0

    @property
    def recall(self) -> float:
        """Share of the gold answers that were found, 0 to 1."""
        return self.correct / self.gold if self.gold else 0.0

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall, 0 to 1."""
        both = self.predicted + self.gold
        return 2 * self.correct / both if both else 0.0

    def __add__(self, other: Score) -> Score:
        return Score(
            correct=self.correct + other.correct,
            predicted=self.predicted + other.predicted,
            gold=self.gold + other.gold,
        )

    def flat(self, prefix: str = "") -> dict[str, float]:
        """{prefix + "precision", "recall", "f1": value}; in the prefix a character that MLflow refuses becomes "-"."""
        prefix = re.sub(r"[^\w./ -]", "-", prefix)
        return {f"{prefix}precision": self.precision, f"{prefix}recall": self.recall, f"{prefix}f1": self.f1}
