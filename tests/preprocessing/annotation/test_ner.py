"""Mentions are found by any pipeline with an `ner` or by the dictionary; abbreviations carry their long form."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import spacy

from kebiolm.errors import UserError
from preprocessing.annotation import ner
from preprocessing.annotation.ner import (
    FoundMentions,
    MentionFinder,
    NerFailure,
    NerLimits,
    describe_model,
    load_finder,
)

NAMES = ["Heart attack", "attack", "Magnetic resonance imaging", "MRI", "ALL", "IV", "17", "2-4", "Attack of pain"]


@pytest.fixture(scope="module")
def dictionary() -> MentionFinder:
    return load_finder("dictionary", names=NAMES, limits=NerLimits(max_characters=2000, max_brackets=20))


def found(finder: MentionFinder, text: str) -> list[tuple[str, str]]:
    """(mention, text it is linked by) for each mention of a text."""
    (result,) = finder.find([text])
    assert isinstance(result, FoundMentions)
    return [(text[mention.start : mention.end], mention.link_text) for mention in result.mentions]


def check_independence(finder: MentionFinder, texts: list[str]) -> list[FoundMentions]:
    """Search texts in batches of several sizes and in another order; returns what was found each time."""
    results = finder.find(texts)
    assert sum(len(result.mentions) for result in results) > len(texts)
    for batch_size in (1, 7):
        assert finder.find(texts, batch_size=batch_size) == results
    order = random.Random(1).sample(range(len(texts)), len(texts))
    shuffled = finder.find([texts[place] for place in order])
    assert shuffled == [results[place] for place in order]
    return results


def test_dictionary_ignores_case_and_takes_the_longest(dictionary: MentionFinder) -> None:
    assert found(dictionary, "A HEART ATTACK, then an attack.") == [
        ("HEART ATTACK", "HEART ATTACK"),
        ("attack", "attack"),
    ]
    # "heart attack" and "attack of pain" overlap: the longer one stays.
    assert found(dictionary, "heart attack of pain") == [("attack of pain", "attack of pain")]


def test_dictionary_leaves_out_names_that_match_everywhere(dictionary: MentionFinder) -> None:
    assert found(dictionary, "All patients got 17 doses iv, grade 2-4.") == []


def test_abbreviations_are_linked_by_their_long_form(dictionary: MentionFinder) -> None:
    text = "We used magnetic resonance imaging (MRI). The MRI was normal."
    assert found(dictionary, text) == [
        ("magnetic resonance imaging", "magnetic resonance imaging"),
        ("MRI", "magnetic resonance imaging"),
        ("MRI", "magnetic resonance imaging"),
    ]
    # A definition counts in its own text only.
    assert found(dictionary, "The MRI was normal.") == [("MRI", "MRI")]


def test_too_many_brackets_skip_the_detector_and_too_long_texts_are_set_aside(dictionary: MentionFinder) -> None:
    brackets = "magnetic resonance imaging (MRI) " + "(a) " * 30
    crowded, long, plain = dictionary.find([brackets, "heart attack " * 500, "heart attack"])
    assert isinstance(crowded, FoundMentions) and crowded.abbreviations_skipped
    assert [mention.link_text for mention in crowded.mentions] == ["magnetic resonance imaging", "MRI"]
    assert isinstance(long, NerFailure) and long.reason == "text-too-long"
    assert isinstance(plain, FoundMentions) and not plain.abbreviations_skipped and len(plain.mentions) == 1


def test_one_text_that_raises_costs_one_text(dictionary: MentionFinder) -> None:
    texts = ["heart attack"] * 40
    texts[7] = "lone surrogate \ud800"
    results = dictionary.find(texts)
    assert [place for place, result in enumerate(results) if isinstance(result, NerFailure)] == [7]
    assert results[7].reason == "ner-error"
    assert all(len(result.mentions) == 1 for place, result in enumerate(results) if place != 7)


def test_words_that_would_cost_a_tokenizer_minutes_are_set_aside() -> None:
    finder = load_finder("dictionary", names=["pain"])
    emoji, many, few = finder.find(["\U0001f600" * 20_000, "(" * 1500 + " " + ")" * 1500, "pain " + "(" * 1500])
    assert isinstance(emoji, NerFailure) and emoji.reason == "words-too-long" and "20000 characters" in emoji.detail
    assert isinstance(many, NerFailure) and "4500000, at most 4000000" in many.detail
    assert isinstance(few, FoundMentions) and len(few.mentions) == 1


def test_each_batch_is_announced_before_it_is_searched(dictionary: MentionFinder) -> None:
    texts = [f"heart attack {'x' * (number % 7)}" for number in range(30)]
    texts[4] = "x" * 3000  # too long: it is not searched, and so not announced
    texts[11] = "heart attack \ud800"
    announced: list[list[int]] = []
    results = dictionary.find(texts, before_batch=lambda places: announced.append(list(places)), batch_size=8)
    batches = [places for places in announced if len(places) > 1]
    assert sorted(place for places in batches for place in places) == sorted(set(range(30)) - {4})
    assert max(map(len, batches)) == 8
    # Texts of about equal length stand together.
    lengths = [len(texts[place]) for places in batches for place in places]
    assert lengths == sorted(lengths)
    # The batch that raised was searched again, text by text.
    failed = next(places for places in batches if 11 in places)
    assert [places for places in announced if len(places) == 1] == [[place] for place in failed]
    assert [place for place, result in enumerate(results) if isinstance(result, NerFailure)] == [4, 11]


def test_long_texts_go_in_small_batches(monkeypatch: pytest.MonkeyPatch, dictionary: MentionFinder) -> None:
    monkeypatch.setattr(ner, "_CHARACTERS_PER_BATCH", 2000)
    announced: list[int] = []
    texts = ["pain " * 10] * 40 + ["pain " * 300] * 3
    dictionary.find(texts, before_batch=lambda places: announced.append(len(places)))
    assert announced == [40, 1, 1, 1]


def test_mentions_depend_on_their_text_alone(dictionary: MentionFinder) -> None:
    rng = random.Random(0)
    words = ["heart", "attack", "magnetic", "resonance", "imaging", "(MRI)", "MRI", "of", "pain", ",", ".", "\n"]
    texts = [" ".join(rng.choices(words, k=rng.randint(0, 80))) for _ in range(200)]
    check_independence(dictionary, texts)


def test_vectors_have_the_same_bits_in_any_batch(tmp_path: Path) -> None:
    nlp = spacy.blank("en")
    nlp.add_pipe("tok2vec")
    nlp.add_pipe("ner", config={"model": {"tok2vec": {"@architectures": "spacy.Tok2VecListener.v1", "width": 96}}})
    nlp.get_pipe("ner").add_label("X")
    nlp.initialize()
    nlp.to_disk(tmp_path / "model")
    loaded = load_finder(str(tmp_path / "model"))._nlp
    texts = [" ".join(f"word{number % 37}" for number in range(length)) for length in (1, 2, 3, 5, 8, 60, 200, 500)]
    together = [doc.tensor for doc in loaded.pipe(texts, batch_size=len(texts))]
    alone = [loaded(text).tensor for text in texts]
    assert all(np.array_equal(one, other) for one, other in zip(alone, together, strict=True))
    # NumPy's library computes what spaCy's does, but for the last bits.
    theirs = [doc.tensor for doc in nlp.pipe(texts)]
    assert all(np.allclose(one, other, atol=1e-4) for one, other in zip(alone, theirs, strict=True))


def test_odd_texts_are_searched(dictionary: MentionFinder) -> None:
    for text in ("", " ", "\x00heart\x00", "x" * 1999, ")(" * 9, "\u2028heart attack\u200b"):
        (result,) = dictionary.find([text])
        assert isinstance(result, FoundMentions), text


def test_memory_of_strings_does_not_grow() -> None:
    nlp = spacy.blank("en")
    nlp.add_pipe("entity_ruler").add_patterns([{"label": "X", "pattern": "pain"}])
    finder = MentionFinder(nlp, words_kept=100)
    before = len(nlp.vocab.strings)
    for _ in range(3):
        finder.find([f"pain word{number} number{number}" for number in range(500)])
        # Each of these two words of a text has at most four strings: itself, its shape, its beginning, its end.
        assert before + 100 <= len(nlp.vocab.strings) < before + 110


def test_any_pipeline_that_sets_entities_is_cut_down_to_what_it_needs(tmp_path: Path) -> None:
    nlp = spacy.blank("en")
    nlp.add_pipe("sentencizer")
    nlp.add_pipe("entity_ruler").add_patterns([{"label": "X", "pattern": "heart attack"}])
    nlp.to_disk(tmp_path / "ruler")
    finder = load_finder(str(tmp_path / "ruler"))
    assert finder._nlp.pipe_names == ["entity_ruler"]
    assert found(finder, "A heart attack.") == [("heart attack", "heart attack")]


def test_a_trained_pipeline_finds_what_people_marked(real_data: Path) -> None:
    from preprocessing.sources.pubtator import read_gold

    gold = list(read_gold(real_data / "corpora" / "cdr_train.pubtator.txt"))[:30]
    finder = load_finder(str(real_data / "models" / "en_ner_open_sm"))
    results = finder.find([document.text for document in gold])
    hits = total = 0
    for document, result in zip(gold, results, strict=True):
        spans = {(mention.start, mention.end) for mention in result.mentions}
        marked = {(mention.start, mention.end) for mention in document.mentions}
        hits, total = hits + len(spans & marked), total + len(marked)
        ends = [0, *(mention.end for mention in result.mentions)]
        assert all(end <= mention.start for end, mention in zip(ends, result.mentions, strict=False))
    assert hits / total > 0.75


def test_real_mentions_depend_on_their_text_alone_and_are_spacys_own(real_data: Path) -> None:
    from preprocessing.sources.pubtator import read_gold

    model = str(real_data / "models" / "en_ner_open_sm")
    texts = [document.text for document in read_gold(real_data / "corpora" / "ncbi_disease_train.pubtator.txt")][:40]
    results = check_independence(load_finder(model), texts)
    plain = [[(span.start_char, span.end_char) for span in doc.ents] for doc in spacy.load(model).pipe(texts)]
    assert [[(mention.start, mention.end) for mention in result.mentions] for result in results] == plain


@pytest.mark.parametrize("load", [load_finder, describe_model])
def test_a_model_that_is_not_there_is_the_users_mistake(tmp_path: Path, load) -> None:
    for model in ("en_core_sci_nowhere", str(tmp_path), str(tmp_path / "absent")):
        with pytest.raises(UserError, match="pip install") as error:
            load(model)
        assert "\n" not in str(error.value)


def test_a_pipeline_without_entities_is_the_users_mistake(tmp_path: Path) -> None:
    nlp = spacy.blank("en")
    nlp.add_pipe("sentencizer")
    nlp.to_disk(tmp_path / "plain")
    with pytest.raises(UserError, match="`ner`"):
        load_finder(str(tmp_path / "plain"))


def test_a_model_is_known_by_its_bytes(tmp_path: Path) -> None:
    nlp = spacy.blank("en")
    ruler = nlp.add_pipe("entity_ruler")
    ruler.add_patterns([{"label": "X", "pattern": "pain"}])
    nlp.to_disk(tmp_path / "model")
    before = describe_model(str(tmp_path / "model"))
    assert describe_model(str(tmp_path / "model")) == before
    ruler.add_patterns([{"label": "X", "pattern": "ache"}])
    nlp.to_disk(tmp_path / "model")
    assert describe_model(str(tmp_path / "model"))["sha256"] != before["sha256"]
