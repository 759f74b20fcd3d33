"""What one host of a job is and sees, to be compared over all hosts by `kebiolm.training.launch_check`."""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import kebiolm
from kebiolm.console import exit_on_user_error
from kebiolm.data.shard_format import PackedShards
from kebiolm.files import sha256_of_file
from kebiolm.training.config import PretrainConfig, load_config

_DIGITS = 12
"""Hexadecimal digits shown of a hash."""

NVIDIA_DEVICES = "NVIDIA devices"
SEES_OUTPUT = "sees the output folder"


def host_report(config: PretrainConfig, token: str) -> dict[str, str]:
    """Describe this host.

    Args:
        config: the run's settings, as read on this host.
        token: the launching host has made `marker(config, token)`.

    Returns:
        Values by name. All hosts must agree on every one but `NVIDIA_DEVICES`, their number, which must not be below
        the host's slots; with none, training runs on the CPU.

    Raises:
        UserError: shards or DeepSpeed's settings are not there.
    """
    settings = json.dumps(config.flat(), sort_keys=True).encode()
    return {
        "Python": platform.python_version(),
        "torch": _version("torch"),
        "deepspeed": _version("deepspeed"),
        "kebiolm": f"{kebiolm.__version__} ({_hash_of_sources()})",
        "settings": hashlib.sha256(settings).hexdigest()[:_DIGITS],
        "DeepSpeed settings": sha256_of_file(config.deepspeed)[:_DIGITS],
        "shards": PackedShards.load(config.shards).fingerprint[:_DIGITS],
        SEES_OUTPUT: "yes" if marker(config, token).is_file() else "no",
        NVIDIA_DEVICES: str(len(list(Path("/dev").glob("nvidia[0-9]*")))),
    }


def marker(config: PretrainConfig, token: str) -> Path:
    """The file in the output folder by which a host knows that it sees the launching host's folder."""
    return config.output / f".host-check-{token}.tmp"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _hash_of_sources() -> str:
    """Of the package's Python files: a version number alone would not tell two checkouts apart."""
    root = Path(kebiolm.__file__).parent
    total = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        total.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return total.hexdigest()[:_DIGITS]


def main() -> None:
    """Print the report of this host as one JSON line."""
    parser = argparse.ArgumentParser(description="Print what this host is and sees, as JSON.")
    parser.add_argument("token", help="names the marker that the launching host made")
    parser.add_argument("config", type=Path, help="YAML recipe")
    parser.add_argument("overrides", nargs="*", help="section.key=value")
    parsed = parser.parse_args()
    with exit_on_user_error():
        print(json.dumps(host_report(load_config(parsed.config, parsed.overrides), parsed.token)))


if __name__ == "__main__":
    main()
