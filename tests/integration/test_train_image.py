"""docker/train.Dockerfile: what the file promises (always), and training in the image (`pytest -m docker`)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from tests.conftest import REPOSITORY

SKIPPED = 77


@pytest.fixture(scope="module")
def lines() -> list[str]:
    text = (REPOSITORY / "docker" / "train.Dockerfile").read_text(encoding="utf-8")
    return text.replace("\\\n", " ").splitlines()


def test_image_does_not_run_as_root(lines):
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert users and not users[-1].startswith(("0", "root"))


def test_base_and_torch_can_be_chosen(lines):
    arguments = [line.split()[1].partition("=")[0] for line in lines if line.startswith("ARG ")]
    assert arguments == ["BASE_IMAGE", "TORCH", "TORCH_INDEX"]
    assert [line.split()[1] for line in lines if line.startswith("FROM ")] == ["${BASE_IMAGE}", "base", "base"]


def test_default_base_has_a_python_that_every_pinned_package_takes(lines):
    (base,) = [line.partition("=")[2] for line in lines if line.startswith("ARG BASE_IMAGE=")]
    python = {"ubuntu22.04": "3.10", "ubuntu24.04": "3.12"}[base.rpartition("-")[2]]
    pins = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    packages = {line.partition("==")[0] for line in pins if not line.startswith("#")}
    # Packages of the environment, not those that Ray brings along for itself once it is imported.
    everything = metadata.distributions(path=[sysconfig.get_path("purelib")])
    installed = [package for package in everything if package.name in packages]
    assert len(installed) > len(packages) / 2
    wanted = {package.name: package.metadata.get("Requires-Python", "") for package in installed}
    assert not [name for name, versions in wanted.items() if not SpecifierSet(versions).contains(f"{python}.0")]


def test_what_is_copied_is_there_and_reaches_the_builder(lines):
    copied = [
        word for line in lines if line.startswith("COPY ") and "--from" not in line for word in line.split()[1:-1]
    ]
    reaching = (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").splitlines()
    for name in copied:
        assert (REPOSITORY / name).exists(), name
        assert f"!{Path(name).parts[0]}" in reaching, name


@pytest.mark.docker
@pytest.mark.timeout(3600)
def test_training_in_the_image(request, sample_shards):
    if "docker" not in request.config.option.markexpr:
        pytest.skip("many minutes with a Docker engine: chosen by `pytest -m docker`")
    if shutil.which("docker") is None:
        pytest.skip("docker is not installed")
    environment = os.environ | {
        "SHARDS": str(sample_shards),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    script = Path(__file__).with_name("train_image.sh")
    done = subprocess.run([script], check=False, capture_output=True, text=True, env=environment)
    if done.returncode == SKIPPED:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stdout + done.stderr
