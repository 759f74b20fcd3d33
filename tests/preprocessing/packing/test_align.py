"""Characters to word pieces: spans, widening, lost mentions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from kebiolm.data.tokenizer import load_tokenizer
from preprocessing.packing.align import AlignedMentions, Pieces, align_mentions, tokenize


def make_pieces(*documents: tuple[list[int], list[int], int]) -> Pieces:
    """Pieces of texts that are given as (first characters, characters after the last, length)."""
    sizes = [len(starts) for starts, _, _ in documents]
    texts = np.cumsum([0, *(length for _, _, length in documents)])
    starts, ends = (
        np.array([n + text for text, document in zip(texts, documents, strict=False) for n in document[k]], dtype=int)
        for k in (0, 1)
    )
    return Pieces(
        ids=np.zeros(len(starts), np.int32),
        word_starts=np.ones(len(starts), bool),
        starts=starts,
        ends=ends,
        document_starts=np.cumsum([0, *sizes]),
        text_starts=texts,
    )


# "aspirin treats": asp ##irin treats
TEXT = ([0, 3, 8], [3, 7, 14], 14)


def align(pieces: Pieces, *mentions: tuple[int, int, int]) -> AlignedMentions:
    """Align (document, start, end) mentions."""
    return align_mentions(pieces, *np.array(mentions, dtype=int).reshape(-1, 3).T)


@pytest.mark.parametrize(
    ("start", "end", "span"),
    [
        (0, 7, (0, 2)),
        (3, 7, (1, 2)),
        (1, 2, (0, 1)),  # inside one piece
        (2, 9, (0, 3)),  # begins and ends inside pieces
        (6, 8, (1, 2)),  # takes the white space after it
        (0, 100, (0, 3)),  # ends beyond the text, but not in the next one
    ],
)
def test_spans_widen_to_whole_pieces(start: int, end: int, span: tuple[int, int]):
    for documents, number in (([TEXT], 0), ([TEXT, TEXT, TEXT], 1)):
        aligned = align(make_pieces(*documents), (number, start, end))
        assert aligned.spans.tolist() == [[span[0] + 3 * number, span[1] + 3 * number]]
        assert (aligned.unaligned, aligned.overlapping) == (0, 0)


def test_lost_mentions_are_counted():
    # White space only; beyond the text; two halves of one piece, of which the first stays.
    aligned = align(make_pieces(TEXT, TEXT), (0, 0, 1), (0, 1, 2), (0, 7, 8), (0, 50, 60), (1, 0, 3))
    assert aligned.spans.tolist() == [[0, 1], [3, 4]] and aligned.sources.tolist() == [0, 4]
    assert (aligned.unaligned, aligned.overlapping) == (2, 1)


def test_texts_without_pieces():
    aligned = align(make_pieces(([], [], 3), TEXT, ([], [], 0)), (0, 0, 1), (1, 0, 2), (2, 0, 1))
    assert aligned.spans.tolist() == [[0, 1]] and aligned.unaligned == 2
    assert align(make_pieces(TEXT)).spans.shape == (0, 2)
    assert align_mentions(make_pieces(), *np.zeros((3, 0), dtype=int)).spans.shape == (0, 2)


documents = st.lists(
    st.tuples(
        st.lists(st.tuples(st.integers(0, 30), st.integers(1, 8)), max_size=8), st.lists(st.integers(1, 5), max_size=12)
    ),
    max_size=4,
)


@settings(deadline=None)
@given(documents)
def test_every_mention_is_as_a_loop_finds_it_or_counted(documents):
    texts, mentions, expected, lost = [], [], [], []
    for number, (given_mentions, lengths) in enumerate(documents):
        starts = np.cumsum([0, *lengths])[:-1].tolist()
        ends = [start + length - 1 for start, length in zip(starts, lengths, strict=True)]  # also of width zero
        base, covered = sum(len(text[0]) for text in texts), 0
        for start, size in sorted(given_mentions):
            pieces = [
                piece for piece, (a, b) in enumerate(zip(starts, ends, strict=True)) if b > start and a < start + size
            ]
            if not pieces or pieces[0] < covered:
                lost.append("overlapping" if pieces else "unaligned")
            else:
                expected.append([base + pieces[0], base + pieces[-1] + 1])
                covered = pieces[-1] + 1
            mentions.append((number, start, start + size))
        texts.append((starts, ends, sum(lengths)))
    aligned = align(make_pieces(*texts), *mentions)
    assert aligned.spans.tolist() == expected
    assert (aligned.unaligned, aligned.overlapping) == (lost.count("unaligned"), lost.count("overlapping"))
    assert len(aligned.spans) + aligned.unaligned + aligned.overlapping == len(mentions)


def load(folder: Path) -> Tokenizer:
    return load_tokenizer(folder).backend_tokenizer


def names(folder: Path, pieces: Pieces) -> list[str]:
    return list(map(load(folder).id_to_token, pieces.ids.tolist()))


def test_texts_are_tokenized_as_alone(tiny_tokenizer_folder: Path):
    texts = ["The Aspirin\ttreats  the HEADACHE.", "", " \u200b", "aspirin", "Naïve 中文 pain"]
    tokenizer = load(tiny_tokenizer_folder)
    pieces = tokenize(tokenizer, texts)
    first = ["the", "asp", "##irin", "treats", "the", "head", "##ache", "."]
    assert names(tiny_tokenizer_folder, pieces)[:8] == first
    assert pieces.word_starts[:8].tolist() == [True, True, False, True, True, True, False, True]
    assert [texts[0][position] for position in pieces.starts[:8]] == list("TAittHA.")
    assert np.diff(pieces.document_starts)[:4].tolist() == [8, 0, 0, 2]
    assert pieces.word_starts[pieces.document_starts[3]], "each text begins a word"
    for number, text in enumerate(texts):
        alone = tokenize(tokenizer, [text])
        here = slice(*pieces.document_starts[number : number + 2])
        assert pieces.ids[here].tolist() == alone.ids.tolist()
        assert pieces.word_starts[here].tolist() == alone.word_starts.tolist()
        assert (pieces.starts[here] - pieces.text_starts[number]).tolist() == alone.starts.tolist()
        assert (pieces.ends[here] - pieces.text_starts[number]).tolist() == alone.ends.tolist()
    assert tokenize(tokenizer, []).document_starts.tolist() == [0]


def test_a_long_text_is_not_cut(tiny_tokenizer_folder: Path):
    tokenizer = load_tokenizer(tiny_tokenizer_folder)
    tokenizer("pain", truncation=True, max_length=4)  # leaves its truncation set in the backend
    assert len(tokenize(tokenizer.backend_tokenizer, ["pain " * 1000]).ids) == 1000


def test_special_pieces_in_the_text_are_text(tiny_tokenizer_folder: Path):
    pieces = names(tiny_tokenizer_folder, tokenize(load(tiny_tokenizer_folder), ["the [MASK] [SEP] pain"]))
    assert not {"[MASK]", "[SEP]"} & set(pieces)
    assert "".join(piece.removeprefix("##") for piece in pieces) == "the[mask][sep]pain"


def test_characters_that_vanish(tiny_tokenizer_folder: Path):
    # The tokenizer drops control characters and combining accents.
    pieces = tokenize(load(tiny_tokenizer_folder), ["\u200b \x00 pain"])
    assert names(tiny_tokenizer_folder, pieces) == ["pain"]
    assert align(pieces, (0, 0, 1)).unaligned == 1
