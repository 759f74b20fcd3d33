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
from kebiolm.tracking.tracking_uri import choose_tracking_uri

RUN = "mlflow_run.json"
RUNNING, FINISHED, FAILED, KILLED = "RUNNING", "FINISHED", "FAILED", "KILLED"
"""MLflow's words for the state of a run."""


@dataclass(frozen=True, kw_only=True)
class RunDescription:
    """A run as MLflow is to show it."""

    tracking_uri: str | None
    """MLflow's address, such as "sqlite:///mlflow.db" or "http://host:5000"; MLFLOW_TRACKING_URI wins over it.

    None: nothing is sent to MLflow."""
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

    Raises:
        UserError: MLFLOW_TRACKING_URI holds a password, or the folder's description of the run is broken.
    """
    tracking_uri = choose_tracking_uri(description.tracking_uri)
    parameters = {key: str(value) for key, value in description.parameters.items()}
    if not (output / RUN).is_file():
        described = {
            "run_id": None,
            "key": secrets.token_hex(8),
            "started_ms": int(time.time() * 1000),
            "user": _user(),
            "parameters": parameters,
            "tracking_uri": tracking_uri,
            "experiment": description.experiment,
            "run_name": description.run_name,
            "dataset": description.dataset,
            "starts": 0,
        }
    else:
        described = described_run(output)
        # An MLflow run stays where it is; until there is one, the newest address counts.
        if described["run_id"] is None:
            described["tracking_uri"] = tracking_uri or described["tracking_uri"]
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


def mark_as_running(output: Path) -> None:
    """Write down that a run goes on, where somebody took it for ended."""
    write_json(output / RUN, described_run(output) | {"status": RUNNING, "ended_ms": None})


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
