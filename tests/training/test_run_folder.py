"""A run's folder takes no other run, no other input and no second job; what may change is said."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from kebiolm.data.entity_vocab import FILE_NAME as ENTITY_VOCAB
from kebiolm.data.shard_format import PackedShards
from kebiolm.errors import UserError
from kebiolm.training.config import load_config
from kebiolm.training.job_lock import LOCK_FILE, Job
from kebiolm.training.pretrain import _inputs
from tests.training.launch import DEBUG_RECIPE, launch_pretraining, run_in_this_process

SHORT = ["optimization.max_steps=2"]


def test_same_folder_with_other_settings_is_refused_in_one_line(trained_run: Path, sample_shards: Path) -> None:
    refused = launch_pretraining(sample_shards, trained_run, "optimization.learning_rate=0.5")
    assert refused.status != 0
    lines = [line for line in refused.output.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert "optimization.learning_rate: 0.001 then, 0.5 now" in lines[0]
    assert "Traceback" not in refused.output


def test_deepspeed_file_that_changed_under_its_name_is_compared_by_content(
    sample_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = tmp_path / "mine.json"
    settings.write_text('{"zero_optimization": {"stage": 1}}')
    steps = [*SHORT, f"deepspeed={settings}"]
    run_in_this_process(sample_shards, tmp_path / "run", *steps)
    settings.write_text('{"zero_optimization": {"stage": 2}}')
    with pytest.raises(UserError, match=r"deepspeed\.settings\.zero_optimization\.stage: 1 then, 2 now"):
        run_in_this_process(sample_shards, tmp_path / "run", *steps)
    offload = {"stage": 1, "offload_optimizer": {"device": "cpu"}}
    settings.write_text(json.dumps({"zero_optimization": offload, "zero_force_ds_cpu_optimizer": False}))
    with pytest.raises(UserError, match=r"zero_optimization\.offload_optimizer\.device: None then, 'cpu' now"):
        run_in_this_process(sample_shards, tmp_path / "run", *steps)
    # The same content under another name, with a bucket size, which is said.
    settings.rename(tmp_path / "moved.json").write_text('{"zero_optimization": {"stage": 1, "reduce_bucket_size": 9}}')
    assert run_in_this_process(sample_shards, tmp_path / "run", *SHORT, f"deepspeed={tmp_path / 'moved.json'}")
    said = "going on with other settings: deepspeed.settings.zero_optimization.reduce_bucket_size: None then, 9 now"
    assert said in capsys.readouterr().err


def test_shards_tokenizer_and_vocabulary_are_compared_by_content(sample_shards: Path, tmp_path: Path) -> None:
    run_in_this_process(sample_shards, tmp_path / "run", *SHORT)
    moved = Path(shutil.copytree(sample_shards, tmp_path / "moved"))
    assert run_in_this_process(moved, tmp_path / "run", *SHORT)
    manifest = json.loads((moved / "manifest.json").read_text())
    tokenizer = next(name for name in manifest["files"] if name.startswith("tokenizer/"))
    for name in (tokenizer, ENTITY_VOCAB):
        changed = json.loads(json.dumps(manifest))
        changed["files"][name]["sha256"] = "0" * 64
        (moved / "manifest.json").write_text(json.dumps(changed))
        with pytest.raises(UserError, match=r"shards\.fingerprint"):
            run_in_this_process(moved, tmp_path / "run", *SHORT)


def test_start_weights_are_compared_by_content_too(sample_shards: Path, tmp_path: Path) -> None:
    start = tmp_path / "bert"
    start.mkdir()
    (start / "config.json").write_text("{}")
    (start / "model.safetensors").write_bytes(b"weights")
    shards = PackedShards.load(sample_shards)

    def inputs(folder: Path) -> dict[str, Any]:
        settings = [f"shards={sample_shards}", "output=unused", f"model.init_from={folder}"]
        return _inputs(load_config(DEBUG_RECIPE, settings), shards, {})

    before = inputs(start)
    assert inputs(Path(shutil.copytree(start, tmp_path / "moved"))) == before
    (start / "model.safetensors").write_bytes(b"Weights")
    assert {key for key, value in inputs(start).items() if value != before[key]} == {"model.init_from.sha256"}
    (start / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"neither model\.safetensors nor"):
        inputs(start)


def test_foreign_folder_is_refused(sample_shards: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(UserError, match="a folder with other files"):
        run_in_this_process(sample_shards, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


def test_second_job_is_refused_and_a_job_killed_right_at_its_start_blocks_nothing(
    sample_shards: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    output.mkdir()
    job = Job.of_this_process()
    (output / LOCK_FILE).write_text(json.dumps(asdict(job) | {"beats": 0}))
    with pytest.raises(UserError, match=rf"another job at work on it \(process {job.pid} on {job.host}\)"):
        run_in_this_process(sample_shards, output, *SHORT)
    (output / LOCK_FILE).write_text(json.dumps(asdict(replace(job, started=1)) | {"beats": 0}))
    (output / ".run.json.12-ab.tmp").write_text("{")
    assert run_in_this_process(sample_shards, output, *SHORT)
    assert not (output / LOCK_FILE).exists()
