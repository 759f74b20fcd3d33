from __future__ import annotations

import json

import pytest
from transformers import AutoConfig

from kebiolm.errors import UserError
from kebiolm.model import KeBioLMConfig


def test_defaults_are_the_papers_base_model():
    config = KeBioLMConfig()
    assert (config.num_hidden_layers, config.num_context_layers, config.hidden_size) == (12, 8, 768)
    assert (config.max_mentions, config.max_candidate_entities, config.entity_size) == (50, 100, 100)
    assert (config.num_entities, config.vocab_size, config.semantics) == (477_039, 28_895, "paper")


@pytest.mark.parametrize("semantics", ["paper", "released"])
def test_saved_config_loads_equal(tmp_path, semantics):
    config = KeBioLMConfig(semantics=semantics, num_context_layers=4, num_labels=5, pad_token_id=1, max_mentions=7)
    config.save_pretrained(tmp_path)
    for loaded in (KeBioLMConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert type(loaded) is KeBioLMConfig
        assert loaded.to_diff_dict() == config.to_diff_dict() | {"transformers_version": loaded.transformers_version}


def test_config_of_the_released_code_loads_as_released(tmp_path):
    text = {"model_type": "bert", "num_context_layers": 8, "num_hidden_layers": 12, "num_entities": 477039, "top_k": 50}
    (tmp_path / "config.json").write_text(json.dumps(text))
    for loaded in (KeBioLMConfig.from_pretrained(tmp_path), KeBioLMConfig.from_dict(text)):
        assert (loaded.semantics, loaded.model_type, loaded.num_entities) == ("released", "kebiolm", 477_039)


def test_real_released_config(real_data):
    config = KeBioLMConfig.from_pretrained(real_data / "released_checkpoint")
    assert config.semantics == "released"
    assert config.to_diff_dict().keys() >= {"semantics", "num_context_layers"}
    assert (config.max_mentions, config.entity_size, config.type_vocab_size) == (50, 100, 2)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_context_layers", 13),
        ("num_context_layers", -1),
        ("num_attention_heads", 7),
        ("num_attention_heads", 0),
        ("num_entities", 3),
        ("max_mentions", 0),
        ("max_candidate_entities", 0),
        ("hidden_dropout_prob", 1.0),
        ("semantics", "releasd"),
    ],
)
def test_values_out_of_range_are_refused(field, value):
    with pytest.raises(UserError, match=r"expected .*; change "):
        KeBioLMConfig(**{field: value})
