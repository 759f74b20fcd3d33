"""The output folder of a run: what it was started with, and a refusal to mix two runs in one folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from kebiolm.errors import UserError
from kebiolm.files import write_json, write_text
from kebiolm.training.config import PretrainConfig

RUN_FILE = "run.json"
CONFIG_FILE = "config.resolved.yaml"

# Settings that may differ when a run goes on: they change what is seen of a run, not what it computes.
# What follows a bad batch may differ too: that is how a run goes on that has stopped at one.
_FREE_SECTIONS = ("output", "tracking.", "checkpoints.", "evaluation.", "stability.")
# Paths may change too, as long as what lies there is the same.
_PATHS = ("shards", "deepspeed", "entities.init_from", "model.init_from")


def claim_run_folder(config: PretrainConfig, inputs: dict[str, Any]) -> None:
    """Make the output folder of a new run, or check that an existing one belongs to the same run.

    Args:
        config: the run's settings.
        inputs: what lies at the paths that the settings name, by name: fingerprints or contents.

    Raises:
        UserError: the folder holds a run with other settings or inputs; the message names what differs.
    """
    computed = {key: value for key, value in config.flat().items() if key not in _PATHS}
    identity = {key: value for key, value in computed.items() if not key.startswith(_FREE_SECTIONS)} | inputs
    path = config.output / RUN_FILE
    if path.is_file():
        _refuse_differences(path, identity)
    elif config.output.is_dir() and any(config.output.iterdir()):
        raise UserError(
            config.output, got="a folder with other files", expected="a new folder or that of an earlier run",
            mend="choose another output",
        )  # fmt: skip
    write_json(path, identity)
    write_text(config.output / CONFIG_FILE, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))


def _refuse_differences(path: Path, identity: dict[str, Any]) -> None:
    try:
        earlier = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(path, got=str(error), expected="the settings of a run", mend="choose another output") from None
    changed = [
        f"{key}: {earlier.get(key)!r} then, {identity.get(key)!r} now"
        for key in sorted(earlier.keys() | identity.keys())
        if earlier.get(key) != identity.get(key)
    ]
    if changed:
        raise UserError(
            path.parent,
            got=f"other settings than the run in it ({'; '.join(changed)})",
            expected="equal settings to resume it",
            mend="restore them or choose another output",
        )
