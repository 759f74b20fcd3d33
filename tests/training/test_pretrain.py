"""Whole runs on the sample: real DeepSpeed processes, kill and resume, ZeRO stages, bad input."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from kebiolm.errors import UserError
from kebiolm.tracking.summary import print_summary
from kebiolm.training.checkpoint import complete_checkpoints, find_checkpoint
from tests.training.launch import REPOSITORY, STEPS, launch_pretraining, losses, run_in_this_process


def test_all_three_losses_fall_in_two_processes(trained_run: Path) -> None:
    heldout = losses(trained_run, "heldout")
    assert sorted(heldout) == [0, 20, STEPS]
    for name in ("loss_mlm", "loss_detection", "loss_linking"):
        assert heldout[STEPS][name] < heldout[0][name]
    assert sorted(losses(trained_run)) == list(range(1, STEPS + 1))
    assert [folder.name for folder in complete_checkpoints(trained_run / "checkpoints")] == [
        "step-00000030",
        "step-00000040",
    ]


def test_number_of_processes_micro_batches_and_zero_stage_do_not_change_the_losses(
    sample_shards: Path, tmp_path: Path
) -> None:
    settings = ["model.hidden_dropout_prob=0", "model.attention_probs_dropout_prob=0", "optimization.max_steps=6"]
    zero3 = f"deepspeed={REPOSITORY / 'deepspeed_configs' / 'zero3_fp32.json'}"
    runs = {name: tmp_path / name for name in ("one", "whole", "two")}
    run_in_this_process(sample_shards, runs["one"], *settings)
    run_in_this_process(sample_shards, runs["whole"], *settings, "optimization.micro_batch_size=4")
    launch_pretraining(sample_shards, runs["two"], *settings, zero3, "evaluation.max_sequences=4").check()
    for step, metrics in losses(runs["one"]).items():
        assert metrics == pytest.approx(losses(runs["whole"])[step], rel=1e-5)
        assert metrics == pytest.approx(losses(runs["two"])[step], rel=1e-5)


def test_every_backend_of_the_entity_search_gives_the_same_losses(
    sample_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = {name: tmp_path / name for name in ("reference", "tiled", "cpu")}
    for backend, output in runs.items():
        monkeypatch.setenv("KEBIOLM_KNN_BACKEND", backend)
        run_in_this_process(sample_shards, output, "optimization.max_steps=12")
    for kind in ("train", "heldout"):
        exact = losses(runs["reference"], kind)
        for step, metrics in exact.items():
            for backend in ("tiled", "cpu"):
                assert losses(runs[backend], kind)[step] == pytest.approx(metrics, abs=1e-5)
    assert losses(runs["reference"])[12]["loss_linking"] != losses(runs["reference"])[1]["loss_linking"]


@pytest.mark.parametrize("settings", ["zero1_bf16", "zero2_bf16"])
def test_precisions_agree(settings: str, sample_shards: Path, tmp_path: Path) -> None:
    reference, other = tmp_path / "reference", tmp_path / "other"
    run_in_this_process(sample_shards, reference, "optimization.max_steps=4")
    path = REPOSITORY / "deepspeed_configs" / f"{settings}.json"
    run_in_this_process(sample_shards, other, "optimization.max_steps=4", f"deepspeed={path}")
    for step, metrics in losses(reference).items():
        assert metrics == pytest.approx(losses(other)[step], rel=3e-2)


def test_batch_that_does_not_divide_is_refused(sample_shards: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="global_batch_size"):
        run_in_this_process(sample_shards, tmp_path / "run", "optimization.global_batch_size=5")


def test_missing_shards_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="kebiolm pack"):
        run_in_this_process(tmp_path / "absent", tmp_path / "run")


def test_vectors_that_are_not_there_are_one_line(sample_shards: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"entities\.init_from"):
        run_in_this_process(sample_shards, tmp_path / "run", f"entities.init_from={tmp_path / 'absent'}")


def test_diverged_loss_stops_the_run_before_it_is_saved(sample_shards: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="finite losses and gradients"):
        run_in_this_process(
            sample_shards,
            tmp_path / "run",
            "optimization.learning_rate=1.0e+30",
            "optimization.warmup_steps=0",
            "optimization.max_grad_norm=1.0e+30",
            "tracking.every_steps=7",
            "checkpoints.every_steps=2",
        )
    assert not [folder for folder in complete_checkpoints(tmp_path / "run" / "checkpoints") if "02" not in folder.name]
    recorded = losses(tmp_path / "run")
    assert all(math.isfinite(value) for metrics in recorded.values() for value in metrics.values())


def test_checkpoint_holds_what_export_needs(trained_run: Path) -> None:
    folder = find_checkpoint(trained_run) / "model"
    assert {"config.json", "training.json", "entity_vocab.tsv"} <= {file.name for file in folder.iterdir()}
    story = json.loads((folder / "training.json").read_text())
    assert story["latest_metrics"]["heldout"]["loss"] > 0
    assert story["settings"]["optimization.max_steps"] == STEPS


def test_summary_names_figures_and_places(trained_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_summary(trained_run)
    text = capsys.readouterr().out
    assert "step 0" in text
    assert f"step {STEPS}" in text
    assert json.loads((trained_run / "mlflow_run.json").read_text())["run_id"] in text
    assert "mlflow ui --backend-store-uri sqlite:///" in text
    assert 0.0 < float(text.split("most frequent entity is ")[1].split("%")[0]) < 20.0
