"""Abbreviations that a text defines itself, "long form (SF)", by the rule of Schwartz and Hearst (2003).

Which long form belongs to which short form is decided by scispaCy's own functions; only the search around them is
another one, because scispaCy's detector compares every opening bracket with every closing one and then looks at each
token of the text in Python. The answers are the same, in time that grows with the text's length.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scispacy.abbreviation import filter_matches, find_abbreviation
from spacy.attrs import ORTH
from spacy.tokens import Doc, Span
from spacy.vocab import Vocab

# scispaCy's filter refuses all candidates with more tokens between the brackets.
_MAX_BRACKETED_TOKENS = 8


class AbbreviationFinder:
    """Finds the abbreviations of one text after another.

    Args:
        vocab: vocabulary of the pipeline that makes the texts' tokens.
    """

    def __init__(self, vocab: Vocab) -> None:
        self._opening, self._closing = vocab.strings.add("("), vocab.strings.add(")")

    def find(self, doc: Doc) -> dict[tuple[int, int], str]:
        """Characters [start, end) of each use of each abbreviation that `doc` defines -> its long form."""
        orths = doc.to_array(ORTH)
        long_forms: dict[tuple[int, int], str] = {}
        for short, long in self._definitions(doc, orths):
            for start in _occurrences(orths, orths[short.start : short.end]):
                use = doc[start : start + len(short)]
                # Two short forms that differ in spaces only have the same uses; scispaCy keeps the later long form.
                long_forms[use.start_char, use.end_char] = long
        return long_forms

    def _definitions(self, doc: Doc, orths: np.ndarray) -> Iterator[tuple[Span, str]]:
        """(short form, long form) of each definition; the first one of a short or a long form counts."""
        seen_short, seen_long = set[str](), set[str]()
        for long_candidate, short_candidate in filter_matches(self._bracketed(orths), doc):
            short, long = find_abbreviation(long_candidate, short_candidate)
            if not long or long.text in seen_long or short.text in seen_short:
                continue
            seen_short.add(short.text)
            seen_long.add(long.text)
            yield short, long.text

    def _bracketed(self, orths: np.ndarray) -> list[tuple[int, int, int]]:
        """The spans between an opening and a later closing bracket, as (0, first token, one past the last).

        Brackets may stand inside. In the order in which a spaCy matcher meets them: by end, then by start.
        """
        opening = np.flatnonzero(orths == self._opening)
        found = []
        for end in np.flatnonzero(orths == self._closing).tolist():
            first, last = np.searchsorted(opening, (end - 1 - _MAX_BRACKETED_TOKENS, end - 1))
            found += [(0, start + 1, end) for start in opening[first:last].tolist()]
        return found


def _occurrences(orths: np.ndarray, wanted: np.ndarray) -> list[int]:
    """Where the tokens `wanted` stand one after another in `orths`."""
    starts = np.flatnonzero(orths[: len(orths) - len(wanted) + 1] == wanted[0])
    for offset in range(1, len(wanted)):
        starts = starts[orths[starts + offset] == wanted[offset]]
    return starts.tolist()
