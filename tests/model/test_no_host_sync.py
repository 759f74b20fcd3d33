"""A training step never asks the device for a number or a size, so on a GPU the host runs ahead of it.

The step runs on tensors that have shapes and no values; whatever would need a value, such as `.item()`, a boolean
index or `nonzero`, raises there. Attention is the GPUs' way, with the kernel that torch would choose on one.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.nested._internal import sdpa
from torch.nn.attention import SDPBackend

from kebiolm.data.collator import PretrainingCollator
from kebiolm.data.shard_format import PackedShards
from kebiolm.model import KeBioLMConfig, KeBioLMForPreTraining, modeling_kebiolm
from kebiolm.model.attention import Segments
from kebiolm.training.metrics import count_targets, loss_sums
from kebiolm.training.train_step import model_inputs

SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_context_layers": 2, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def batch(sample_shards: Path) -> dict[str, torch.Tensor]:
    shards = PackedShards.load(sample_shards)
    collator = PretrainingCollator.from_shards(shards, seed=0)
    return collator([shards.train[0], shards.train[1]], [0, 1], [0, 0])


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def segments(document_index: torch.Tensor, offsets: torch.Tensor, **_: object) -> Segments:
        return Segments(offsets, None, longest=document_index.shape[1])

    monkeypatch.setattr(modeling_kebiolm, "visibility_of_segments", segments)
    monkeypatch.setattr(sdpa, "_select_sdp_backend", lambda *_: SDPBackend.FLASH_ATTENTION)


def step(batch: dict[str, torch.Tensor], **changes: object) -> list[torch.Tensor | None]:
    """Forward and backward as `TrainStep` does them, on tensors without values; returns the gradients.

    Args:
        batch: as the collator made it.
        changes: inputs of the model in place of the batch's.
    """
    sizeless = ShapeEnv(allow_scalar_outputs=False, allow_dynamic_output_shape_ops=False)
    scale = 2 / count_targets(batch)[:3].clamp(min=1).float()  # counted on the host
    with FakeTensorMode(allow_non_fake_inputs=False, shape_env=sizeless) as mode:
        inputs = {name: mode.from_tensor(tensor, static_shapes=True) for name, tensor in batch.items()} | changes
        config = KeBioLMConfig(**SIZES, intermediate_size=64, vocab_size=2000, num_entities=500, entity_size=16)
        model = KeBioLMForPreTraining._from_config(config, dtype=torch.bfloat16).train()
        sums = loss_sums(model(**model_inputs(inputs)))
        is_finite = sums.detach().isfinite().all()
        ((sums * mode.from_tensor(scale)).sum() * torch.where(is_finite, 1.0, torch.nan)).backward()
        return [parameter.grad for parameter in model.parameters()]


def test_a_training_step_asks_the_device_for_nothing(batch, as_on_a_gpu):
    gradients = step(batch)
    assert all(gradient is not None for gradient in gradients)


@pytest.mark.parametrize("missing", ["mlm_positions", "mention_spans"])
def test_the_check_finds_what_asks_for_sizes(batch, as_on_a_gpu, missing):
    left_out = {missing: None} | ({"entity_labels": None} if missing == "mention_spans" else {})
    with pytest.raises((DynamicOutputShapeException, DataDependentOutputException)):
        step(batch, **left_out)
