"""optimization.activation_checkpointing: less memory in the backward pass, and the same numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kebiolm.training.train_step import model_inputs
from tests.training.one_process import make_one_process

ON = "optimization.activation_checkpointing=true"
DROPOUT = ["model.hidden_dropout_prob=0.2", "model.attention_probs_dropout_prob=0.2"]


@pytest.mark.parametrize("deepspeed", ["zero1_fp32", "zero3_fp32"])
def test_losses_and_weights_are_equal_bit_for_bit_with_dropout(deepspeed: str, sample_shards: Path) -> None:
    kept = make_one_process(sample_shards, *DROPOUT, deepspeed=deepspeed)
    recomputed = make_one_process(sample_shards, *DROPOUT, ON, deepspeed=deepspeed)
    for one, other in zip(kept.train(0, 3), recomputed.train(0, 3), strict=True):
        assert torch.equal(one.loss_sums, other.loss_sums)
        assert one.was_applied
    masters = [
        [parameter for group in run.engine.optimizer.optimizer.param_groups for parameter in group["params"]]
        for run in (kept, recomputed)
    ]
    assert all(torch.equal(one, other) for one, other in zip(*masters, strict=True))


def test_only_the_inputs_of_layers_are_kept_for_the_backward_pass(sample_shards: Path) -> None:
    settings = ["model.num_hidden_layers=8", "model.num_context_layers=6"]
    kept_bytes = {}
    for switch in ("false", "true"):
        run = make_one_process(sample_shards, *settings, f"optimization.activation_checkpointing={switch}")
        parameters = {parameter.data_ptr() for parameter in run.model.parameters()}
        saved: dict[int, int] = {}

        def keep(tensor: torch.Tensor, saved: dict[int, int] = saved, skip: set[int] = parameters) -> torch.Tensor:
            if tensor.data_ptr() not in skip:
                saved[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output = run.model(**model_inputs(run.batches(0)[0]))
        kept_bytes[switch] = sum(saved.values())
        assert output.loss.isfinite()
    assert kept_bytes["true"] < 0.5 * kept_bytes["false"]


def test_evaluation_is_not_touched(sample_shards: Path) -> None:
    run = make_one_process(sample_shards, ON)
    batch = model_inputs(run.batches(0)[0])
    with torch.no_grad():
        checkpointed = run.model.eval()(**batch).loss
        plain = make_one_process(sample_shards).model.eval()(**batch).loss
    assert torch.equal(checkpointed, plain)
