"""From characters to word pieces: documents are tokenized and their mentions become piece spans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from kebiolm.data.entity_vocab import EntityVocab
from preprocessing.document import Document

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class AlignedMentions:
    """Mentions as piece spans, sorted and without overlap, and how many were lost."""

    spans: np.ndarray
    """[M, 2] int32: first piece, and the piece after the last one."""
    sources: np.ndarray
    """[M] which of the given mentions each span is."""
    unaligned: int
    """Mentions none of whose characters are in any piece."""
    overlapping: int
    """Mentions that share a piece with an earlier one; the earlier one stays."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TokenizedDocument:
    """A document of n pieces, without special ones."""

    doc_id: str
    input_ids: np.ndarray
    """[n] int32"""
    word_starts: np.ndarray
    """[n] uint8, 1 where a word begins."""
    piece_starts: np.ndarray
    """[n] first character of each piece."""
    mentions: AlignedMentions
    mention_entities: np.ndarray
    """[M] int32, row of the entity vocabulary of each aligned mention."""


def align_mentions(
    mention_starts: Sequence[int], mention_ends: Sequence[int], piece_starts: np.ndarray, piece_ends: np.ndarray
) -> AlignedMentions:
    """Turn character spans into piece spans.

    A mention that begins or ends inside a piece is widened to the whole piece.

    Args:
        mention_starts: first character of each mention, ascending.
        mention_ends: character after each mention's last one.
        piece_starts: [n] first character of each piece, ascending.
        piece_ends: [n] character after each piece's last one, ascending.
    """
    firsts = np.searchsorted(piece_ends, mention_starts, side="right")
    lasts = np.searchsorted(piece_starts, mention_ends, side="left")
    spans, sources, unaligned, overlapping, covered = [], [], 0, 0, 0
    for source, (first, last) in enumerate(zip(firsts.tolist(), lasts.tolist(), strict=True)):
        if first >= last:
            unaligned += 1
        elif first < covered:
            overlapping += 1
        else:
            spans.append((first, last))
            sources.append(source)
            covered = last
    return AlignedMentions(
        spans=np.array(spans, dtype=np.int32).reshape(-1, 2),
        sources=np.array(sources, dtype=np.int64),
        unaligned=unaligned,
        overlapping=overlapping,
    )


def tokenize_documents(
    tokenizer: PreTrainedTokenizerFast, documents: Sequence[Document], vocab: EntityVocab
) -> list[TokenizedDocument]:
    """Tokenize a batch of documents and align their mentions; a batch uses all cores inside the tokenizer."""
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    encodings = backend.encode_batch([document.text for document in documents], add_special_tokens=False)
    tokenized = []
    for document, encoding in zip(documents, encodings, strict=True):
        offsets = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
        words = np.array(encoding.word_ids, dtype=np.int64)
        starts = [mention.start for mention in document.mentions]
        ends = [mention.end for mention in document.mentions]
        mentions = align_mentions(starts, ends, offsets[:, 0], offsets[:, 1])
        rows = [vocab.row(document.mentions[source].cui) for source in mentions.sources]
        tokenized.append(
            TokenizedDocument(
                doc_id=document.doc_id,
                input_ids=np.array(encoding.ids, dtype=np.int32),
                word_starts=(np.diff(words, prepend=-1) != 0).astype(np.uint8),
                piece_starts=offsets[:, 0],
                mentions=mentions,
                mention_entities=np.array(rows, dtype=np.int32),
            )
        )
    return tokenized
