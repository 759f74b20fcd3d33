"""What a user can choose about packing."""

from __future__ import annotations

from dataclasses import dataclass

from kebiolm.errors import UserError
from preprocessing.packing.segments import UNIT_DOCUMENT, UNITS

_MIN_LENGTH = 8


@dataclass(frozen=True, kw_only=True)
class PackSettings:
    """How documents become sequences; the defaults are the paper's where it says (section 4.1).

    Raises:
        UserError: a value that cannot be.
    """

    max_length: int = 512
    """Most pieces of a sequence, [CLS] and [SEP] of every segment included."""
    max_mentions: int = 50
    """Most mentions of a segment that are listed with their entity; the excess keeps its BIO labels. A segment is what
    the paper calls an input. A packed sequence holds several and has no cap of its own."""
    unit: str = UNIT_DOCUMENT
    """"document": a segment is a document, cut only where it is too long; "sentence": a segment is a sentence."""
    min_count: int = 1
    """Concepts with fewer mentions get no row of the entity table; their mentions are NIL."""
    heldout: float = 0.01
    """Share of the documents for evaluation, chosen by a hash of the document id."""
    documents_per_shard: int = 16384
    """Most documents that are packed together into one file: one unit of work, rework and memory. More only where one
    part of the annotated corpus alone has more."""

    def __post_init__(self) -> None:
        for name, least in (("max_length", _MIN_LENGTH), ("max_mentions", 1), ("min_count", 1)):
            _check(name, getattr(self, name) >= least, getattr(self, name), f"at least {least}")
        _check("heldout", 0 <= self.heldout < 1, self.heldout, "0 <= heldout < 1")
        _check("unit", self.unit in UNITS, self.unit, " or ".join(UNITS))
        _check("documents_per_shard", self.documents_per_shard >= 1, self.documents_per_shard, "at least 1")


def _check(name: str, right: bool, got: object, expected: str) -> None:
    if not right:
        option = f"--{name.replace('_', '-')}"
        raise UserError(option, got=got, expected=expected, mend=f"give another {option}")
