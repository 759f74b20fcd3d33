"""A run goes on with another number of processes: same samples, losses within 1e-4, optimizer states as they were."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.utils import safe_get_full_fp32_param
from safetensors.torch import load_file

from kebiolm.model import KeBioLMConfig
from kebiolm.training import elastic
from kebiolm.training.checkpoint import MODEL_FOLDER, find_checkpoint
from kebiolm.training.deepspeed_engine import init_distributed
from kebiolm.training.elastic import elastic_settings
from kebiolm.training.resume import ResumePoint, load_checkpoint
from kebiolm.training.sample_log import read_checksums
from tests.export.zero_checkpoints import EXPECTED, STEP, make_case
from tests.training.launch import (
    REPOSITORY,
    SETTINGS,
    Job,
    copy_run,
    launch_pretraining,
    losses,
    run_in_this_process,
)

TOLERANCE = 1e-4
STATES = ("exp_avg", "exp_avg_sq")


def assert_continues(run: Path, undisturbed: Path, *, after: int) -> None:
    """Compare a run that went on after a step with the undisturbed one, which had dropout on."""
    for kind in ("train", "heldout"):
        then, now = losses(undisturbed, kind), losses(run, kind)
        assert sorted(now) == sorted(then)
        for step in (step for step in now if step > after):
            assert now[step] == pytest.approx(then[step], abs=TOLERANCE)
    assert read_checksums(run) == read_checksums(undisturbed)


def whole_states(universal: Path) -> dict[str, torch.Tensor]:
    """Weights and moments of every parameter in a universal checkpoint, flat."""
    states = {}
    for file in (universal / "zero").rglob("*.pt"):
        state = torch.load(file, weights_only=False)
        if file.stem in {"fp32", *STATES}:
            states[f"{file.parent.name}.{file.stem}"] = state["param"].flatten()
        elif file.stem == "step":
            states[f"{file.parent.name}.step"] = torch.as_tensor(state)
    return states


def test_two_processes_go_on_as_one(
    trained_run: Path, sample_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copy_run(trained_run, tmp_path / "run", last_step=30)
    arrived: dict[str, torch.Tensor] = {}
    given: dict[str, torch.Tensor] = {}
    real = elastic.load_universal

    def load_and_look(engine: Any, copy: Path) -> None:
        real(engine, copy)
        given.update(whole_states(copy))
        for name, weight in engine.module.named_parameters():
            arrived[f"{name}.fp32"] = weight.detach().flatten().clone()
            for state in STATES:
                arrived[f"{name}.{state}"] = weight._hp_mapping.get_optim_state_fragment(state).clone()
        assert [state["step"] for state in engine.optimizer.optimizer.state.values()] == [30, 30]
        assert engine.skipped_steps == 0
        assert [group["weight_decay"] for group in engine.optimizer.optimizer.param_groups] == [0.01, 0.0]

    monkeypatch.setattr("kebiolm.training.resume.load_universal", load_and_look)
    # The same settings as the launched run had, dropout included.
    assert run_in_this_process(sample_shards, run, *SETTINGS, "evaluation.max_sequences=null")
    assert len(arrived) > 100
    for name, tensor in arrived.items():
        assert torch.equal(tensor, given[name]), name
    assert_continues(run, trained_run, after=30)
    assert not (run / "checkpoints" / "universal.tmp").exists()


def test_one_process_goes_on_as_two(sample_shards: Path, tmp_path: Path) -> None:
    settings = [*SETTINGS, "optimization.max_steps=8", "checkpoints.every_steps=4", "evaluation.every_steps=4"]
    settings += ["evaluation.max_sequences=4"]
    run_in_this_process(sample_shards, tmp_path / "one", *settings)
    run = copy_run(tmp_path / "one", tmp_path / "two", last_step=4)
    # What a job left that was killed while it converted.
    (run / "checkpoints" / "universal.tmp" / "step-00000004" / "zero").mkdir(parents=True)
    resumed = launch_pretraining(sample_shards, run, *settings).check()
    assert "converting the checkpoint of step 4 from 1 to 2 processes" in resumed.output
    assert_continues(run, tmp_path / "one", after=4)


def test_zero_3_goes_on_with_another_number_of_processes(sample_shards: Path, tmp_path: Path) -> None:
    settings = [*SETTINGS, f"deepspeed={REPOSITORY / 'deepspeed_configs' / 'zero3_fp32.json'}"]
    settings += ["optimization.max_steps=8", "checkpoints.every_steps=4", "evaluation.max_sequences=4"]
    Job(sample_shards, tmp_path / "two", *settings).wait().check()
    run = copy_run(tmp_path / "two", tmp_path / "one", last_step=4)
    run_in_this_process(sample_shards, run, *settings)
    assert_continues(run, tmp_path / "two", after=4)


@pytest.mark.parametrize("case", ["stage1-bf16-frozen", "stage3-frozen"])
def test_weights_of_two_processes_arrive_in_one(case: str, zero_checkpoints: Path, tmp_path: Path) -> None:
    init_distributed()
    checkpoint = find_checkpoint(Path(shutil.copytree(zero_checkpoints / case, tmp_path / "run")))
    config = KeBioLMConfig.from_pretrained(checkpoint / MODEL_FOLDER)
    engine = make_case(case, config.vocab_size, config.num_entities, **elastic_settings({}))
    load_checkpoint(engine, ResumePoint(checkpoint, step=STEP, world_size=2))
    expected = load_file(zero_checkpoints / case / EXPECTED)
    trained = {name: weight for name, weight in engine.module.named_parameters() if weight.requires_grad}
    assert len(trained) > 20
    for name, weight in trained.items():
        assert torch.equal(safe_get_full_fp32_param(weight), expected[name]), name
    moments = [state for states in engine.optimizer.optimizer.state.values() for state in states.items()]
    assert all(value == 1 for name, value in moments if name == "step")
    assert any(value.any() for name, value in moments if name == "exp_avg")


def test_another_micro_batch_size_is_said_and_other_settings_are_refused(
    trained_run: Path, sample_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(trained_run, tmp_path / "run"))
    with pytest.raises(ValueError, match=r"deepspeed\.settings\.bf16\.enabled: None then, True now"):
        bf16 = f"deepspeed={REPOSITORY / 'deepspeed_configs' / 'zero2_bf16.json'}"
        run_in_this_process(sample_shards, run, *SETTINGS, bf16)
    # The run is finished, so only the settings are looked at.
    assert run_in_this_process(sample_shards, run, *SETTINGS, "optimization.micro_batch_size=4")
    assert "going on with other settings: optimization.micro_batch_size: 2 then, 4 now" in capsys.readouterr().err
