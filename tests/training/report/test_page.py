"""The run's page: whole for every run, safe with every text, and at MLflow."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

from mlflow import MlflowClient

from kebiolm.tracking.run_description import described_run
from kebiolm.tracking.summary import REPORT
from kebiolm.training.report.line_chart import Curve, line_chart
from kebiolm.training.report.page import make_report_page
from kebiolm.training.report.write import REPORT_FILES, write_report

HOSTILE = '<script>alert("x")</script>'


class Structure(HTMLParser):
    """Checks that tags are closed in order; collects them and the text."""

    void = ("meta", "line", "rect", "circle", "polyline", "br")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open, self.tags, self.text = [], [], ""
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.void:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def record(kind: str, step: int, **metrics: float) -> dict:
    return {"kind": kind, "step": step, "time_ms": 1000 * step, "metrics": metrics}


def test_page_of_a_run_shows_its_newest_evaluation_and_its_settings(trained_run: Path) -> None:
    page = (trained_run / REPORT).read_text(encoding="utf-8")
    structure = Structure(page)
    assert "step 40 of 40" in structure.text
    assert "ZeRO 2, fp32, 2 processes" in structure.text
    for heading in ("Losses", "Held-out accuracies", "Confusion of labels", "Linking accuracy", "Found by the model"):
        assert heading in structure.text
    assert not re.search(r'(src|href)="', page)  # nothing is fetched from anywhere


def test_page_is_made_again_from_the_folder_with_equal_bytes(trained_run: Path) -> None:
    before = (trained_run / REPORT).read_bytes()
    write_report(trained_run)
    assert (trained_run / REPORT).read_bytes() == before


def test_page_without_held_out_sequences_or_steps_is_whole(tmp_path: Path) -> None:
    assert "step 3" in Structure(make_report_page("run", [record("train", 3, learning_rate=0.1)], {}, {})).text
    write_report(tmp_path)  # no figures yet
    assert not (tmp_path / REPORT).exists()


def test_texts_of_the_data_stay_texts() -> None:
    concept = {"cui": HOSTILE, "name": HOSTILE, "types": [HOSTILE], "weight": 1.0}
    mention = {"start": 0, "end": 8, "verdict": "span", "concepts": [concept, concept]}
    example = {"title": HOSTILE, "text": HOSTILE, "annotated": [mention], "found": [mention]}
    accuracies = ("masked_accuracy", "detection_f1", "linking_accuracy_at_1", "linking_accuracy_at_10")
    latest = {
        "step": 1,
        "metrics": dict.fromkeys(accuracies, 0.5),
        "confusion": [[1, 0, 0]] * 3,
        "by_type": [[HOSTILE, [2, 1, 1]]],
        "examples": [example],
    }
    structure = Structure(make_report_page(HOSTILE, [record("train", 1, loss=1.0)], latest, {HOSTILE: HOSTILE}))
    assert structure.tags.count("script") == 1
    assert structure.text.count(HOSTILE) >= 6


def test_chart_holds_all_its_points() -> None:
    curves = [
        Curve(name="one", points=((7, 3.0),), colour=0),
        Curve(name="equal", points=((1, 2.0), (9, 2.0)), colour=1),
        Curve(name="many", points=tuple((step, 1e-5 * step) for step in range(5000)), colour=2),
    ]
    for chosen in ([curves[0]], [curves[1]], [curves[2]], curves):
        chart = line_chart(chosen, title="t")
        numbers = [
            float(number) for number in re.findall(r"[ \"](-?[\d.]+),", chart) + re.findall(r",([\d.-]+)[ \"]", chart)
        ]
        assert numbers and all(0 <= number <= 720 for number in numbers)
    assert "many 0.04999" in line_chart([curves[2]], title="t") or "many 0.04" in line_chart([curves[2]], title="t")


def test_mlflow_has_the_page_the_tables_and_what_explains_the_run(trained_run: Path) -> None:
    described = described_run(trained_run)
    client = MlflowClient(described["tracking_uri"])
    run = client.get_run(described["run_id"])
    there = {file.path for folder in (None, "evaluation") for file in client.list_artifacts(run.info.run_id, folder)}
    assert {"config.resolved.yaml", *REPORT_FILES} <= there
    expected = {"deepspeed.zero_stage": "2", "deepspeed.precision": "fp32", "environment.world_size": "2"}
    assert expected.items() <= run.data.params.items()
    assert {"environment.torch", "environment.nodes", "shards.fingerprint"} <= run.data.params.keys()
    names = {"loss_train/mlm", "loss_heldout/linking", "accuracy_heldout/detection_f1", "speed/step_seconds"}
    assert names <= run.data.metrics.keys()
    assert run.data.metrics["speed/peak_memory_mib"] > 100
    (data,) = run.inputs.dataset_inputs
    assert described["parameters"]["shards.fingerprint"].startswith(data.dataset.digest)
