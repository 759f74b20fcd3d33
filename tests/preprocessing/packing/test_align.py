"""Characters to word pieces: spans, widening, lost mentions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kebiolm.data.entity_vocab import NIL_ROW, EntityVocab
from kebiolm.data.tokenizer import load_tokenizer
from preprocessing.document import Document, Mention
from preprocessing.packing.align import TokenizedDocument, align_mentions, tokenize_documents

VOCAB = EntityVocab.build({"C0004057": 1, "C0018681": 1})
# "aspirin treats": asp ##irin treats
STARTS, ENDS = np.array([0, 3, 8]), np.array([3, 7, 14])


@pytest.mark.parametrize(
    ("start", "end", "span"),
    [
        (0, 7, (0, 2)),
        (3, 7, (1, 2)),
        (1, 2, (0, 1)),  # inside one piece
        (2, 9, (0, 3)),  # begins and ends inside pieces
        (6, 8, (1, 2)),  # takes the white space after it
        (0, 100, (0, 3)),
    ],
)
def test_spans_widen_to_whole_pieces(start: int, end: int, span: tuple[int, int]):
    aligned = align_mentions([start], [end], STARTS, ENDS)
    assert aligned.spans.tolist() == [list(span)]
    assert (aligned.unaligned, aligned.overlapping) == (0, 0)


def test_lost_mentions_are_counted():
    # White space only; beyond the text; two halves of one piece, of which the first stays.
    aligned = align_mentions([0, 1, 7, 50], [1, 2, 8, 60], STARTS, ENDS)
    assert aligned.spans.tolist() == [[0, 1]] and aligned.sources.tolist() == [0]
    assert (aligned.unaligned, aligned.overlapping) == (2, 1)


def test_a_text_without_pieces():
    aligned = align_mentions([0], [1], np.zeros(0, np.int64), np.zeros(0, np.int64))
    assert aligned.spans.shape == (0, 2) and aligned.unaligned == 1


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 8)), max_size=8), st.lists(st.integers(1, 5), max_size=12))
def test_every_mention_is_a_span_or_counted(mentions, lengths):
    starts = np.cumsum([0, *lengths])[:-1]
    ends = starts + np.array(lengths, dtype=int) - 1  # zero-width pieces occur where a length is 1
    mentions = sorted(mentions)
    firsts, lasts = [start for start, _ in mentions], [start + size for start, size in mentions]
    aligned = align_mentions(firsts, lasts, starts, ends)
    assert len(aligned.spans) + aligned.unaligned + aligned.overlapping == len(mentions)
    flat = aligned.spans.ravel().tolist()
    assert flat == sorted(flat)
    for (first, last), source in zip(aligned.spans, aligned.sources, strict=True):
        # Each covered piece touches the mention.
        assert (starts[first:last] < lasts[source]).all() and (ends[first:last] > firsts[source]).all()


def tokenize(folder: Path, document: Document) -> tuple[TokenizedDocument, list[str]]:
    tokenizer = load_tokenizer(folder)
    (tokenized,) = tokenize_documents(tokenizer, [document], VOCAB)
    return tokenized, tokenizer.convert_ids_to_tokens(tokenized.input_ids.tolist())


def test_a_document_with_its_mentions(tiny_tokenizer_folder: Path):
    mentions = (
        Mention(start=4, end=11, cui="C0004057", score=1.0),
        Mention(start=24, end=32, cui="C9999999", score=0.9),
    )
    document = Document(doc_id="1", text="The Aspirin\ttreats  the HEADACHE.", mentions=mentions)
    tokenized, pieces = tokenize(tiny_tokenizer_folder, document)
    assert pieces == ["the", "asp", "##irin", "treats", "the", "head", "##ache", "."]
    assert tokenized.word_starts.tolist() == [1, 1, 0, 1, 1, 1, 0, 1]
    assert tokenized.mentions.spans.tolist() == [[1, 3], [5, 7]]
    assert tokenized.mention_entities.tolist() == [VOCAB.row("C0004057"), NIL_ROW]
    assert [document.text[position] for position in tokenized.piece_starts] == list("TAittHA.")


def test_special_pieces_in_the_text_are_text(tiny_tokenizer_folder: Path):
    document = Document(doc_id="1", text="the [MASK] [SEP] pain")
    _, pieces = tokenize(tiny_tokenizer_folder, document)
    assert not {"[MASK]", "[SEP]"} & set(pieces)
    assert "".join(piece.removeprefix("##") for piece in pieces) == "the[mask][sep]pain"


def test_characters_that_vanish(tiny_tokenizer_folder: Path):
    # The tokenizer drops control characters and combining accents.
    document = Document(
        doc_id="1", text="\u200b \x00 pain", mentions=(Mention(start=0, end=1, cui="C0018681", score=1.0),)
    )
    tokenized, pieces = tokenize(tiny_tokenizer_folder, document)
    assert pieces == ["pain"] and tokenized.mentions.unaligned == 1
