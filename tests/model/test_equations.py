"""Equations 3 to 5 and 8 to 10 recomputed from the weights with NumPy and plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

SPECIAL_ROWS = 3


def softmax(scores: np.ndarray) -> np.ndarray:
    e = np.exp(scores - scores.max())
    return e / e.sum()


def layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    return (x - x.mean()) / np.sqrt(x.var() + 1e-12) * weight + bias


@pytest.mark.parametrize("fusion_layer_norm", [True, False])
def test_lookup_fusion_and_losses_by_hand(make_model, packed_batch, fusion_layer_norm):
    model = make_model(fusion_layer_norm=fusion_layer_norm)
    bert = model.bert
    seen = {}
    bert.context_encoder.register_forward_hook(lambda _module, _args, out: seen.update(h=out))
    bert.recontext_encoder.register_forward_hook(lambda _module, args, _out: seen.update(fused=args[0]))
    with torch.no_grad():
        output = model(**packed_batch)
        everywhere = model(**{k: v for k, v in packed_batch.items() if k != "mlm_labels"}).mlm_logits.double().numpy()

    weights = {name: w.detach().double().numpy() for name, w in bert.named_parameters()}
    table = weights["entity_linker.entity_embeddings.weight"]
    h = seen["h"].double().numpy()
    expected_fused = h.copy()
    linking_loss, golds = 0.0, 0
    spans, gold_rows = packed_batch["mention_spans"].tolist(), packed_batch["entity_labels"].tolist()
    for m, ((row, start, end), gold) in enumerate(zip(spans, gold_rows, strict=True)):
        h_m = np.concatenate([h[row, start], h[row, end - 1]])
        projected = weights["entity_linker.mention_to_entity_projection.weight"] @ h_m
        projected += weights["entity_linker.mention_to_entity_projection.bias"]
        scores = table[SPECIAL_ROWS:] @ projected
        nearest = np.argsort(-scores)[: model.config.max_candidate_entities]
        a = softmax(scores[nearest])
        entity = sum(a_j * table[SPECIAL_ROWS + j] for a_j, j in zip(a, nearest, strict=True))
        np.testing.assert_array_equal(output.entity_topk_rows[m], nearest + SPECIAL_ROWS)
        np.testing.assert_allclose(output.entity_topk_weights[m], a, atol=1e-5)
        np.testing.assert_allclose(output.entity_topk_scores[m], scores[nearest], rtol=1e-4, atol=1e-5)
        addition = weights["entity_context_projection.weight"] @ entity + weights["entity_context_projection.bias"]
        for i in range(start, end):
            expected_fused[row, i] += addition
        # Row 2 is [NIL_ENT]: never an answer.
        if gold >= SPECIAL_ROWS:
            linking_loss -= np.log(softmax(scores)[gold - SPECIAL_ROWS])
            golds += 1
    if fusion_layer_norm:
        for row, i in np.ndindex(*h.shape[:2]):
            expected_fused[row, i] = layer_norm(
                expected_fused[row, i], weights["layer_norm.weight"], weights["layer_norm.bias"]
            )
    np.testing.assert_allclose(seen["fused"].numpy(), expected_fused, atol=1e-4)
    assert golds == 5
    assert int(output.linking_count) == golds
    np.testing.assert_allclose(output.linking_loss_sum, linking_loss, rtol=1e-5)

    detection_loss = mlm_loss = 0.0
    tokens = masked = 0
    for row, i in np.ndindex(*h.shape[:2]):
        if (label := int(packed_batch["bio_labels"][row, i])) != -100:
            logits = weights["mention_detector.weight"] @ h[row, i] + weights["mention_detector.bias"]
            detection_loss -= np.log(softmax(logits)[label])
            tokens += 1
        if (piece := int(packed_batch["mlm_labels"][row, i])) != -100:
            mlm_loss -= np.log(softmax(everywhere[row, i])[piece])
            masked += 1
    assert (int(output.detection_count), int(output.mlm_count)) == (tokens, masked)
    np.testing.assert_allclose(output.detection_loss_sum, detection_loss, rtol=1e-5)
    np.testing.assert_allclose(output.mlm_loss_sum, mlm_loss, rtol=1e-5)
    means = linking_loss / golds + detection_loss / tokens + mlm_loss / masked
    np.testing.assert_allclose(output.loss, means, rtol=1e-5)
