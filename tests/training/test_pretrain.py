"""Whole runs on the sample: real DeepSpeed processes, kill and resume, ZeRO stages, bad input."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest

from kebiolm.errors import UserError
from kebiolm.training.checkpoint import MARKER, complete_checkpoints, find_checkpoint
from kebiolm.training.config import load_config
from kebiolm.training.pretrain import pretrain
from kebiolm.training.summary import print_summary
from kebiolm.training.tracking import RECORDS, read_records
from tests.training.launch import DEBUG_RECIPE, REPOSITORY, STEPS, launch_pretraining, losses


def run_in_this_process(shards: Path, output: Path, *settings: str) -> None:
    common = ["evaluation.max_sequences=4", f"tracking.tracking_uri=sqlite:///{output.parent / 'mlflow.db'}"]
    deepspeed = f"deepspeed={REPOSITORY / 'deepspeed_configs' / 'zero1_fp32.json'}"
    pretrain(load_config(DEBUG_RECIPE, [deepspeed, f"shards={shards}", f"output={output}", *common, *settings]))


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


def test_killed_run_resumes_with_the_losses_of_the_undisturbed_one(
    trained_run: Path, sample_shards: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"

    def has_passed_a_checkpoint(output: Path) -> bool:
        metrics = output / RECORDS
        return metrics.is_file() and '"step": 14,' in metrics.read_text()

    killed = launch_pretraining(sample_shards, output, kill_when=has_passed_a_checkpoint)
    assert killed.status != 0
    assert 14 <= max(losses(output)) < STEPS
    # The steps between the checkpoint and the kill are repeated; forget the records of the first time, or they would
    # be kept and the repeated ones not compared.
    records = [record for record in read_records(output / RECORDS) if record["step"] <= 10]
    (output / RECORDS).write_text("".join(json.dumps(record) + "\n" for record in records))
    (output / "metrics.sent.json").unlink(missing_ok=True)

    resumed = launch_pretraining(sample_shards, output).check()
    assert "resuming after step 10 of" in resumed.output
    for kind in ("train", "heldout"):
        assert losses(output, kind) == losses(trained_run, kind)  # bit for bit


def test_resume_between_logged_steps(sample_shards: Path, tmp_path: Path) -> None:
    steps = ["optimization.max_steps=6", "checkpoints.every_steps=3", "tracking.every_steps=100"]
    run_in_this_process(sample_shards, tmp_path / "run", *steps)
    assert sorted(losses(tmp_path / "run")) == [1, 3, 6]
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000006")
    run_in_this_process(sample_shards, tmp_path / "run", *steps)
    assert (tmp_path / "run" / "checkpoints" / "step-00000006" / MARKER).is_file()


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


def test_same_folder_with_other_settings_is_refused_in_one_line(trained_run: Path, sample_shards: Path) -> None:
    refused = launch_pretraining(sample_shards, trained_run, "optimization.learning_rate=0.5")
    assert refused.status != 0
    lines = [line for line in refused.output.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert "optimization.learning_rate: 0.001 then, 0.5 now" in lines[0]
    assert "Traceback" not in refused.output


def test_deepspeed_file_that_changed_under_its_name_is_refused(sample_shards: Path, tmp_path: Path) -> None:
    settings = tmp_path / "mine.json"
    settings.write_text('{"zero_optimization": {"stage": 1}}')
    steps = ["optimization.max_steps=2", f"deepspeed={settings}"]
    run_in_this_process(sample_shards, tmp_path / "run", *steps)
    settings.write_text('{"zero_optimization": {"stage": 2}}')
    with pytest.raises(UserError, match=r"deepspeed\.settings: .*'stage': 1.* then, .*'stage': 2.* now"):
        run_in_this_process(sample_shards, tmp_path / "run", *steps)
    settings.rename(tmp_path / "moved.json").write_text('{"zero_optimization": {"stage": 1}}')
    run_in_this_process(sample_shards, tmp_path / "run", steps[0], f"deepspeed={tmp_path / 'moved.json'}")


def test_foreign_folder_is_refused(sample_shards: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(UserError, match="a folder with other files"):
        run_in_this_process(sample_shards, tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "precious"


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


def test_damaged_checkpoint_is_passed_over(trained_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained_run, run)
    newest = complete_checkpoints(run / "checkpoints")[-1]
    weights = newest / "mp_rank_00_model_states.pt"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match="cut short"):
        find_checkpoint(newest)
    from kebiolm.training.checkpoint import _newest_verified

    assert _newest_verified(run / "checkpoints") == "step-00000030"
    (newest / MARKER).unlink()
    assert find_checkpoint(run).name == "step-00000030"


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
