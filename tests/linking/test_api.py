from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from kebiolm.linking import KeBioLM
from kebiolm.linking.linked_text import to_json
from kebiolm.linking.windows import make_windows
from preprocessing.packing.align import tokenize
from tests.linking.hand_made_model import ASPIRIN, ENTITY_SIZE, HEADACHE, HIDDEN_SIZE, PAIN, WINDOW

TEXT = "Aspirin treats severe HEADACHE and pain."


def test_mentions_have_their_characters_and_concepts(kebiolm: KeBioLM) -> None:
    (linked,) = kebiolm.link([TEXT])
    assert linked.text == TEXT
    assert [(m.start, m.end, m.text, m.cui, m.name) for m in linked.mentions] == [
        (0, 7, "Aspirin", ASPIRIN, "Aspirin"),
        (22, 30, "HEADACHE", HEADACHE, "Headache <b>"),
        (35, 39, "pain", PAIN, "Pain"),
    ]
    assert [m.semantic_types for m in linked.mentions] == [
        ("Organic Chemical", "Pharmacologic Substance"),
        ("Sign & Symptom",),
        (),
    ]


def test_scores_are_equation_3_and_probabilities_equation_10(kebiolm: KeBioLM) -> None:
    mention = kebiolm.link([TEXT])[0].mentions[0]
    # LayerNorm turns a one-hot state of 12 dimensions into sqrt(11) there and -1/sqrt(11) elsewhere.
    hit, miss = math.sqrt(HIDDEN_SIZE - 1), -1 / math.sqrt(HIDDEN_SIZE - 1)
    others = math.exp(miss - hit)
    assert mention.score == pytest.approx(1 / (1 + others), rel=1e-5)  # k = 2
    assert mention.probability == pytest.approx(1 / (1 + 2 * others), rel=1e-5)
    assert [candidate.weight for candidate in mention.alternatives] == pytest.approx([1 - mention.score], rel=1e-4)
    assert mention.alternatives[0].cui in {HEADACHE, PAIN}


def test_top_counts_the_best_one(kebiolm: KeBioLM) -> None:
    assert all(not mention.alternatives for mention in kebiolm.link([TEXT], top=1)[0].mentions)
    with pytest.raises(ValueError, match="top >= 1"):
        kebiolm.link([TEXT], top=0)


@pytest.mark.parametrize("text", ["", "   \n", "the patient"])
def test_text_without_mentions(kebiolm: KeBioLM, text: str) -> None:
    (linked,) = kebiolm.link([text])
    assert (linked.text, linked.mentions) == (text, ())


def test_no_texts(kebiolm: KeBioLM) -> None:
    assert kebiolm.link([]) == []
    assert kebiolm.encode([]).shape == (0, HIDDEN_SIZE)


def test_long_text_is_read_whole_with_its_own_positions(kebiolm: KeBioLM) -> None:
    # 40 sentences of 7 pieces each, several windows; and more mentions in a window than `max_mentions` of training.
    text = "Aspirin treats the head\u00e4che. \n" * 40
    (linked,) = kebiolm.link([text])
    assert len(linked.mentions) == 80
    assert {linked.text[m.start : m.end] for m in linked.mentions} == {"Aspirin", "head\u00e4che"}
    assert [m.start for m in linked.mentions[::2]] == [match * 30 for match in range(40)]
    assert all(m.text == text[m.start : m.end] for m in linked.mentions)


def test_results_do_not_depend_on_the_other_texts(kebiolm: KeBioLM) -> None:
    texts = [TEXT, "", "pain " * 50, "the"]
    together, alone = kebiolm.link(texts), [kebiolm.link([text])[0] for text in texts]
    for one, other in zip(together, alone, strict=True):
        assert [(m.start, m.end, m.cui) for m in one.mentions] == [(m.start, m.end, m.cui) for m in other.mentions]
    np.testing.assert_allclose(kebiolm.encode(texts), np.concatenate([kebiolm.encode([t]) for t in texts]), atol=1e-5)


def test_encode_is_the_mean_of_the_final_states_without_special_pieces(kebiolm: KeBioLM) -> None:
    ids = kebiolm.tokenizer(TEXT, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        states = kebiolm.model(ids, max_mentions=WINDOW).last_hidden_state[0, 1:-1]
    assert len(states) <= WINDOW
    np.testing.assert_allclose(kebiolm.encode([TEXT])[0], states.mean(0).numpy(), atol=1e-5)
    assert not kebiolm.encode([""]).any()


def test_encode_mentions_gives_vectors_in_the_space_of_entities(kebiolm: KeBioLM) -> None:
    with_mentions, without = kebiolm.encode_mentions([TEXT, ""])
    assert with_mentions.shape == (3, ENTITY_SIZE)
    assert without.shape == (0, ENTITY_SIZE)
    assert with_mentions[:, :3].argmax(axis=1).tolist() == [0, 1, 2]


def test_special_pieces_in_a_text_are_text(kebiolm: KeBioLM) -> None:
    text = "[SEP] pain [MASK][CLS] aspirin [PAD]"
    (linked,) = kebiolm.link([text])
    assert [m.text for m in linked.mentions] == ["pain", "aspirin"]
    windows = make_windows(kebiolm.tokenizer, [text], 100)
    assert windows[0].input_ids == tokenize(kebiolm.tokenizer.backend_tokenizer, [text]).ids.tolist()


def test_the_config_stays_as_it_was_trained(model_folder: Path, tmp_path: Path) -> None:
    kebiolm = KeBioLM.from_pretrained(model_folder, device="cpu")
    kebiolm.link([TEXT])
    kebiolm.model.save_pretrained(tmp_path)
    saved, trained = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path, model_folder))
    assert saved["max_mentions"] == trained["max_mentions"] == 2


def test_lone_surrogates_keep_positions(kebiolm: KeBioLM) -> None:
    (linked,) = kebiolm.link(["\ud800 pain"])
    assert linked.text == "\ufffd pain"
    assert [(m.start, m.end) for m in linked.mentions] == [(2, 6)]


def test_released_semantics_has_no_filled_up_mentions(model_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model_folder, tmp_path / "model"))
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(fields | {"semantics": "released"}))
    # As released, the third mention of a row is cut: the model was trained with two.
    texts = ["Aspirin pain headache", "the", "", "severe headache"]
    linked = KeBioLM.from_pretrained(folder, device="cpu").link(texts)
    assert [[m.text for m in one.mentions] for one in linked] == [["Aspirin", "pain"], [], [], ["headache"]]


def test_one_string_is_not_a_list_of_texts(kebiolm: KeBioLM) -> None:
    with pytest.raises(TypeError, match="list"):
        kebiolm.link(TEXT)


def test_json_form(kebiolm: KeBioLM) -> None:
    document = to_json(kebiolm.link([TEXT]))
    assert (document["format"], document["version"]) == ("kebiolm-links", 1)
    mention = document["texts"][0]["mentions"][0]
    assert sorted(mention) == [
        "alternatives",
        "cui",
        "end",
        "name",
        "probability",
        "score",
        "semantic_types",
        "start",
        "text",
    ]
    assert sorted(mention["alternatives"][0]) == ["cui", "name", "weight"]
