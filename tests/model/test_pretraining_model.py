from __future__ import annotations

import pytest
import torch

ENTITY_TABLE = "bert.entity_linker.entity_embeddings.weight"


def unlabelled(batch: dict) -> dict:
    return {key: batch[key] for key in ("input_ids", "document_index")}


@pytest.mark.parametrize("gold", [True, False])
def test_a_row_does_not_depend_on_its_batch(make_model, packed_batch, gold):
    model = make_model(initializer_range=0.1)
    spans = packed_batch["mention_spans"]
    with torch.no_grad():
        together = model(**unlabelled(packed_batch), mention_spans=spans if gold else None)
        for row in range(3):
            inputs = {key: value[row : row + 1] for key, value in unlabelled(packed_batch).items()}
            own = spans[spans[:, 0] == row] - torch.tensor([row, 0, 0])
            alone = model(**inputs, mention_spans=own if gold else None)
            for name in ("last_hidden_state", "bio_logits", "mlm_logits"):
                torch.testing.assert_close(getattr(together, name)[row], getattr(alone, name)[0], atol=1e-6, rtol=1e-6)
            of_row = together.mention_spans[:, 0] == row
            assert together.mention_spans[of_row, 1:].tolist() == alone.mention_spans[:, 1:].tolist()
            assert together.entity_topk_rows[of_row].tolist() == alone.entity_topk_rows.tolist()


def test_detection_finds_mentions_within_the_rules(model, packed_batch):
    output = model(**unlabelled(packed_batch))
    assert len(output.mention_spans) > 0
    assert output.loss is None
    index = packed_batch["document_index"]
    for row, start, end in output.mention_spans.tolist():
        segment = index[row, start - 1 : end + 1]  # with a neighbour on each side, since [CLS] and [SEP] are no mention
        assert segment.min() == segment.max() > 0
    assert output.mention_spans[:, 0].bincount().max() <= model.config.max_mentions


def test_entity_labels_do_not_change_states(model, packed_batch):
    with torch.no_grad():
        with_labels = model(**packed_batch).last_hidden_state
        spans_only = model(**unlabelled(packed_batch), mention_spans=packed_batch["mention_spans"]).last_hidden_state
    torch.testing.assert_close(with_labels, spans_only, atol=0, rtol=0)
    with pytest.raises(ValueError, match="entity_labels without mention_spans"):
        model(**unlabelled(packed_batch), entity_labels=packed_batch["entity_labels"])


def test_masked_positions_get_the_same_logits_as_a_full_pass(model, packed_batch):
    with torch.no_grad():
        at_masks = model(**packed_batch).mlm_logits
        everywhere = model(**{k: v for k, v in packed_batch.items() if k != "mlm_labels"}).mlm_logits
    torch.testing.assert_close(at_masks, everywhere[packed_batch["mlm_labels"] != -100], atol=1e-5, rtol=1e-5)


def test_gradients_reach_every_parameter(model, packed_batch):
    model(**packed_batch).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        if not name.endswith("attention.self.key.bias"):  # softmax cancels it
            assert parameter.grad.abs().sum() > 0, name
    table = model.get_parameter(ENTITY_TABLE).grad
    assert (table[:3] == 0).all()
    assert (table[3:].abs().sum(dim=1) > 0).all()  # Eq. 10 pushes every entity


@pytest.mark.parametrize("no_mentions", [True, False])
def test_a_batch_without_targets_still_touches_every_parameter(model, packed_batch, no_mentions):
    packed_batch["mlm_labels"].fill_(-100)
    packed_batch["entity_labels"].fill_(-100)
    if no_mentions:
        packed_batch["mention_spans"] = packed_batch["mention_spans"][:0]
        packed_batch["entity_labels"] = packed_batch["entity_labels"][:0]
    packed_batch["bio_labels"].fill_(-100)
    output = model(**packed_batch)
    assert (output.loss, output.mlm_count, output.detection_count, output.linking_count) == (0, 0, 0, 0)
    output.loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert (parameter.grad == 0).all(), name


@pytest.mark.parametrize(("k", "num_entities"), [(100, 43), (5, 4)])
def test_more_neighbours_than_entities(make_model, packed_batch, k, num_entities):
    model = make_model(max_candidate_entities=k, num_entities=num_entities)
    packed_batch["entity_labels"].clamp_(max=num_entities - 1)
    output = model(**packed_batch)
    visible = num_entities - 3
    assert output.entity_topk_rows.shape == (7, min(k, visible))
    assert output.entity_topk_rows.min() == 3
    torch.testing.assert_close(output.entity_topk_weights.sum(dim=1), torch.ones(7))
    output.loss.backward()


def test_frozen_entity_table_stays_and_the_rest_learns(make_model, packed_batch):
    model = make_model(freeze_entity_embeddings=True)
    before = model.get_parameter(ENTITY_TABLE).clone()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(**packed_batch).loss.backward()
    optimizer.step()
    assert model.get_parameter(ENTITY_TABLE).grad is None
    assert torch.equal(model.get_parameter(ENTITY_TABLE), before)
    assert model.bert.entity_linker.mention_to_entity_projection.weight.grad.abs().sum() > 0


def test_without_fusion_layers_the_text_states_are_the_output(make_model, packed_batch):
    model = make_model(num_context_layers=3)
    seen = {}
    model.bert.context_encoder.register_forward_hook(lambda _module, _args, out: seen.update(h=out))
    output = model(**packed_batch)
    assert torch.equal(output.last_hidden_state, seen["h"])
    assert not any("entity_context_projection" in name or ".layer_norm" in name for name in model.state_dict())
    output.loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    # The released class adds entities and normalises even then.
    assert make_model(num_context_layers=3, semantics="released").bert.layer_norm is not None


def test_no_context_layers(make_model, packed_batch):
    assert make_model(num_context_layers=0)(**packed_batch).loss.isfinite()


def test_a_few_steps_lower_all_three_losses(make_model, packed_batch):
    model = make_model(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, initializer_range=0.1).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    sums = []
    for _ in range(30):
        output = model(**packed_batch)
        sums.append(torch.stack([output.mlm_loss_sum, output.detection_loss_sum, output.linking_loss_sum]))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
    assert (sums[-1] < 0.5 * sums[0]).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_runs_and_losses_are_fp32(model, packed_batch, dtype):
    exact = model(**packed_batch).loss
    output = model.to(dtype)(**packed_batch)
    assert output.last_hidden_state.dtype == dtype
    assert output.linking_loss_sum.dtype == output.mlm_loss_sum.dtype == torch.float32
    output.loss.backward()
    torch.testing.assert_close(output.loss, exact, rtol=0.1, atol=0)
