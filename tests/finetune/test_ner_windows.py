from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kebiolm.data.tokenizer import load_tokenizer
from kebiolm.finetune.counted_warnings import CountedWarnings
from kebiolm.finetune.ner_windows import labels_of_words, make_ner_windows
from kebiolm.finetune.read_ner import NerSentence
from kebiolm.finetune.tasks import NerTask
from kebiolm.model.losses import IGNORED_LABEL

# In the tiny tokenizer a word of letters is as many pieces as it has letters; "the" is one, "Aspirin" two.
WORDS = ("the", "Aspirin", "pqr", "x", "(", "pain", "5-ht", "zzzzzzzzzz", "\u200b", "\u4e2d")
TRUNCATE = NerTask(name="test", max_length=12, long_sentences="truncate")


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer_folder):
    return load_tokenizer(tiny_tokenizer_folder)


def sentence(words: str, labels: str = "") -> NerSentence:
    words = words.split(" ")
    return NerSentence(words=tuple(words), labels=tuple(labels.split() or "O" * len(words)), where="f:1")


random_sentence = st.lists(st.tuples(st.sampled_from(WORDS), st.sampled_from("OBI")), min_size=1, max_size=30).map(
    lambda pairs: NerSentence(words=tuple(w for w, _ in pairs), labels=tuple(label for _, label in pairs), where="f:1")
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sentences=st.lists(random_sentence, min_size=1, max_size=4), max_length=st.integers(8, 40))
def test_each_word_is_in_exactly_one_window_and_gets_its_own_label_back(tokenizer, sentences, max_length) -> None:
    task = NerTask(name="test", max_length=max_length)
    windows = make_ner_windows(sentences, tokenizer, task, CountedWarnings())
    assert all(len(window.input_ids) <= max_length for window in windows)
    places = [
        (window.sentence, window.first_word + number)
        for window in windows
        for number in range(len(window.first_pieces))
    ]
    assert places == [(number, word) for number, one in enumerate(sentences) for word in range(len(one.words))]
    # Where there is no label, and behind the window's end, a prediction is not read.
    predictions = [[max(label, 0) for label in window.label_ids] + [2, 2] for window in reversed(windows)]
    read = labels_of_words(list(reversed(windows)), predictions, sentences, task)
    assert [tuple(labels) for labels in read] == [one.labels for one in sentences]


def test_a_sentence_that_fits_is_one_window_with_labels_on_first_pieces(tokenizer, warnings) -> None:
    (window,) = make_ner_windows([sentence("the Aspirin pain", "O B I")], tokenizer, NerTask(name="test"), warnings)
    assert tokenizer.convert_ids_to_tokens(window.input_ids) == ["[CLS]", "the", "asp", "##irin", "pain", "[SEP]"]
    none = IGNORED_LABEL
    assert window.label_ids == [none, 0, 1, none, 2, none]
    assert warnings.counts == {}


def test_windows_of_a_long_sentence_are_of_about_equal_length(tokenizer, warnings) -> None:
    task = NerTask(name="test", max_length=102)
    windows = make_ner_windows([sentence(" ".join(["the", "pqr"] * 51))], tokenizer, task, warnings)
    lengths = [len(window.input_ids) - 2 for window in windows]
    assert sum(lengths) == 204
    assert max(lengths) <= 100
    assert max(lengths) - min(lengths) <= 6
    assert len(lengths) == 3
    assert warnings.counts == {"sentences longer than max_length, read in several windows": 1}


def test_a_word_that_fills_more_than_a_window_is_cut_and_counted(tokenizer, warnings) -> None:
    long_word = sentence(f"the {'q' * 30} pain", "O B O")
    task = NerTask(name="test", max_length=12)
    windows = make_ner_windows([long_word], tokenizer, task, warnings)
    assert [len(window.input_ids) for window in windows] == [3, 12, 3]
    assert labels_of_words(windows, [window.label_ids for window in windows], [long_word], task) == [["O", "B", "O"]]
    assert warnings.counts["words longer than max_length, of which the first pieces are read"] == 1


def test_a_word_without_pieces_is_read_as_unknown(tokenizer, warnings) -> None:
    (window,) = make_ner_windows([sentence("the \u200b pain", "O B O")], tokenizer, NerTask(name="test"), warnings)
    assert window.input_ids[2] == tokenizer.unk_token_id
    assert window.word_labels == [0, 1, 0]
    assert warnings.counts == {"words without pieces, read as [UNK]": 1}


@pytest.mark.parametrize(
    "words", ["pqr pqr pqr the", "the pqr pqr pqr the x", "the pqr", "zzzzzzzzzzzzz the", "the zzzzzzzzzzzzz"]
)
def test_truncation_keeps_the_pieces_that_the_tokenizers_own_truncation_keeps(tokenizer, warnings, words) -> None:
    one = sentence(words, " ".join("B" * len(words.split())))
    (window,) = make_ner_windows([one], tokenizer, TRUNCATE, warnings)
    expected = tokenizer([list(one.words)], is_split_into_words=True, truncation=True, max_length=12)
    assert window.input_ids == expected["input_ids"][0]
    word_ids = expected.word_ids(0)
    first_pieces = [at for at, (before, word) in enumerate(pairwise(word_ids), 1) if word not in (None, before)]
    assert window.first_pieces == first_pieces
    behind = len(one.words) - len(first_pieces)
    too_long = len(tokenizer([list(one.words)], is_split_into_words=True)["input_ids"][0]) > 12
    assert warnings.counts.get("sentences truncated at max_length", 0) == too_long
    assert warnings.counts.get("words behind max_length, predicted as O", 0) == behind
    assert labels_of_words([window], [window.label_ids], [one], TRUNCATE) == [
        ["B"] * len(first_pieces) + ["O"] * behind
    ]


def test_windows_that_are_missing_or_given_twice_are_noticed(tokenizer, warnings) -> None:
    task = NerTask(name="test", max_length=12)
    one = sentence("pqr pqr pqr pqr pqr pqr")
    windows = make_ner_windows([one], tokenizer, task, warnings)
    labels = [window.label_ids for window in windows]
    with pytest.raises(ValueError, match="3 words have no prediction"):
        labels_of_words(windows[1:], labels[1:], [one], task)
    with pytest.raises(ValueError, match="1 words have no prediction"):
        labels_of_words([], [], [one], TRUNCATE)
    with pytest.raises(ValueError, match="word 0 of sentence 0 has two predictions"):
        labels_of_words([windows[0], *windows], [labels[0], *labels], [one], task)
