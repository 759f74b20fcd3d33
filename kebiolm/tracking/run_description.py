"""What MLflow is to know of a run besides its figures, written down before any server is asked."""

from __future__ import annotations

import getpass
import json
import os
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kebiolm.errors import UserError
from kebiolm.files import write_json

RUN = "mlflow_run.json"
RUNNING, FINISHED, FAILED, KILLED = "RUNNING", "FINISHED", "FAILED", "KILLED"
"""MLflow's words for the state of a run."""

_SQLITE = "sqlite:///"


@dataclass(frozen=True, kw_only=True)
class RunDescription:
    """A run as MLflow is to show it."""

    tracking_uri: str
    """MLflow's address, such as "sqlite:///mlflow.db" or "http://host:5000"; MLFLOW_TRACKING_URI wins over it."""
    experiment: str
    """Name of the experiment; made when absent."""
    run_name: str
    """Name shown for the run."""
    parameters: dict[str, Any]
    """Settings, inputs and environment."""
    artifacts: tuple[str, ...] = ()
    """Files to attach, by their paths inside the output folder; sent whenever they have changed."""
    dataset: dict[str, str] | None = None
    """{"name", "digest", "source"} of the data."""


def describe_run(output: Path, description: RunDescription) -> int:
    """Write down a new run, or that an earlier one goes on: MLflow's parameters stay as they were at the first start.

    Args:
        output: the run's folder.
        description: of the run as it starts now.

    Returns:
        Number of this start of the run, counted from 1.
    """
    parameters = {key: str(value) for key, value in description.parameters.items()}
    if not (output / RUN).is_file():
        described = {
            "run_id": None,
            "key": secrets.token_hex(8),
            "started_ms": int(time.time() * 1000),
            "user": _user(),
            "parameters": parameters,
            "tracking_uri": _with_absolute_path(os.environ.get("MLFLOW_TRACKING_URI") or description.tracking_uri),
            "experiment": description.experiment,
            "run_name": description.run_name,
            "dataset": description.dataset,
            "starts": 0,
        }
    else:
        described = described_run(output)
    first = described["parameters"]
    described["starts"] += 1
    described["latest_start"] = {key: value for key, value in parameters.items() if first.get(key) != value}
    described["artifacts"] = list(description.artifacts)
    described |= {"status": RUNNING, "ended_ms": None}
    write_json(output / RUN, described)
    return described["starts"]


def end_run(output: Path, status: str) -> None:
    """Write down how a run ended: FINISHED, FAILED or KILLED (asked to stop)."""
    write_json(output / RUN, described_run(output) | {"status": status, "ended_ms": int(time.time() * 1000)})


def described_run(output: Path) -> dict[str, Any]:
    """What was written down of the run at `output`, with the MLflow run's id once there is one.

    Raises:
        UserError: the folder holds no run.
    """
    path = output / RUN
    mend = "give the output folder of `kebiolm pretrain`"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(path, got="no such file", expected="the description of a run", mend=mend) from None
    except ValueError as error:
        raise UserError(path, got=str(error), expected="the description of a run", mend=mend) from None


def _user() -> str:
    """Name of the user, or the number where a container knows no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def _with_absolute_path(uri: str) -> str:
    """A relative sqlite path would mean another file when `kebiolm track sync` is called from another folder."""
    if not uri.startswith(_SQLITE):
        return uri
    return _SQLITE + str(Path(uri.removeprefix(_SQLITE)).resolve())
