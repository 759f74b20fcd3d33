"""What a results file says of the machine, the versions and the command."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path


def describe_machine(packages: Sequence[str]) -> dict[str, str]:
    """Date, command, processor, load and versions, as lines of a results file.

    Args:
        packages: distributions whose versions matter.
    """
    module = Path(sys.argv[0])
    options = [_without_folders(word) for word in sys.argv[1:]]
    command = shlex.join(["python", "-m", f"tests.{module.parent.name}.{module.stem}", *options])
    versions = ", ".join([f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in packages)])
    return {
        "date": date.today().isoformat(),
        "command": f"`{command}`",
        "CPU": f"{_processor()}, {os.cpu_count()} cores",
        "load average at the start": f"{os.getloadavg()[0]:.1f}",
        "versions": versions,
    }


def _without_folders(word: str) -> str:
    return Path(word).name if "/" in word else word


def _processor() -> str:
    """The processor's family, without the exact model."""
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return " ".join(line.partition(":")[2].split()[:2])
    return platform.processor()
