"""Mentions are found by any pipeline with an `ner` or by the dictionary; abbreviations carry their long form."""

from __future__ import annotations

from pathlib import Path

import pytest
import spacy

from kebiolm.errors import UserError
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


def test_odd_texts_are_searched(dictionary: MentionFinder) -> None:
    for text in ("", " ", "\x00heart\x00", "x" * 1999, ")(" * 9, "\u2028heart attack\u200b"):
        (result,) = dictionary.find([text])
        assert isinstance(result, FoundMentions), text


def test_memory_of_strings_does_not_grow() -> None:
    nlp = spacy.blank("en")
    nlp.add_pipe("entity_ruler").add_patterns([{"label": "X", "pattern": "pain"}])
    finder = MentionFinder(nlp)
    finder.find(["pain"])
    before = len(nlp.vocab.strings)
    finder.find([f"pain word{number} number{number}" for number in range(500)])
    assert len(nlp.vocab.strings) == before


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
