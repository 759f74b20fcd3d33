"""Attention inside segments: both ways without a mask give what the mask gives."""

from __future__ import annotations

import pytest
import torch

from kebiolm.model.attention import Segments, attend, attention_mask_of_segments, visibility_of_segments

LENGTHS = [6, 9, 5, 4, 1, 12, 11]
"""Of the segments of two rows of 24 positions."""
INDEX = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS)).view(2, 24)
OFFSETS = torch.tensor([0, 6, 15, 20, 24, 25, 37, 48])
WAYS = {
    "in turn": Segments(OFFSETS, LENGTHS, longest=24),
    "at once": Segments(OFFSETS, None, longest=24),
}


def make_states() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 24, 3, 8, generator=generator, requires_grad=True) for _ in range(3)]


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("way", WAYS)
def test_segments_give_values_and_gradients_of_the_mask(way):
    results = []
    for visibility in (attention_mask_of_segments(INDEX), WAYS[way]):
        states = make_states()
        attended = attend(*states, visibility, 0.0)
        attended.square().sum().backward()
        results.append([attended, *(state.grad for state in states)])
    for got, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_dropout_scales_the_weights_that_it_keeps():
    query, key, _ = make_states()
    segment = Segments(torch.tensor([0, 48]), [48], longest=48)
    torch.manual_seed(0)
    # With values of 1 an output is the sum of the weights kept, so it is 1 in the mean.
    sums = torch.stack([attend(query, key, torch.ones(2, 24, 3, 8), segment, 0.5) for _ in range(200)])
    torch.testing.assert_close(sums.mean(dim=0), torch.ones(2, 24, 3, 8), atol=0.25, rtol=0)
    assert sums.std(dim=0).min() > 0.01
    torch.manual_seed(0)
    assert torch.equal(attend(query, key, torch.ones(2, 24, 3, 8), segment, 0.5), sums[0])


def test_dropout_stays_inside_segments():
    outputs = []
    for added in (0.0, 100.0):
        query, key, value = (state.detach() for state in make_states())
        for states in (key, value):
            states[0, 6:15] += added  # the second segment
        torch.manual_seed(0)
        outputs.append(attend(query, key, value, WAYS["in turn"], 0.3))
    assert torch.equal(outputs[0][0, :6], outputs[1][0, :6])
    assert torch.equal(outputs[0][0, 15:], outputs[1][0, 15:])
    assert not torch.equal(outputs[0][0, 6:15], outputs[1][0, 6:15])


def test_a_mask_only_where_the_borders_are_unknown():
    settings = {"dtype": torch.float32, "head_size": 8}
    without = visibility_of_segments(INDEX, None, **settings)
    assert torch.equal(without, attention_mask_of_segments(INDEX))
    assert visibility_of_segments(INDEX, OFFSETS, **settings) == WAYS["in turn"]


def test_a_model_computes_the_same_with_and_without_borders(make_model, packed_batch):
    index = packed_batch["document_index"].flatten()
    begins = torch.ones_like(index, dtype=torch.bool)
    begins[1:] = index[1:] != index[:-1]
    begins[::24] = True
    offsets = torch.cat([begins.nonzero().squeeze(1), torch.tensor([72])])
    outputs = []
    for more in ({}, {"segment_offsets": offsets}):
        model = make_model()
        output = model(**packed_batch, **more)
        output.loss.backward()
        outputs.append([output.last_hidden_state, *(parameter.grad for parameter in model.parameters())])
    torch.testing.assert_close(outputs[1], outputs[0], atol=1e-5, rtol=1e-4)


def test_borders_go_with_the_numbers_of_the_segments(model, packed_batch):
    with pytest.raises(ValueError, match="segment_offsets without document_index"):
        model(packed_batch["input_ids"], segment_offsets=torch.tensor([0, 24, 48, 72]))
