"""Pretraining under Slurm: `pytest -m cluster`, as root with Slurm installed (see slurm.sh)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SKIPPED = 77


@pytest.mark.cluster
@pytest.mark.timeout(1800)
def test_slurm_job_stops_requeues_and_resumes(request, sample_shards):
    if "cluster" not in request.config.option.markexpr:
        pytest.skip("4 minutes and a Slurm: chosen by `pytest -m cluster`")
    environment = os.environ | {"SHARDS": str(sample_shards)}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    script = Path(__file__).with_name("slurm.sh")
    done = subprocess.run([script], check=False, capture_output=True, text=True, env=environment)
    if done.returncode == SKIPPED:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stdout + done.stderr
