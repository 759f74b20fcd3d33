"""A process that hears nothing of the others says so in one line; the others here are real ones."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from deepspeed.constants import default_pg_timeout
from torch.distributed import constants

from kebiolm.training.deepspeed_engine import init_distributed
from kebiolm.training.lost_contact import EXIT_STATUS, exit_on_lost_contact, lost_contact

# Both join; then process 1 does what the test asks for, while process 0 waits for it in a barrier.
PROCESS = """
import os, sys, time
from datetime import timedelta
import torch.distributed as dist
from kebiolm.training.lost_contact import exit_on_lost_contact
rank, rendezvous, what = int(sys.argv[1]), sys.argv[2], sys.argv[3]
os.environ["RANK"] = str(rank)
with exit_on_lost_contact():
    dist.init_process_group("gloo", f"file://{rendezvous}", timedelta(seconds=3), world_size=2, rank=rank)
    dist.barrier()
    if rank == 1:
        os._exit(0) if what == "dies" else time.sleep(60)
    dist.barrier()
"""


@pytest.mark.parametrize(("what", "cause"), [("dies", "Connection"), ("hangs", "Timed out waiting")])
def test_process_whose_partner_is_gone_ends_with_one_line(tmp_path: Path, what: str, cause: str):
    command = [sys.executable, "-c", PROCESS]
    partner = subprocess.Popen([*command, "1", str(tmp_path / "rendezvous"), what])
    try:
        started = time.monotonic()
        done = subprocess.run(
            [*command, "0", str(tmp_path / "rendezvous"), what],
            check=False,
            capture_output=True,
            text=True,
            timeout=120,
        )
    finally:
        partner.kill()
        partner.wait()
    lines = [line for line in done.stderr.splitlines() if "[W" not in line]  # torch's own warnings
    assert done.returncode == EXIT_STATUS, done.stderr
    assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
    assert cause in lines[0] and "process 0: lost contact" in lines[0] and "from the last checkpoint" in lines[0]
    assert time.monotonic() - started < 100


def test_all_groups_wait_as_long_as_deepspeed_is_told_to():
    init_distributed()
    for group in (dist.group.WORLD, dist.new_group([0])):
        assert group._get_backend(torch.device("cpu")).options._timeout == default_pg_timeout
    assert default_pg_timeout != constants.default_pg_timeout  # PyTorch's


def test_other_errors_keep_their_traceback():
    error = RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    assert lost_contact(error) is None
    with pytest.raises(RuntimeError, match="cannot be multiplied"), exit_on_lost_contact():
        raise error
