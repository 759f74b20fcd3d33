"""A tiny pretraining gives the same losses with each backend of the entity attention."""

from __future__ import annotations

import pytest
import torch

STEPS = 8


def losses(make_model, batch, **config_fields):
    model = make_model(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **config_fields).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    curve = []
    for _ in range(STEPS):
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        curve.append(loss.item())
    return curve


@pytest.mark.parametrize("frozen", [False, True])
def test_same_loss_curve_with_each_backend(make_model, packed_batch, monkeypatch, frozen):
    curves = {}
    for backend in ("reference", "tiled", "cpu"):
        monkeypatch.setenv("KEBIOLM_KNN_BACKEND", backend)
        curves[backend] = losses(make_model, packed_batch, num_entities=300, freeze_entity_embeddings=frozen)
    assert curves["reference"][-1] < curves["reference"][0] - 0.1
    assert curves["tiled"] == pytest.approx(curves["reference"], abs=1e-5)
    assert curves["cpu"] == pytest.approx(curves["reference"], abs=1e-5)
