from __future__ import annotations

from kebiolm.data.tokenizer import load_tokenizer
from kebiolm.linking.windows import cut_positions, make_windows


def _pieces_of_two_characters(text: str) -> tuple[list[tuple[int, int]], list[int]]:
    """Words of the text cut into pieces of two characters, with their words' numbers."""
    offsets, words, start = [], [], 0
    for number, word in enumerate(text.split(" ")):
        for first in range(0, len(word), 2):
            offsets.append((start + first, start + min(first + 2, len(word))))
            words.append(number)
        start += len(word) + 1
    return offsets, words


def test_a_text_that_fits_is_one_window() -> None:
    assert cut_positions("abcd", *_pieces_of_two_characters("abcd"), 2) == [2]
    assert cut_positions("", [], [], 2) == []


def test_sentence_ends_are_preferred_to_white_space() -> None:
    text = "aa bb cc. dd ee ff"
    assert cut_positions(text, *_pieces_of_two_characters(text), 6) == [4, 7]


def test_white_space_is_preferred_to_the_middle_of_a_word() -> None:
    text = "aaaa bbbbbbbb"
    assert cut_positions(text, *_pieces_of_two_characters(text), 3) == [2, 5, 6]


def test_windows_hold_every_piece_of_every_text(tiny_tokenizer_folder) -> None:
    tokenizer = load_tokenizer(tiny_tokenizer_folder)
    texts = ["severe headache (pain). Aspirin, the asp; of 5-ht. " * 7, "", "x" * 90, "pain"]
    for max_pieces in (1, 2, 5, 14):
        windows = make_windows(tokenizer, texts, max_pieces)
        assert all(0 < len(window.input_ids) <= max_pieces for window in windows)
        for index, text in enumerate(texts):
            found = [piece for window in windows if window.text_index == index for piece in window.input_ids]
            assert found == tokenizer(text, add_special_tokens=False)["input_ids"]
