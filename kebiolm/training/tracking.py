"""Figures of a run: a local file first, MLflow from there.

Every record is appended to OUTPUT/metrics.jsonl before anything else happens. A background thread carries the lines on
to MLflow and remembers how far it came, so a tracking server that is slow, down or absent neither delays a step nor
loses a figure: what was not delivered goes out when the run is started again or by `kebiolm track sync OUTPUT`.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from pathlib import Path
from typing import Any

from kebiolm.console import error_console
from kebiolm.errors import UserError
from kebiolm.files import write_json

RECORDS = "metrics.jsonl"
RUN = "mlflow_run.json"
CURSOR = "metrics.sent.json"

_SQLITE = "sqlite:///"
_METRICS_PER_CALL = 500
_WAIT_S = 1.0
_LONGEST_WAIT_S = 30.0
_SECONDS_AT_THE_END = 30.0


class MetricLog:
    """Append-only JSON lines {"kind", "step", "time_ms", "metrics"}; a (kind, step) is written once only.

    A run that resumes repeats the steps since its last checkpoint and would record them twice; those are skipped.
    """

    def __init__(self, output: Path) -> None:
        self.path = output / RECORDS
        self._last_step: dict[str, int] = {}
        _cut_half_written_line(self.path)
        for record in read_records(self.path):
            self._last_step[record["kind"]] = record["step"]
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 (stays open as long as the run)

    def append(self, kind: str, step: int, metrics: dict[str, float]) -> None:
        """Record the metrics of one step; `kind` is "train" or "heldout"."""
        if step <= self._last_step.get(kind, -1):
            return
        record = {"kind": kind, "step": step, "time_ms": int(time.time() * 1000), "metrics": metrics}
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        self._last_step[kind] = step

    def close(self) -> None:
        """Put everything on disk."""
        os.fsync(self._file.fileno())
        self._file.close()


def read_records(path: Path) -> list[dict[str, Any]]:
    """All whole records of a metrics file, oldest first; empty where there is no file.

    Raises:
        UserError: a line is broken that is not the last one.
    """
    if not path.is_file():
        return []
    lines = path.read_bytes().split(b"\n")
    try:
        return [json.loads(line) for line in lines[:-1]]
    except ValueError as error:
        mend = "restore the file or choose another output"
        raise UserError(path, got=f"a broken line ({error})", expected="one JSON record a line", mend=mend) from None


def describe_run(
    output: Path,
    *,
    tracking_uri: str,
    experiment: str,
    run_name: str,
    parameters: dict[str, Any],
    artifacts: list[Path],
) -> None:
    """Write down what MLflow is to know of a run, before any server is asked; a run described earlier stays as it was.

    Args:
        output: the run's folder.
        tracking_uri: MLflow's address, such as "sqlite:///mlflow.db" or "http://host:5000"; the environment's
            MLFLOW_TRACKING_URI wins over it.
        experiment: name of the experiment; made when absent.
        run_name: name shown for the run.
        parameters: settings to record.
        artifacts: files inside `output` to attach.
    """
    path = output / RUN
    if path.is_file():
        return
    described = {
        "run_id": None,
        "final_status": "FINISHED",
        "tracking_uri": _with_absolute_path(os.environ.get("MLFLOW_TRACKING_URI") or tracking_uri),
        "experiment": experiment,
        "run_name": run_name,
        "parameters": {key: str(value) for key, value in parameters.items()},
        "artifacts": [str(artifact.relative_to(output)) for artifact in artifacts],
    }
    write_json(path, described)


class MlflowSender(threading.Thread):
    """Carries a run's records to MLflow in the background.

    Args:
        output: the run's folder, described by `describe_run`.
    """

    def __init__(self, output: Path) -> None:
        super().__init__(name="mlflow-sender", daemon=True)
        self.output = output
        self.tracking_uri = str(described_run(output)["tracking_uri"])
        self._stop_requested = threading.Event()
        self._final_status = "FINISHED"
        self.last_error: str | None = None

    def run(self) -> None:
        """Deliver until asked to stop, then until all is delivered or the time for it is over."""
        wait, client, run_id, is_described, deadline = _WAIT_S, None, None, False, float("inf")
        while True:
            stopping = self._stop_requested.is_set()
            if stopping and deadline == float("inf"):
                deadline = time.monotonic() + _SECONDS_AT_THE_END
            try:
                if client is None:
                    client, run_id = _open_run(self.output)
                while _deliver_some(client, run_id, self.output):
                    pass
                # After the figures: a server that cannot store files must not hold them back.
                if not is_described:
                    _send_description(client, run_id, self.output)
                    is_described = True
                if stopping:
                    client.set_terminated(run_id, self._final_status)
                    self.last_error = None
                    return
                wait, self.last_error = _WAIT_S, None
            except Exception as error:  # MLflow raises many kinds; none may reach the training loop
                self.last_error = " ".join(str(error).split())[:200] or type(error).__name__
                wait = min(2 * wait, _LONGEST_WAIT_S)
                if time.monotonic() > deadline:
                    return
            self._stop_requested.wait(min(wait, max(deadline - time.monotonic(), 0.0)))

    def finish(self, status: str) -> None:
        """Ask for the last delivery and wait for it, 30 seconds at most.

        Args:
            status: MLflow's status for the run: "FINISHED", "FAILED" or "KILLED".
        """
        self._final_status = status
        self._stop_requested.set()
        self.join(_SECONDS_AT_THE_END + 10.0)
        if self.is_alive() or self.last_error:
            write_json(self.output / RUN, described_run(self.output) | {"final_status": status})
            error_console.print(
                f"[yellow]MLflow at {self.tracking_uri} did not take everything ({self.last_error or 'no answer'}); "
                f"nothing is lost:[/] run `kebiolm track sync {self.output}` when it answers"
            )


def sync_records(output: Path) -> int:
    """Deliver what an unreachable server left undelivered; returns the number of records sent.

    Raises:
        UserError: the folder holds no run.
        mlflow.exceptions.MlflowException: the server still does not answer.
    """
    client, run_id = _open_run(output)
    total = 0
    while sent := _deliver_some(client, run_id, output):
        total += sent
    _send_description(client, run_id, output)
    client.set_terminated(run_id, described_run(output)["final_status"])
    return total


def log_artifact(output: Path, file: Path) -> None:
    """Attach a file to the MLflow run of the training run at `output`, if it has one already."""
    if (output / RUN).is_file() and (run_id := described_run(output)["run_id"]):
        _make_client(described_run(output)["tracking_uri"]).log_artifact(run_id, str(file))


def described_run(output: Path) -> dict[str, Any]:
    """What `describe_run` wrote, with the MLflow run's id once there is one.

    Raises:
        UserError: the folder holds no run.
    """
    path = output / RUN
    mend = "give the output folder of `kebiolm pretrain`"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(path, got="no such file", expected="the description of a run", mend=mend) from None
    except ValueError as error:
        raise UserError(path, got=str(error), expected="the description of a run", mend=mend) from None


def _open_run(output: Path) -> tuple[Any, str]:
    """Make the MLflow run, or go on with the one that was made earlier."""
    described = described_run(output)
    client = _make_client(described["tracking_uri"])
    if run_id := described["run_id"]:
        client.update_run(run_id, status="RUNNING")
        return client, run_id
    experiment = client.get_experiment_by_name(described["experiment"])
    if experiment:
        experiment_id = experiment.experiment_id
    else:
        # The tag makes MLflow's page open on runs and charts instead of its pages for language-model prompts.
        tags = {"mlflow.experimentKind": "custom_model_development"}
        place = _artifacts_beside(described["tracking_uri"])
        experiment_id = client.create_experiment(described["experiment"], place, tags=tags)
    run_id = client.create_run(experiment_id, run_name=described["run_name"]).info.run_id
    # At once: whatever fails from here on must not make a second run at the next attempt.
    write_json(output / RUN, described | {"run_id": run_id})
    return client, run_id


def _send_description(client: Any, run_id: str, output: Path) -> None:
    """Record the parameters and attach the files of a run; sending them again changes nothing."""
    from mlflow.entities import Param

    described = described_run(output)
    client.log_batch(run_id, params=[Param(key, value) for key, value in described["parameters"].items()])
    for artifact in described["artifacts"]:
        client.log_artifact(run_id, str(output / artifact))


def _artifacts_beside(uri: str) -> str | None:
    """Where files go: beside a local database rather than in the folder that the command happens to run in.

    Returns:
        None for a server, which knows its own place.
    """
    if not uri.startswith(_SQLITE):
        return None
    return (Path(uri.removeprefix(_SQLITE)).resolve().parent / "mlartifacts").as_uri()


def _with_absolute_path(uri: str) -> str:
    """A relative sqlite path would mean another file when `kebiolm track sync` is called from another folder."""
    if not uri.startswith(_SQLITE):
        return uri
    return _SQLITE + str(Path(uri.removeprefix(_SQLITE)).resolve())


def _make_client(uri: str) -> Any:
    # MLflow's own retries block for minutes; the sender has its own. Nothing is reported to anyone else.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.WARNING)
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def _deliver_some(client: Any, run_id: str, output: Path) -> int:
    """Send the next records after the cursor; returns how many.

    The original times are sent, and MLflow ignores a metric that is equal in key, step, time and value: sending the
    same lines again after a crash between delivery and cursor does no harm.
    """
    from mlflow.entities import Metric

    cursor_path = output / CURSOR
    start = json.loads(cursor_path.read_text(encoding="utf-8"))["bytes"] if cursor_path.is_file() else 0
    with open(output / RECORDS, "rb") as file:
        file.seek(start)
        metrics: list[Metric] = []
        records = 0
        while len(metrics) < _METRICS_PER_CALL and (line := file.readline()).endswith(b"\n"):
            record = json.loads(line)
            for name, value in record["metrics"].items():
                metrics.append(Metric(f"{record['kind']}/{name}", value, record["time_ms"], record["step"]))
            records += 1
            start += len(line)
    if records:
        client.log_batch(run_id, metrics=metrics)
        write_json(cursor_path, {"bytes": start})
    return records


def _cut_half_written_line(path: Path) -> None:
    """A killed run may leave half a line at the end; it was never confirmed, so it goes."""
    if not path.is_file():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole != len(content):
        os.truncate(path, whole)
