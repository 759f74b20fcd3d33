"""Pretraining on two hosts: `TWO_HOSTS=HOST_MAKER pytest -m cluster` (see two_hosts.sh)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

SKIPPED = 77


@pytest.mark.cluster
@pytest.mark.timeout(1800)
def test_two_hosts_train_stop_and_resume_as_one(request, sample_shards):
    if "cluster" not in request.config.option.markexpr:
        pytest.skip("6 minutes and two hosts: chosen by `pytest -m cluster`")
    environment = os.environ | {"SHARDS": str(sample_shards), "PYTHONPATH": str(REPOSITORY)}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    script = Path(__file__).with_name("two_hosts.sh")
    done = subprocess.run([script], check=False, capture_output=True, text=True, env=environment)
    if done.returncode == SKIPPED:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stdout + done.stderr
