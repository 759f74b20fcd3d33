from __future__ import annotations

import json

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, BertModel

from kebiolm.errors import UserError
from kebiolm.model import KeBioLMForPreTraining
from kebiolm.model.from_bert import config_from_bert, load_bert_weights, load_entity_embeddings

BERT = {"vocab_size": 61, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 40}
ENTITIES = {"num_entities": 9, "entity_size": 4}


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(1)
    BertForMaskedLM(BertConfig(**BERT, max_position_embeddings=32, layer_norm_eps=1e-7)).save_pretrained(folder)
    return folder


def start(folder):
    model = KeBioLMForPreTraining(config_from_bert(folder, **ENTITIES, num_context_layers=2))
    return model, load_bert_weights(model, folder)


def test_sizes_come_from_the_checkpoint(bert_folder):
    config = config_from_bert(bert_folder, **ENTITIES, num_context_layers=1, hidden_dropout_prob=0.3)
    assert (config.vocab_size, config.max_position_embeddings, config.layer_norm_eps) == (61, 32, 1e-7)
    assert (config.num_context_layers, config.hidden_dropout_prob, config.semantics) == (1, 0.3, "paper")


def test_layers_are_split_and_everything_is_reported(bert_folder):
    model, report = start(bert_folder)
    bert = BertForMaskedLM.from_pretrained(bert_folder)
    state = model.state_dict()
    for ours, theirs in (("context_encoder.layer.1", 1), ("recontext_encoder.layer.0", 2)):
        for name, tensor in bert.bert.encoder.layer[theirs].state_dict().items():
            assert torch.equal(state[f"bert.{ours}.{name}"], tensor)
    assert torch.equal(state["cls.predictions.decoder.weight"], bert.get_input_embeddings().weight)
    assert torch.equal(state["cls.predictions.decoder.bias"], bert.cls.predictions.bias)
    assert report.unused == []
    assert {key.rsplit(".", 1)[0] for key in report.fresh} == {
        "bert.mention_detector",
        "bert.entity_linker.entity_embeddings",
        "bert.entity_linker.mention_to_entity_projection",
        "bert.entity_context_projection",
        "bert.layer_norm",
    }
    constant = {"bert.embeddings.position_ids"}
    assert set(report.loaded) | set(report.fresh) | constant == set(state)
    assert "bert.mention_detector" in str(report)


def test_old_layout_without_prefix_and_head(tmp_path):
    torch.manual_seed(2)
    bert = BertModel(BertConfig(**BERT, max_position_embeddings=32))
    old = {
        key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for key, tensor in bert.state_dict().items()
    }
    torch.save(old | {"embeddings.position_ids": torch.arange(32).unsqueeze(0)}, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(json.dumps(BERT | {"max_position_embeddings": 32}))
    model, report = start(tmp_path)
    assert report.unused == ["bert.pooler.dense.bias", "bert.pooler.dense.weight"]
    assert "cls.predictions.transform.dense.weight" in report.fresh
    assert "cls.predictions.bias" in report.fresh
    assert "cls.predictions.decoder.weight" in report.loaded
    norm = model.bert.recontext_encoder.layer[0].output.LayerNorm
    assert torch.equal(norm.weight, bert.encoder.layer[2].output.LayerNorm.weight)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"vocab_size": 60}, r"a vocabulary of 61 pieces; expected 60"),
        ({"num_hidden_layers": 2}, r"more layers; expected 2"),
        ({"num_hidden_layers": 4}, r"no weight for bert.recontext_encoder.layer.1"),
        ({"intermediate_size": 41}, r"got shape \(40"),
    ],
)
def test_checkpoints_that_do_not_fit(bert_folder, fields, message):
    model = KeBioLMForPreTraining(config_from_bert(bert_folder, **ENTITIES | {"num_context_layers": 2} | fields))
    before = model.bert.embeddings.word_embeddings.weight.clone()
    with pytest.raises(UserError, match=message):
        load_bert_weights(model, bert_folder)
    assert torch.equal(model.bert.embeddings.word_embeddings.weight, before)


def test_folders_that_are_no_bert(bert_folder, tmp_path):
    model, _ = start(bert_folder)
    with pytest.raises(UserError, match="no such folder"):
        load_bert_weights(model, tmp_path / "absent")
    with pytest.raises(UserError, match="neither model"):
        load_bert_weights(model, tmp_path)
    with pytest.raises(UserError, match="no such file"):
        config_from_bert(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        config_from_bert(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(UserError, match="model_type gpt2"):
        config_from_bert(tmp_path)
    for name in ("pytorch_model.bin", "model.safetensors"):
        (tmp_path / name).write_bytes(b"cut short")
        with pytest.raises(UserError, match="an unreadable file"):
            load_bert_weights(model, tmp_path)


def test_entity_vectors(bert_folder):
    model, _ = start(bert_folder)
    vectors = torch.arange(36.0).view(9, 4)
    load_entity_embeddings(model, vectors, where="transe.safetensors")
    assert torch.equal(model.bert.entity_linker.entity_embeddings.weight, vectors)
    with pytest.raises(UserError, match=r"transe.safetensors: got entity vectors of shape \(8, 4\); expected \(9, 4\)"):
        load_entity_embeddings(model, vectors[:8], where="transe.safetensors")
    vectors[2, 1] = float("nan")
    with pytest.raises(UserError, match="1 rows with NaN"):
        load_entity_embeddings(model, vectors, where="transe.safetensors")
