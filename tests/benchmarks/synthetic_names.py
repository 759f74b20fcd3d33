"""Grow a knowledge base's names to the size of UMLS: new names made of the words and morphemes of the real ones.

Each new name starts from a real one, so that lengths stay as they are, and is changed in one to three ways:

    other word    one of its words gives way to a word of other real names, drawn as often as it stands there
    new word      one of its long words is crossed with another at two letters that both have ("nephr-opathy")
    qualifier     a side, stage, type, strength or form is added or a number changed, as in the drug and injury names
                  that make up much of UMLS

Names come in families, as in UMLS: a new concept has 1 to 8 names (3 on average) that are changes of each other. The
real names and their concepts stay in.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import pyarrow as pa

_LONG_WORD = 7
_SIDES = ("left", "right", "bilateral", "proximal", "distal", "upper", "lower", "anterior", "posterior")
_TAILS = (
    "NOS", "disorder", "finding", "unspecified", "initial encounter", "sequela", "not elsewhere classified",
    "Oral Tablet", "Injectable Solution", "Topical Cream", "Extended Release Oral Capsule", "measurement", "antibody",
    "protein, human", "gene", "mutation", "specimen", "procedure", "stage I", "stage II", "stage IIIA", "grade 3",
)  # fmt: skip
_FAMILY_SIZES = (1, 1, 2, 2, 3, 3, 4, 8)


def grow_names(names: Sequence[str], cuis: Sequence[str], total: int, *, seed: int = 0) -> pa.Table:
    """Real names and new ones, `total` distinct names in all, as columns "name" and "cui" in no particular order."""
    draw = random.Random(seed)
    words = [word for name in names for word in name.split()]
    long_words = [word for word in words if len(word) >= _LONG_WORD]
    crossings: dict[str, list[str]] = {}
    for word in long_words:
        crossings.setdefault(word[-5:-3].lower(), []).append(word)
    known, new_names, new_cuis = set(names), [], []
    concept = 0
    while len(known) < total:
        concept += 1
        name = draw.choice(names)
        for _ in range(draw.choice((1, 2, 3))):
            name = _change(draw, name, words, crossings)
        for _ in range(draw.choice(_FAMILY_SIZES)):
            if name not in known and len(known) < total:
                known.add(name)
                new_names.append(name)
                new_cuis.append(f"S{concept:07d}")
            name = _change(draw, name, words, crossings)
    return pa.table({"name": [*names, *new_names], "cui": [*cuis, *new_cuis]})


def _change(draw: random.Random, name: str, words: list[str], crossings: dict[str, list[str]]) -> str:
    parts = name.split() or [draw.choice(words)]
    place = draw.randrange(len(parts))
    kind = draw.random()
    if kind < 0.4:
        parts[place] = draw.choice(words)
    elif kind < 0.75:
        parts[place] = _cross(draw, max(parts, key=len) if len(parts[place]) < _LONG_WORD else parts[place], crossings)
    elif kind < 0.85:
        parts.insert(place, draw.choice(_SIDES))
    elif kind < 0.92:
        parts.append(f"{draw.choice((1, 2, 2.5, 5, 10, 20, 25, 40, 50, 75, 100, 250, 500))} MG")
    else:
        parts.append(draw.choice(_TAILS))
    # Long families would grow without end: what is added takes another word's place.
    if len(parts) > 12:
        del parts[draw.randrange(len(parts))]
    return " ".join(parts)


def _cross(draw: random.Random, word: str, crossings: dict[str, list[str]]) -> str:
    """The beginning of one word and the end of another, joined at two letters that both have."""
    for _ in range(4):
        cut = draw.randrange(2, max(3, len(word) - 2))
        if others := crossings.get(word[cut : cut + 2].lower()):
            return word[:cut] + draw.choice(others)[-5:]
    return word + draw.choice(("ine", "ol", "ase", "itis", "osis", "emia", "ide", "ate"))
