from __future__ import annotations

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from kebiolm.model import KeBioLMForPreTraining
from kebiolm.model.attention import attention_mask_of_rows, attention_mask_of_segments
from kebiolm.model.encoder import restarting_position_ids
from kebiolm.model.from_bert import config_from_bert, load_bert_weights


def test_same_numbers_as_hugging_face_bert_without_entities(tmp_path):
    torch.manual_seed(0)
    sizes = {"vocab_size": 61, "hidden_size": 24, "num_attention_heads": 3, "intermediate_size": 40}
    bert_config = BertConfig(**sizes, num_hidden_layers=3, max_position_embeddings=32, initializer_range=0.3)
    bert = BertForMaskedLM(bert_config).eval()
    bert.save_pretrained(tmp_path)
    config = config_from_bert(tmp_path, num_context_layers=3, num_entities=9, entity_size=4)
    model = KeBioLMForPreTraining(config).eval()
    load_bert_weights(model, tmp_path)

    input_ids = torch.randint(5, 61, (4, 20))
    attention_mask = torch.ones_like(input_ids)
    attention_mask[1, 13:], attention_mask[2, 1:] = 0, 0
    token_type_ids = (torch.arange(20) > 8).long().expand_as(input_ids)
    inputs = {"attention_mask": attention_mask, "token_type_ids": token_type_ids}
    with torch.no_grad():
        expected = bert(input_ids, **inputs, output_hidden_states=True)
        output = model(input_ids, **inputs)
        without_mask = model(input_ids[:1]).last_hidden_state
    torch.testing.assert_close(output.last_hidden_state, expected.hidden_states[-1], atol=1e-5, rtol=0)
    torch.testing.assert_close(output.mlm_logits, expected.logits, atol=1e-5, rtol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(without_mask, bert.bert(input_ids[:1]).last_hidden_state, atol=1e-5, rtol=0)


def test_packed_segments_give_the_states_of_separate_rows(model, packed_batch):
    packed = {key: packed_batch[key] for key in ("input_ids", "document_index", "mention_spans")}
    with torch.no_grad():
        together = model(**packed)
        for row in range(3):
            for segment in range(1, int(packed["document_index"][row].max()) + 1):
                inside = (packed["document_index"][row] == segment).nonzero().squeeze(1)
                begin, end = int(inside[0]), int(inside[-1]) + 1
                spans = packed["mention_spans"]
                spans = spans[(spans[:, 0] == row) & (spans[:, 1] >= begin) & (spans[:, 1] < end)]
                alone = model(
                    packed["input_ids"][row : row + 1, begin:end],
                    mention_spans=spans - torch.tensor([row, begin, begin]),
                )
                for name in ("last_hidden_state", "bio_logits", "mlm_logits"):
                    torch.testing.assert_close(
                        getattr(together, name)[row, begin:end], getattr(alone, name)[0], atol=1e-5, rtol=1e-5
                    )


def test_padding_never_gives_nan(model):
    input_ids = torch.zeros(2, 8, dtype=torch.long)
    input_ids[0, :3] = torch.tensor([2, 9, 3])
    for inputs in ({"attention_mask": (input_ids != 0).long()}, {"document_index": (input_ids != 0).long()}):
        output = model(input_ids, **inputs)
        assert output.last_hidden_state.isfinite().all()
        output.last_hidden_state.sum().backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_masks_and_positions_of_segments():
    index = torch.tensor([[1, 1, 2, 2, 2, 0], [1, 0, 0, 0, 0, 0]])
    assert restarting_position_ids(index).tolist() == [[0, 1, 0, 1, 2, 0], [0, 0, 1, 2, 3, 4]]
    mask = attention_mask_of_segments(index)
    assert mask.shape == (2, 1, 6, 6)
    assert mask[0, 0].int().tolist()[0] == [1, 1, 0, 0, 0, 0]
    assert mask[0, 0].int().tolist()[3] == [0, 0, 1, 1, 1, 0]
    assert mask.any(dim=-1).all()
    assert attention_mask_of_rows(torch.tensor([[1, 0], [0, 0]])).squeeze().tolist() == [[True, False], [True, True]]


def test_a_row_longer_than_the_position_table_is_refused(model):
    with pytest.raises(ValueError, match="rows of 33 positions; expected at most 32"):
        model(torch.ones(1, 33, dtype=torch.long))


def test_gradient_checkpointing_changes_no_gradient(make_model, packed_batch):
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    gradients = []
    for checkpointing in (False, True):
        model = make_model(**no_dropout).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(**packed_batch).loss.backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    torch.testing.assert_close(gradients[1], gradients[0])
