from __future__ import annotations

import pytest
import torch
from transformers import AutoModel, AutoModelForPreTraining, AutoModelForTokenClassification

from kebiolm.model import KeBioLMForPreTraining, KeBioLMForTokenClassification, KeBioLMModel


@pytest.mark.parametrize(
    "fields",
    [{}, {"semantics": "released"}, {"num_context_layers": 3}, {"fusion_layer_norm": False, "pad_token_id": 1}],
)
def test_round_trip(make_model, packed_batch, tmp_path, fields):
    model = make_model(**fields)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    loaded, report = KeBioLMForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert torch.equal(loaded.eval()(**packed_batch).loss, model(**packed_batch).loss)


def test_decoder_is_tied_after_loading(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = AutoModelForPreTraining.from_pretrained(tmp_path)
    head = loaded.cls.predictions
    assert head.decoder.weight is loaded.bert.embeddings.word_embeddings.weight
    assert head.decoder.bias is head.bias


def test_frozen_table_is_frozen_after_loading(make_model, tmp_path):
    make_model(freeze_entity_embeddings=True).save_pretrained(tmp_path)
    loaded = KeBioLMForPreTraining.from_pretrained(tmp_path)
    assert [name for name, p in loaded.named_parameters() if not p.requires_grad] == [
        "bert.entity_linker.entity_embeddings.weight"
    ]


def test_auto_classes(model, tmp_path):
    model.save_pretrained(tmp_path)
    encoder = AutoModel.from_pretrained(tmp_path)
    assert type(encoder) is KeBioLMModel
    assert torch.equal(
        encoder.entity_linker.entity_embeddings.weight, model.bert.entity_linker.entity_embeddings.weight
    )
    head = AutoModelForTokenClassification.from_pretrained(tmp_path, num_labels=3)
    assert type(head) is KeBioLMForTokenClassification


def test_a_checkpoint_without_position_ids_is_complete(model, tmp_path):
    state = model.state_dict()
    del state["bert.embeddings.position_ids"]
    model.save_pretrained(tmp_path, state_dict=state)
    loaded, report = KeBioLMForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert loaded.bert.embeddings.position_ids.tolist() == [list(range(32))]


def test_markers_can_be_added_to_the_vocabulary(model):
    model.resize_token_embeddings(64)
    head = model.cls.predictions
    assert head.decoder.weight is model.bert.embeddings.word_embeddings.weight
    assert model(torch.tensor([[2, 63, 3]])).mlm_logits.shape == (1, 3, 64)
