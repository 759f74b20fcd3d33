"""Carry what a run's folder holds to its MLflow run; each call goes on where the last one stopped.

Everything may be sent twice without harm: MLflow ignores a metric that is equal in key, step, time and value, the
original times are sent, and a run is found again by a tag when the answer to its creation was lost.
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

from kebiolm.files import sha256_of_file, sha256_of_json, write_json
from kebiolm.tracking.metric_log import RECORDS
from kebiolm.tracking.metric_names import mlflow_name
from kebiolm.tracking.run_description import RUN, described_run
from kebiolm.tracking.system_metrics import SYSTEM_RECORDS
from kebiolm.tracking.tracking_uri import SQLITE

CURSOR = "metrics.sent.json"
"""How far each spool was delivered (bytes), and the hashes of the files and the description that MLflow has."""

SPOOLS = (RECORDS, SYSTEM_RECORDS)

_KEY_TAG = "kebiolm.run"
_METRICS_PER_CALL = 500
_ITEMS_PER_CALL = 100  # MLflow's limit for parameters and for tags
_DIGEST_LENGTH = 36  # MLflow's limit
# A request that takes longer counts as failed. MLflow's own retries would block for minutes.
_REQUEST_SECONDS = "15"


class Delivery:
    """Sends what MLflow does not have yet.

    Args:
        output: a folder in which `describe_run` wrote, with an address of MLflow.
    """

    def __init__(self, output: Path) -> None:
        self.output = output
        self._client: Any = None
        self._run_id = ""
        self._sent = _read_cursor(output / CURSOR)

    def send_figures(self) -> int:
        """Deliver all records that wait, and the parameters; returns how many records went out."""
        self._open()
        total = 0
        for spool in SPOOLS:
            while sent := self._send_some_records(spool):
                total += sent
        self._send_description()
        return total

    def send_files(self) -> None:
        """Attach the run's files that MLflow does not have as they are now."""
        self._open()
        for name in described_run(self.output)["artifacts"]:
            file = self.output / name
            if not file.is_file() or self._sent["files"].get(name) == (digest := sha256_of_file(file)):
                continue
            folder = str(Path(name).parent)
            self._client.log_artifact(self._run_id, str(file), None if folder == "." else folder)
            self._sent["files"][name] = digest
            self._save_cursor()

    def set_status(self, status: str, ended_ms: int | None = None) -> None:
        """Set the run's state, with the time of its end unless it goes on."""
        self._open()
        if ended_ms is None:
            self._client.update_run(self._run_id, status=status)
        else:
            self._client.set_terminated(self._run_id, status, ended_ms)

    def _open(self) -> None:
        """Make the MLflow run, or find the one that was made earlier."""
        if self._client is not None:
            return
        described = described_run(self.output)
        client = _make_client(described["tracking_uri"])
        self._run_id = described["run_id"] or _find_or_make_run(client, described)
        if described["run_id"] is None:
            write_json(self.output / RUN, described_run(self.output) | {"run_id": self._run_id})
        self._client = client

    def _send_description(self) -> None:
        """Record parameters, tags and the data set of a run."""
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param, RunTag

        described = described_run(self.output)
        shown = {key: described[key] for key in ("parameters", "latest_start", "starts", "dataset")}
        if self._sent["description"] == (digest := sha256_of_json(shown)):
            return
        parameters = [Param(key, value) for key, value in described["parameters"].items()]
        tags = {"kebiolm.starts": described["starts"], "kebiolm.output": self.output.resolve()}
        tags["mlflow.note.content"] = _note(self.output, described)
        if commit := (described["parameters"] | described["latest_start"]).get("environment.git_commit"):
            tags["mlflow.source.git.commit"] = commit
        tags |= {f"latest_start.{key}": value for key, value in described["latest_start"].items()}
        run_tags = [RunTag(key, str(value)) for key, value in tags.items()]
        for first in range(0, max(len(parameters), len(run_tags)), _ITEMS_PER_CALL):
            some = slice(first, first + _ITEMS_PER_CALL)
            self._client.log_batch(self._run_id, params=parameters[some], tags=run_tags[some])
        if data := described["dataset"]:
            dataset = Dataset(
                data["name"], data["digest"][:_DIGEST_LENGTH], "local", json.dumps({"uri": data["source"]})
            )
            self._client.log_inputs(
                self._run_id, datasets=[DatasetInput(dataset, [InputTag("mlflow.data.context", "pretraining")])]
            )
        self._sent["description"] = digest
        self._save_cursor()

    def _send_some_records(self, spool: str) -> int:
        """Send the next records of a spool; returns how many."""
        from mlflow.entities import Metric

        path = self.output / spool
        start = self._sent["bytes"].get(spool, 0)
        if not path.is_file() or path.stat().st_size == start:
            return 0
        metrics: list[Metric] = []
        records = 0
        with open(path, "rb") as file:
            # What MLflow has must be on disk here: after a power cut the run would record those steps again.
            os.fsync(file.fileno())
            file.seek(start)
            while len(metrics) < _METRICS_PER_CALL and (line := file.readline()).endswith(b"\n"):
                record = json.loads(line)
                for name, value in record["metrics"].items():
                    key = mlflow_name(record["kind"], name)
                    metrics.append(Metric(key, value, record["time_ms"], record["step"]))
                records += 1
                start += len(line)
        if records:
            self._client.log_batch(self._run_id, metrics=metrics)
            self._sent["bytes"][spool] = start
            self._save_cursor()
        return records

    def _save_cursor(self) -> None:
        write_json(self.output / CURSOR, self._sent)


def log_artifact(output: Path, file: Path) -> None:
    """Attach a file to the MLflow run of the training run at `output`, if it has one already."""
    if (output / RUN).is_file() and (run_id := described_run(output)["run_id"]):
        _make_client(described_run(output)["tracking_uri"]).log_artifact(run_id, str(file))


def _find_or_make_run(client: Any, described: dict[str, Any]) -> str:
    experiment = client.get_experiment_by_name(described["experiment"])
    if experiment:
        experiment_id = experiment.experiment_id
    else:
        # The tag makes MLflow's page open on runs and charts instead of its pages for language-model prompts.
        tags = {"mlflow.experimentKind": "custom_model_development"}
        place = _artifacts_beside(described["tracking_uri"])
        experiment_id = client.create_experiment(described["experiment"], place, tags=tags)
    found = client.search_runs([experiment_id], f"tags.`{_KEY_TAG}` = '{described['key']}'", max_results=1)
    if found:
        return found[0].info.run_id
    tags = {
        _KEY_TAG: described["key"],
        "mlflow.source.name": "kebiolm pretrain",
        "mlflow.source.type": "LOCAL",
        "mlflow.user": described["user"],
    }
    run = client.create_run(experiment_id, described["started_ms"], tags, described["run_name"])
    return run.info.run_id


def _note(output: Path, described: dict[str, Any]) -> str:
    """What the run's page says at its top, in Markdown."""
    starts = described["starts"]
    return "\n\n".join(
        [
            f"Folder of the run: `{output.resolve()}`" + (f" (start {starts})" if starts > 1 else ""),
            "**Artifacts, report.html**: loss curves, label confusion, linking by semantic type, linked sentences.",
            "**Model metrics**: `loss_heldout` and `loss_train` are means per target in nats; `accuracy_heldout` is in "
            "0..1; `speed` is of rank 0, but `tokens_per_second` is of all processes and without padding.",
            "**System metrics**: of the machine of rank 0.",
        ]
    )


def _artifacts_beside(uri: str) -> str | None:
    """Where files go: beside a local database rather than in the folder that the command happens to run in.

    Returns:
        None for a server, which knows its own place.
    """
    if not uri.startswith(SQLITE):
        return None
    return (Path(uri.removeprefix(SQLITE)).resolve().parent / "mlartifacts").as_uri()


def _make_client(uri: str) -> Any:
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", _REQUEST_SECONDS)
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def _read_cursor(path: Path) -> dict[str, Any]:
    """The cursor; from the start where there is none, or a power cut left half of one."""
    empty: dict[str, Any] = {"bytes": {}, "files": {}, "description": None}
    try:
        return empty | json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return empty
