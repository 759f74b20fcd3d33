"""Entity-level precision, recall and F1 of B/I/O label sequences (section 4.2).

A predicted entity is correct if first word, last word and type are those of a gold one. What is an entity where labels
do not fit together is read in two ways, which differ only there:

- as seqeval 1.2.2 and conlleval do by default, the figure that papers report: an I after O, or after another type,
  begins an entity;
- strictly: only B begins an entity (IOB2), and an I that continues none belongs to none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kebiolm.finetune.score import Score


@dataclass(frozen=True, slots=True, order=True)
class Entity:
    """Words of a sentence that form an entity."""

    start: int
    """First word."""
    end: int
    """The word after the last."""
    entity_type: str
    """Empty where types are ignored."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EntityScores:
    """Scores over all sentences of a split."""

    overall: Score
    """All entities together (micro average): the paper's F1."""
    strict: Score
    """The same in the strict reading, of gold and of predicted labels."""
    by_type: dict[str, Score]
    """One entry, of an empty name, where types are ignored."""

    def flat(self) -> dict[str, float]:
        """Metrics by name: f1, precision, recall, strict_f1, ...; and TYPE_f1, ... where there are types."""
        values = self.overall.flat() | self.strict.flat("strict_")
        for name, score in self.by_type.items():
            if name:
                values |= score.flat(f"{name}_")
        return values


def find_entities(labels: Sequence[str], *, strict: bool = False) -> list[Entity]:
    """Entities of one sentence, in text order.

    Args:
        labels: "O", "B", "I", or "B-TYPE", "I-TYPE", for each word.
        strict: read an I that continues nothing as O.
    """
    entities = []
    start: int | None = None
    open_type = ""
    for word, label in enumerate([*labels, "O"]):
        prefix, _, entity_type = label.partition("-")
        continues = prefix == "I" and start is not None and entity_type == open_type
        if continues:
            continue
        if start is not None:
            entities.append(Entity(start, word, open_type))
        begins = prefix == "B" or (prefix == "I" and not strict)
        start, open_type = (word, entity_type) if begins else (None, "")
    return entities


def entity_scores(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> EntityScores:
    """Compare predicted labels with gold ones.

    Args:
        gold: labels of each word, by sentence.
        predicted: labels of the same words.

    Raises:
        ValueError: sentences differ in number, or words in one.
    """
    by_type = _scores_by_type(gold, predicted, strict=False)
    strict = _scores_by_type(gold, predicted, strict=True)
    return EntityScores(overall=_total(by_type.values()), strict=_total(strict.values()), by_type=by_type)


def _scores_by_type(
    gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], *, strict: bool
) -> dict[str, Score]:
    correct_of, predicted_of, gold_of = Counter[str](), Counter[str](), Counter[str]()
    for number, (gold_labels, predicted_labels) in enumerate(zip(gold, predicted, strict=True)):
        if len(gold_labels) != len(predicted_labels):
            raise ValueError(f"sentence {number}: {len(gold_labels)} gold labels, {len(predicted_labels)} predicted")
        gold_entities = find_entities(gold_labels, strict=strict)
        predicted_entities = find_entities(predicted_labels, strict=strict)
        gold_of.update(entity.entity_type for entity in gold_entities)
        predicted_of.update(entity.entity_type for entity in predicted_entities)
        correct_of.update(entity.entity_type for entity in set(gold_entities) & set(predicted_entities))
    return {
        name: Score(correct=correct_of[name], predicted=predicted_of[name], gold=gold_of[name])
        for name in sorted(gold_of | predicted_of)
    }


def _total(scores: Iterable[Score]) -> Score:
    return sum(scores, start=Score(correct=0, predicted=0, gold=0))
