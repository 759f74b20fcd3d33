"""Export of a finished run, and its model card at MLflow."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient

from kebiolm.export.to_hf import export_checkpoint
from kebiolm.linking import KeBioLM
from kebiolm.tracking.run_description import RUN


def test_run_is_exported_links_and_has_its_card_at_mlflow(trained_run: Path, tmp_path: Path) -> None:
    out = export_checkpoint(trained_run, tmp_path / "model")
    (linked,) = KeBioLM.from_pretrained(out, device="cpu").link(["Patients treated with aspirin."])
    assert all(mention.text == linked.text[mention.start : mention.end] for mention in linked.mentions)
    assert "40 optimizer steps" in (out / "README.md").read_text(encoding="utf-8")
    described = json.loads((trained_run / RUN).read_text())
    artifacts = MlflowClient(described["tracking_uri"]).list_artifacts(described["run_id"])
    assert "README.md" in {artifact.path for artifact in artifacts}


def test_unreachable_mlflow_is_one_line_and_no_failure(
    trained_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(trained_run, tmp_path / "run"))
    described = json.loads((run / RUN).read_text())
    # Another run id too: MLflow remembers within a process where the files of a run go.
    (run / RUN).write_text(json.dumps(described | {"tracking_uri": "http://127.0.0.1:9", "run_id": "0" * 32}))
    out = export_checkpoint(run, tmp_path / "model")
    assert (out / "model.safetensors").is_file()
    errors = capfd.readouterr().err
    assert errors.startswith("model card not attached") and len(errors.splitlines()) == 1
