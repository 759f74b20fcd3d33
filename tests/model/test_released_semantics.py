"""`semantics: released` gives what the authors' released code computed for the same weights and inputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kebiolm.errors import UserError
from kebiolm.model import KeBioLMConfig, KeBioLMForPreTraining
from kebiolm.model.released import released_inputs, released_mention_of_token, released_spans_of_labels


@pytest.fixture(scope="module")
def golden(real_data):
    folder = real_data / "golden_released"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    return folder


@pytest.fixture(scope="module")
def released_model(golden):
    return KeBioLMForPreTraining.from_pretrained(golden).eval()


def test_released_layout_loads_key_for_key(golden):
    _, report = KeBioLMForPreTraining.from_pretrained(golden, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    weights = torch.load(golden / "pytorch_model.bin", weights_only=True)
    fresh = KeBioLMForPreTraining(KeBioLMConfig.from_pretrained(golden))
    fresh.load_state_dict(weights, strict=True)


def test_the_released_size_has_the_released_keys():
    with torch.device("meta"):
        model = KeBioLMForPreTraining(KeBioLMConfig())
    assert len(model.state_dict()) == 214
    assert sum(p.numel() for p in model.parameters()) == 156_202_146


@pytest.mark.parametrize("case", ["one_row_gold", "batch_gold", "predicted", "over_cap"])
def test_golden_outputs(golden, released_model, case):
    with np.load(golden / "golden.npz") as arrays:
        stored = {k.split(".", 1)[1]: torch.from_numpy(arrays[k]) for k in arrays.files if k.startswith(f"{case}.")}
    inputs = {"input_ids": stored["input_ids"], "attention_mask": stored["attention_mask"]}
    if "mention_detection_labels" in stored:
        gold = released_inputs(
            released_model.config,
            stored["attention_mask"],
            stored["mention_detection_labels"],
            stored.get("gold_entity_ids"),
        )
        inputs |= gold
    with torch.no_grad():
        output = released_model(**inputs)
        losses = released_model(**inputs, mlm_labels=stored.get("mlm_labels"))
        table = released_model.bert.entity_linker.entity_embeddings.weight
        entity_logits = (output.mention_vectors @ table.T).view(stored["entity_logits"].shape)

    def assert_same(actual: torch.Tensor, expected: torch.Tensor) -> None:
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)

    assert_same(output.bio_logits, stored["mention_logits"])
    assert_same(entity_logits, stored["entity_logits"])
    assert_same(output.last_hidden_state, stored["last_hidden"])
    assert_same(output.mlm_logits, stored["mlm_logits"])
    for name, short in (("mlm", "mlm"), ("detection", "ed"), ("linking", "el")):
        if f"{short}_loss" in stored:
            assert_same(losses[f"{name}_loss_sum"] / losses[f"{name}_count"], stored[f"{short}_loss"])
    if "loss" in stored:
        assert_same(losses.loss, stored["loss"])


def test_paper_semantics_differ_on_the_same_weights(golden, released_model):
    paper = KeBioLMForPreTraining.from_pretrained(golden, semantics="paper").eval()
    with np.load(golden / "golden.npz") as arrays, torch.no_grad():
        input_ids = torch.from_numpy(arrays["predicted.input_ids"])
        mask = torch.from_numpy(arrays["predicted.attention_mask"])
        difference = released_model(input_ids, attention_mask=mask).last_hidden_state
        difference = difference - paper(input_ids, attention_mask=mask).last_hidden_state
    assert difference.abs().max() > 1e-2


def test_decoding_habits():
    labels = torch.tensor(
        [
            [1, 2, 2, 0, 2, -100, 2, 0, 1, 2, 0, 0],  # first place starts; I after O starts; a gap is bridged
            [0, 0, 1, 1, 0, 0, 2, 0, 0, 0, 0, 0],  # length 7: the last [SEP], labelled I, is a mention
        ]
    )
    index = torch.ones_like(labels)
    index[1, 7:] = 0
    spans = released_spans_of_labels(labels, index, max_mentions=50)
    assert spans.tolist() == [[0, 1, 3], [0, 4, 7], [0, 8, 10], [1, 2, 3], [1, 3, 4], [1, 6, 7]]
    assert released_spans_of_labels(labels, index, max_mentions=2).tolist() == [
        [0, 1, 3],
        [0, 4, 7],
        [1, 2, 3],
        [1, 3, 4],
    ]
    assert released_spans_of_labels(torch.zeros_like(labels), index, max_mentions=2).shape == (0, 3)


def test_writing_habits():
    labels = torch.tensor([[0, 1, 2, 0, 1, 1, 0, 0], [0, 1, 0, 0, 0, 0, 0, 0]])
    spans = released_spans_of_labels(labels, torch.ones_like(labels), max_mentions=50)
    assert spans.tolist() == [[0, 1, 3], [0, 4, 5], [0, 5, 6], [1, 1, 2], [1, 0, 1], [1, 0, 1]]
    tokens = released_mention_of_token(spans, 2, 8)
    # One token too many, unless the next mention overwrites it; padding mentions overwrite positions 0 and 1.
    assert tokens.tolist() == [[0, 1, 1, 1, 2, 3, 3, 0], [6, 6, 4, 0, 0, 0, 0, 0]]


def test_gold_ids_of_the_wrong_width_are_refused():
    labels = torch.tensor([[0, 1, 0, 1, 0]])
    with pytest.raises(UserError, match=r"got shape \(1, 3\); expected \(1, 2\)"):
        released_inputs(KeBioLMConfig(), torch.ones_like(labels), labels, torch.zeros(1, 3, dtype=torch.long))
