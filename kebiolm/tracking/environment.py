"""Where a run runs: versions, commit, device, processes; facts that explain a figure years later."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import kebiolm

_PACKAGES = ("torch", "deepspeed", "transformers", "mlflow")
_GIT_SECONDS = 10.0


def describe_environment(*, device: str, world_size: int, nodes: int) -> dict[str, str]:
    """Facts by name, such as {"environment.torch": "2.10.0"}.

    Args:
        device: name of the processor or GPU that trains.
        world_size: processes of the run.
        nodes: machines of the run.
    """
    facts = {"device": device, "world_size": str(world_size), "nodes": str(nodes)}
    facts |= {"kebiolm": kebiolm.__version__, "python": platform.python_version()}
    facts |= {package: found for package in _PACKAGES if (found := _version(package))}
    if commit := git_commit(Path(kebiolm.__file__).parent):
        facts["git_commit"] = commit
    return {f"environment.{name}": fact for name, fact in facts.items()}


def git_commit(package: Path) -> str | None:
    """Commit of the checkout that the package runs from, with "+changes" if tracked files differ from it.

    Returns:
        None where the package is no part of a checkout; then its version says what it is.
    """
    # A virtual environment may lie inside somebody else's checkout: ask whether git knows the package itself.
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    commit = _git(package, "rev-parse", "HEAD")
    changes = _git(package, "status", "--porcelain", "--untracked-files=no")
    return f"{commit}+changes" if commit and changes else commit


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=_GIT_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
