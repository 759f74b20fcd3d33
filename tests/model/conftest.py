"""A tiny KeBioLM and batches for it, shared by the tests of the model."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from kebiolm.model import KeBioLMConfig, KeBioLMForPreTraining

TINY = {
    "vocab_size": 61,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_context_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 32,
    "num_entities": 43,
    "entity_size": 8,
    "max_mentions": 4,
    "max_candidate_entities": 5,
    # Large, so that a wrong mask or a wrong span moves outputs by much more than the tolerances.
    "initializer_range": 0.3,
}
PACKED_LENGTHS = [[6, 9, 5], [12, 4], [7]]
"""Lengths of the segments in each row of `packed_batch`, [CLS] and [SEP] included."""


@pytest.fixture(scope="session")
def make_model() -> Callable[..., KeBioLMForPreTraining]:
    """`make_model(**config_fields)`: a tiny model with the same random weights each time, in eval mode."""

    def make(**fields: object) -> KeBioLMForPreTraining:
        torch.manual_seed(7)
        return KeBioLMForPreTraining(KeBioLMConfig(**TINY | fields)).eval()

    return make


@pytest.fixture
def model(make_model) -> KeBioLMForPreTraining:
    return make_model()


@pytest.fixture
def packed_batch() -> dict[str, torch.Tensor]:
    """Three rows of 3, 2 and 1 segments with gold mentions and labels of all three tasks."""
    generator = torch.Generator().manual_seed(3)
    length = 24
    input_ids = torch.randint(5, 61, (3, length), generator=generator)
    document_index = torch.zeros(3, length, dtype=torch.long)
    for row, lengths in enumerate(PACKED_LENGTHS):
        begin = 0
        for number, size in enumerate(lengths, start=1):
            document_index[row, begin : begin + size] = number
            input_ids[row, begin], input_ids[row, begin + size - 1] = 2, 3
            begin += size
    input_ids[document_index == 0] = 0
    mention_spans = torch.tensor([[0, 1, 3], [0, 3, 4], [0, 7, 10], [0, 16, 17], [1, 2, 6], [1, 13, 15], [2, 1, 6]])
    bio_labels = torch.where(document_index == 0, -100, 0)
    for row, start, end in mention_spans.tolist():
        bio_labels[row, start:end] = 2
        bio_labels[row, start] = 1
    mlm_labels = torch.full_like(input_ids, -100)
    mlm_labels[0, 1:3], mlm_labels[1, 4], mlm_labels[2, 2] = torch.tensor([11, 12]), 13, 14
    return {
        "input_ids": input_ids,
        "document_index": document_index,
        "mlm_labels": mlm_labels,
        "bio_labels": bio_labels,
        "mention_spans": mention_spans,
        "entity_labels": torch.tensor([5, -100, 42, 3, 17, 2, 9]),
    }
