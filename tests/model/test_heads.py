from __future__ import annotations

import pytest
import torch

from kebiolm.model import (
    KeBioLMForRelationExtraction,
    KeBioLMForSequenceClassification,
    KeBioLMForTokenClassification,
)


@pytest.fixture
def saved(model, tmp_path):
    model.save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def inputs():
    input_ids = torch.tensor([[2, 8, 9, 10, 3], [2, 11, 12, 3, 0]])
    return {"input_ids": input_ids, "attention_mask": (input_ids != 0).long()}


def test_token_classification(saved, inputs):
    head = KeBioLMForTokenClassification.from_pretrained(saved, num_labels=3).eval()
    labels = torch.tensor([[-100, 0, 1, 2, -100], [-100, 1, -100, -100, -100]])
    output = head(**inputs, labels=labels)
    assert output.keys() == {"loss", "logits"}
    states = head.bert(**inputs).last_hidden_state
    torch.testing.assert_close(output.logits, states @ head.classifier.weight.T + head.classifier.bias)
    log_p = output.logits.log_softmax(-1)
    expected = -(log_p[0, 1, 0] + log_p[0, 2, 1] + log_p[0, 3, 2] + log_p[1, 1, 1]) / 4
    torch.testing.assert_close(output.loss, expected)
    output.loss.backward()
    assert head.bert.embeddings.word_embeddings.weight.grad.abs().sum() > 0


def test_relation_extraction_reads_both_markers_in_order(saved, inputs):
    head = KeBioLMForRelationExtraction.from_pretrained(saved, num_labels=4).eval()
    assert head.classifier.weight.shape == (4, 48)
    output = head(**inputs, marker_positions=torch.tensor([[1, 3], [2, 2]]))
    assert output.keys() == {"logits"}
    states = head.bert(**inputs).last_hidden_state
    pairs = torch.stack([torch.cat([states[0, 1], states[0, 3]]), torch.cat([states[1, 2], states[1, 2]])])
    torch.testing.assert_close(output.logits, head.classifier(pairs))
    assert head(**inputs, marker_positions=torch.tensor([[1, 3], [2, 2]]), labels=torch.tensor([3, 0])).loss > 0


def test_sequence_classification_reads_cls(saved, inputs):
    head = KeBioLMForSequenceClassification.from_pretrained(saved, num_labels=2).eval()
    output = head(**inputs, labels=torch.tensor([1, 0]))
    assert output.logits.shape == (2, 2)
    torch.testing.assert_close(output.logits, head.classifier(head.bert(**inputs).last_hidden_state[:, 0]))
    expected = torch.nn.functional.cross_entropy(output.logits, torch.tensor([1, 0]))
    torch.testing.assert_close(output.loss, expected)
