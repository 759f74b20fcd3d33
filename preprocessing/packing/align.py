"""From characters to word pieces: texts are tokenized and their mentions become piece spans.

Many documents are worked on at once: pieces and characters are counted over all texts of a batch, one after the other
without a gap, so that one array holds what is to be said of all pieces, and one search aligns all mentions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Pieces:
    """The word pieces of D texts, P in all, without special ones."""

    ids: np.ndarray
    """[P] int32"""
    word_starts: np.ndarray
    """[P] bool, where a word begins."""
    starts: np.ndarray
    """[P] first character of each piece."""
    ends: np.ndarray
    """[P] character after each piece's last one."""
    document_starts: np.ndarray
    """[D + 1] first piece of each document; the last entry is P."""
    text_starts: np.ndarray
    """[D + 1] first character of each text; the last entry is the number of characters."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class AlignedMentions:
    """Mentions as piece spans, ascending and without overlap, and how many were lost."""

    spans: np.ndarray
    """[M, 2] first piece, and the piece after the last one."""
    sources: np.ndarray
    """[M] which of the given mentions each span is."""
    unaligned: int
    """Mentions none of whose characters are in any piece."""
    overlapping: int
    """Mentions that share a piece with an earlier one; the earlier one stays."""


def tokenize(tokenizer: Tokenizer, texts: Sequence[str]) -> Pieces:
    """Tokenize texts whole, with one thread."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    ids, words, offsets = [], [], []
    for text in texts:
        # Not `encode_batch`, which starts a thread for every core: the other cores belong to other workers.
        encoding = tokenizer.encode(text, add_special_tokens=False)
        ids.append(np.array(encoding.ids, dtype=np.int32))
        words.append(np.array(encoding.word_ids, dtype=np.int32))
        offsets.append(np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2))
    document_starts, text_starts = _starts(map(len, ids)), _starts(map(len, texts))
    characters = np.concatenate([np.empty((0, 2), np.int64), *offsets])
    characters += np.repeat(text_starts[:-1], np.diff(document_starts))[:, None]
    word_starts = np.diff(np.concatenate([np.empty(0, np.int32), *words]), prepend=-1) != 0
    word_starts[document_starts[:-1][np.diff(document_starts) > 0]] = True
    return Pieces(
        ids=np.concatenate([np.empty(0, np.int32), *ids]),
        word_starts=word_starts,
        starts=characters[:, 0],
        ends=characters[:, 1],
        document_starts=document_starts,
        text_starts=text_starts,
    )


def align_mentions(
    pieces: Pieces, documents: np.ndarray, mention_starts: np.ndarray, mention_ends: np.ndarray
) -> AlignedMentions:
    """Turn character spans into piece spans.

    A mention that begins or ends inside a piece is widened to the whole piece.

    Args:
        pieces: of D texts.
        documents: [N] text of each mention, 0 <= text < D, ascending.
        mention_starts: [N] first character of each mention in its own text, ascending within a text.
        mention_ends: [N] character after each mention's last one.
    """
    text_starts, text_ends = pieces.text_starts[documents], pieces.text_starts[documents + 1]
    # What lies beyond the text must not reach into the next one.
    starts = np.minimum(text_starts + mention_starts, text_ends)
    ends = np.minimum(text_starts + mention_ends, text_ends)
    firsts = np.searchsorted(pieces.ends, starts, side="right")
    lasts = np.searchsorted(pieces.starts, ends, side="left")
    sources = np.flatnonzero(firsts < lasts)
    firsts, lasts = firsts[sources], lasts[sources]
    stays = _without_overlap(firsts, lasts)
    return AlignedMentions(
        spans=np.stack([firsts, lasts], axis=1)[stays],
        sources=sources[stays],
        unaligned=len(documents) - len(sources),
        overlapping=int((~stays).sum()),
    )


def _without_overlap(firsts: np.ndarray, lasts: np.ndarray) -> np.ndarray:
    """[M] bool: spans that stay when, in their order, each one that overlaps an earlier one that stayed goes."""
    stays = np.ones(len(firsts), dtype=bool)
    covered = np.maximum.accumulate(lasts)
    # Only these can overlap; there are few, because mentions overlap only where they share a piece.
    for span in (1 + np.flatnonzero(firsts[1:] < covered[:-1])).tolist():
        before = span - 1
        while not stays[before]:
            before -= 1
        stays[span] = firsts[span] >= lasts[before]
    return stays


def _starts(lengths: Iterable[int]) -> np.ndarray:
    """[n + 1] where each of n runs begins, and where the last one ends."""
    return np.cumsum([0, *lengths])
