"""The output folder of a run: what it was started with, and a refusal to mix two runs or two jobs in one folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from kebiolm.console import error_console
from kebiolm.errors import UserError
from kebiolm.files import write_json, write_text
from kebiolm.training.config import PretrainConfig
from kebiolm.training.job_lock import LOCK_FILE, JobLock

RUN_FILE = "run.json"
CONFIG_FILE = "config.resolved.yaml"

# Settings that may differ when a run goes on: they change what is seen of a run, not what it computes.
# What follows a bad batch may differ too: that is how a run goes on that has stopped at one.
_FREE_SECTIONS = ("output", "tracking.", "checkpoints.", "evaluation.", "stability.")
# These may differ because other cards need other ones; they change the rounding of sums and, the micro batch size, the
# draws of dropout. The stage of ZeRO, offloading and the precision must stay: checkpoints and results depend on them.
_ANNOUNCED = (
    "optimization.micro_batch_size",
    "optimization.activation_checkpointing",
    "deepspeed.settings.zero_",
)
_NOT_ANNOUNCED = ("deepspeed.settings.zero_optimization.stage", "deepspeed.settings.zero_optimization.offload")
# Paths may change too, as long as what lies there is the same.
_PATHS = ("shards", "deepspeed", "entities.init_from", "model.init_from")


def claim_run_folder(config: PretrainConfig, inputs: dict[str, Any]) -> JobLock:
    """Make the output folder of a new run, or check that an existing one belongs to the same run, and lock it.

    Args:
        config: the run's settings.
        inputs: what lies at the paths that the settings name, by name: fingerprints or contents.

    Returns:
        The lock, a context manager that gives the folder free.

    Raises:
        UserError: the folder holds a run with other settings or inputs (the message names what differs), or another
            job is at work on it.
    """
    computed = {key: value for key, value in config.flat().items() if key not in _PATHS}
    identity = {key: value for key, value in computed.items() if not key.startswith(_FREE_SECTIONS)}
    identity |= dict(_flatten(inputs))
    path = config.output / RUN_FILE
    if path.is_file():
        _compare(path, identity)
    elif config.output.is_dir() and any(not _is_of_a_start(entry) for entry in config.output.iterdir()):
        raise UserError(
            config.output, got="a folder with other files", expected="a new folder or that of an earlier run",
            mend="choose another output",
        )  # fmt: skip
    config.output.mkdir(parents=True, exist_ok=True)
    lock = JobLock(config.output).take()
    write_json(path, identity)
    write_text(config.output / CONFIG_FILE, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    return lock


def _is_of_a_start(entry: Path) -> bool:
    """Whether a file is what a job leaves that is killed right at its start."""
    return entry.name == LOCK_FILE or (entry.name.startswith(".") and entry.name.endswith(".tmp"))


def _compare(path: Path, identity: dict[str, Any]) -> None:
    """Say which settings differ that may, and refuse those that may not."""
    try:
        earlier = dict(_flatten(json.loads(path.read_text(encoding="utf-8"))))
    except ValueError as error:
        raise UserError(path, got=str(error), expected="the settings of a run", mend="choose another output") from None
    changed = [key for key in sorted(earlier.keys() | identity.keys()) if earlier.get(key) != identity.get(key)]
    words = {key: f"{key}: {earlier.get(key)!r} then, {identity.get(key)!r} now" for key in changed}
    announced = [key for key in changed if key.startswith(_ANNOUNCED) and not key.startswith(_NOT_ANNOUNCED)]
    refused = [words[key] for key in changed if key not in announced]
    if refused:
        raise UserError(
            path.parent,
            got=f"other settings than the run in it ({'; '.join(refused)})",
            expected="equal settings to resume it",
            mend="restore them or choose another output",
        )
    if announced:
        changes = "; ".join(words[key] for key in announced)
        error_console.print(f"[yellow]going on with other settings:[/] {changes}", soft_wrap=True)


def _flatten(value: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs = []
    for key, item in value.items():
        pairs += _flatten(item, f"{prefix}{key}.") if isinstance(item, dict) else [(f"{prefix}{key}", item)]
    return pairs
