"""deepspeed_configs/: what DeepSpeed reads in each file, and that no file lets a bad gradient reach the weights.

The settings and why:
    reduce_bucket_size, allgather_bucket_size, stage3_prefetch_bucket_size: 50 million elements (100 MB in fp16), a
        quarter of the model and just above the paper's entity table (477,039 rows x 104 columns), so that every
        parameter fits into a bucket. DeepSpeed's 500 million would take 1 GB, for a model of 0.3.
    overlap_comm false: the gradients of 160 million parameters are reduced in milliseconds, and the streams that would
        hide this time have lost gradients in several versions (DeepSpeed issues 5545, 7188, 8061).
    contiguous_gradients, reduce_scatter true: no fragments, and each process receives only its share.
    fp16: the loss scale starts at 2^16; each overflow but the first (hysteresis 2) halves it, 1,000 steps without one
        double it. A gradient that overflows at scale 1 is no matter of scale: there the run ends. 16 halvings and the
        first overflow are 17 steps in a row, below stability.max_skipped_in_a_row.
    bf16: gradients are reduced in fp32, and added up in fp32 over micro batches; bf16 keeps 8 bits of a sum. In stage 1
        that would take another optimizer of DeepSpeed's, with the whole fp32 gradient on each GPU: there bf16 adds up.
    zero_force_ds_cpu_optimizer false: offloading takes torch's fused AdamW, which needs no build.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch

from kebiolm.errors import UserError
from kebiolm.training import train_step
from kebiolm.training.config import OptimizationSection, StabilitySection
from kebiolm.training.deepspeed_engine import load_deepspeed_settings, with_run_numbers
from tests.conftest import REPOSITORY
from tests.training.one_process import OneProcess, make_one_process

FOLDER = REPOSITORY / "deepspeed_configs"
STAGES = ("1", "2", "3", "3_offload")
ON_CPU = [f"zero{stage}_{precision}" for stage, precision in itertools.product(STAGES, ("fp32", "bf16"))]


def state_of(run: OneProcess) -> list[torch.Tensor]:
    """All that a step changes: weights, their fp32 copies, AdamW's moments."""
    optimizer = run.engine.optimizer.optimizer
    tensors = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    tensors += [value for state in optimizer.state.values() for value in state.values()]
    tensors += [getattr(parameter, "ds_tensor", parameter) for parameter in run.model.parameters()]
    return [tensor.detach().clone() for tensor in tensors]


def are_equal(some: list[torch.Tensor], others: list[torch.Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(some, others, strict=True))


def test_there_is_a_file_for_every_stage_and_precision() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == {
        f"zero{stage}_{precision}" for stage in STAGES for precision in ("fp32", "bf16", "fp16")
    }


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_deepspeed_reads_what_the_name_says(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from deepspeed.runtime.config import DeepSpeedConfig

    monkeypatch.setattr("kebiolm.training.deepspeed_engine._device_name", lambda: "cuda")
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: (9, 0))
    optimization = OptimizationSection(micro_batch_size=8, max_grad_norm=0.7)
    config = DeepSpeedConfig(with_run_numbers(load_deepspeed_settings(path), optimization, 4))
    assert (config.train_micro_batch_size_per_gpu, config.gradient_accumulation_steps) == (8, 4)
    assert config.gradient_clipping == 0.7

    stage, _, precision = path.stem.removeprefix("zero").rpartition("_")
    zero = config.zero_config
    assert zero.stage == int(stage[0])
    assert (zero.contiguous_gradients, zero.reduce_scatter, zero.overlap_comm) == (True, True, False)
    largest_parameter = 477_039 * 104
    assert largest_parameter <= zero.reduce_bucket_size < 2 * largest_parameter
    offload = zero.offload_optimizer
    assert (offload is not None and offload.device == "cpu") == stage.endswith("offload")
    assert config.zero_force_ds_cpu_optimizer == (offload is None)

    assert (config.float16_config.enabled, config.bfloat16_config.enabled) == (precision == "fp16", precision == "bf16")
    assert config.bfloat16_config.check_grad_overflow
    if precision == "fp16":
        scale = config.float16_config
        assert (scale.loss_scale, scale.initial_scale_power, scale.loss_scale_window) == (0, 16, 1000)
        assert (scale.hysteresis, scale.min_loss_scale) == (2, 1)
        assert scale.initial_scale_power + scale.hysteresis - 1 < StabilitySection().max_skipped_in_a_row
    if precision == "bf16":
        assert config.communication_data_type == torch.float32
        assert config.grad_accum_dtype == (None if stage == "1" else "fp32")


@pytest.mark.parametrize("name", ON_CPU)
def test_step_with_a_bad_loss_changes_nothing_and_is_counted(
    name: str, sample_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_one_process(sample_shards, deepspeed=name)
    assert all(result.was_applied for result in run.train(0, 2))
    right = train_step.loss_sums
    for skipped, (bad, bad_micro_batch) in enumerate([(float("nan"), 0), (float("inf"), 1)], start=1):
        before = state_of(run)
        micro_batches = itertools.count()

        def broken(output: object, *, bad: float = bad, at: int = bad_micro_batch, n: object = micro_batches) -> object:
            return right(output) * (bad if next(n) == at else 1.0)

        monkeypatch.setattr(train_step, "loss_sums", broken)
        (result,) = run.train(2, 3)
        monkeypatch.setattr(train_step, "loss_sums", right)
        assert not result.was_applied
        assert not run.engine.was_step_applied()
        assert result.is_finite.tolist() == [bad_micro_batch != 0, bad_micro_batch != 1]
        assert run.engine.skipped_steps == skipped
        assert are_equal(state_of(run), before)  # bit for bit
        # Nothing of the bad gradient is left for the next step.
        assert run.train(3, 4)[0].was_applied
        after = state_of(run)
        assert not are_equal(after, before)
        assert all(tensor.isfinite().all() for tensor in after)


def test_every_stage_computes_the_same(sample_shards: Path) -> None:
    sums = {}
    for stage in STAGES:
        run = make_one_process(sample_shards, deepspeed=f"zero{stage}_fp32")
        sums[stage] = [result.loss_sums.tolist() for result in run.train(0, 3)]
    for stage in STAGES[1:]:
        for step, values in enumerate(sums["1"]):
            assert sums[stage][step] == pytest.approx(values, rel=1e-5)
    assert sums["1"][0] != sums["1"][2]


@pytest.mark.parametrize("name", ["zero2_bf16", "zero3_offload_fp32"])
def test_saved_and_loaded_run_goes_on_bit_for_bit(name: str, sample_shards: Path, tmp_path: Path) -> None:
    undisturbed = make_one_process(sample_shards, deepspeed=name)
    undisturbed.train(0, 2)
    undisturbed.engine.save_checkpoint(str(tmp_path), tag="two", save_latest=False)
    resumed = make_one_process(sample_shards, deepspeed=name)
    assert not are_equal(state_of(resumed)[:1], state_of(undisturbed)[:1])
    resumed.engine.load_checkpoint(str(tmp_path), tag="two")
    for one, other in zip(undisturbed.train(2, 4), resumed.train(2, 4), strict=True):
        assert torch.equal(one.loss_sums, other.loss_sums)
    assert are_equal(state_of(undisturbed), state_of(resumed))


def test_fused_optimizer_is_the_plain_one_but_for_rounding(sample_shards: Path) -> None:
    fused, plain = (make_one_process(sample_shards, f"optimization.fused={fused}") for fused in ("true", "false"))
    assert fused.engine.optimizer.optimizer.defaults["fused"]
    for one, other in zip(fused.train(0, 3), plain.train(0, 3), strict=True):
        assert one.loss_sums.tolist() == pytest.approx(other.loss_sums.tolist(), rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "no ZeRO stage, or stage 0"),
        ({"zero_optimization": {"stage": 0}}, "no ZeRO stage, or stage 0"),
        ({"zero_optimization": {"stage": 7}}, "does not take .stage Input should be"),
        ({"zero_optimization": {"stage": 1, "overlap_com": True}}, "overlap_com Extra inputs"),
        ({"zero_optimization": {"stage": 1, "compute_grad_norm": False}}, "switched off"),
        ({"zero_optimization": {"stage": 1}, "bf16": {"enabled": True, "check_grad_overflow": False}}, "switched off"),
        ({"zero_optimization": {"stage": 1}, "fp16": {"enabled": True, "min_loss_scale": 0}}, "min_loss_scale"),
        (
            {"zero_optimization": {"stage": 1}, "activation_checkpointing": {}},
            "got activation_checkpointing.* expected some of",
        ),
        ({"zero_optimization": {"stage": 1}, "comms_logger": {"enabled": "maybe"}}, "does not take"),
        ({"zero_optimization": True}, "another structure"),
    ],
)
def test_settings_that_cannot_be_trusted_are_refused_in_one_line(
    settings: dict[str, object], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(settings))
    with pytest.raises(UserError, match=message) as caught:
        load_deepspeed_settings(path)
    assert "\n" not in str(caught.value)


def test_fp16_on_a_cpu_is_refused() -> None:
    with pytest.raises(UserError, match="fp16 on a CPU") as caught:
        load_deepspeed_settings(FOLDER / "zero2_fp16.json")
    assert "zero2_fp32" in str(caught.value)


def test_bf16_on_an_old_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kebiolm.training.deepspeed_engine._device_name", lambda: "cuda")
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: (7, 0))
    with pytest.raises(UserError, match=r"compute capability 7\.0"):
        load_deepspeed_settings(FOLDER / "zero2_bf16.json")
    load_deepspeed_settings(FOLDER / "zero2_fp16.json")


def test_deepspeed_file_must_not_repeat_the_recipe(tmp_path: Path) -> None:
    path = tmp_path / "zero.json"
    path.write_text('{"train_batch_size": 8}')
    with pytest.raises(UserError, match="train_batch_size"):
        load_deepspeed_settings(path)
    path.write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        load_deepspeed_settings(path)
    for structure in ("[]", '{"fp16": null}'):
        path.write_text(structure)
        with pytest.raises(UserError, match="another structure"):
            load_deepspeed_settings(path)
    with pytest.raises(UserError, match="no such file"):
        load_deepspeed_settings(tmp_path / "absent.json")


def test_a_misspelt_precision_does_not_train_in_fp32(tmp_path: Path) -> None:
    path = tmp_path / "zero.json"
    path.write_text('{"zero_optimization": {"stage": 1}, "bf61": {"enabled": true}}')
    with pytest.raises(UserError, match=r"got bf61 \(did you mean bf16\?\)"):
        load_deepspeed_settings(path)
