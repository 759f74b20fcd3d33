"""Abbreviations are those that scispaCy's detector finds, without its time that grows with the square of brackets."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterable
from pathlib import Path

import pytest
import spacy
from scispacy.abbreviation import AbbreviationDetector
from spacy.language import Language

from preprocessing.annotation.abbreviations import AbbreviationFinder
from preprocessing.sources.pubtator import GoldDocument, read_gold

WORDS = [
    "magnetic",
    "resonance",
    "imaging",
    "MRI",
    "mri",
    "MR",
    "r",
    "A",
    "AB",
    "A-B",
    "(AB)",
    "heart",
    "attack",
    "(HA)",
    "HA",
    "(",
    "(",
    "(",
    ")",
    ")",
    ")",
    ",",
    "-",
    '"',
    "]",
    "é́",
]


@pytest.fixture(scope="module")
def nlp() -> Language:
    return spacy.blank("en")


def compare(nlp: Language, texts: Iterable[str]) -> int:
    """Check that both find the same in each text; returns how many uses of abbreviations there were."""
    finder, total = AbbreviationFinder(nlp.vocab), 0
    for text in texts:
        detector = AbbreviationDetector(nlp)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"\[W036\]")  # its matcher is empty where a text defines none
            found = detector(nlp.make_doc(text))._.abbreviations
        expected = {(short.start_char, short.end_char): short._.long_form.text for short in found}
        assert finder.find(nlp.make_doc(text)) == expected, text
        total += len(expected)
    return total


def test_random_brackets_give_what_scispacy_finds(nlp: Language) -> None:
    rng = random.Random(0)
    texts = [" ".join(rng.choices([*WORDS, "", "\n"], k=rng.randint(0, 60))) for _ in range(1500)]
    assert compare(nlp, texts) > 1000


def test_real_abstracts_give_what_scispacy_finds(real_data: Path, nlp: Language) -> None:
    gold = read_gold(real_data / "corpora" / "cdr_train.pubtator.txt")
    assert compare(nlp, [document.text for document in gold if isinstance(document, GoldDocument)][:200]) > 400


def test_nested_and_repeated_definitions(nlp: Language) -> None:
    text = "Heart attack (HA) and high blood pressure (HBP). HA or HBP. Helium atom (HA) and HA."
    found = AbbreviationFinder(nlp.vocab).find(nlp.make_doc(text))
    uses = [(text[start:end], long_form) for (start, end), long_form in sorted(found.items())]
    # The first definition of a short form counts, for all its uses.
    assert uses == [
        ("HA", "Heart attack"),
        ("HBP", "high blood pressure"),
        ("HA", "Heart attack"),
        ("HBP", "high blood pressure"),
        ("HA", "Heart attack"),
        ("HA", "Heart attack"),
    ]


def test_no_brackets_no_abbreviations(nlp: Language) -> None:
    finder = AbbreviationFinder(nlp.vocab)
    for text in ("", "(", ")", "()", ") (", "( )", "Heart attack HA"):
        assert finder.find(nlp.make_doc(text)) == {}
