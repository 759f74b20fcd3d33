"""What is checked before a launch, and what `launch/pretrain.sh` makes of signals. Two hosts: tests/integration."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kebiolm.errors import UserError
from kebiolm.training.config import load_config
from kebiolm.training.host_report import NVIDIA_DEVICES, SEES_OUTPUT, host_report, marker
from kebiolm.training.launch_check import check_hosts, read_hostfile
from kebiolm.training.stop_request import EXIT_STATUS, LAUNCH, STOP_FILE, StopRequest
from tests.training.launch import DEBUG_RECIPE, REPOSITORY

SCRIPT = REPOSITORY / "launch" / "pretrain.sh"
SETTINGS = [f"deepspeed={REPOSITORY / 'deepspeed_configs' / 'zero2_fp32.json'}", "optimization.max_steps=2000"]
_LONGEST_WAIT_S = 240


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """This environment's commands first on PATH, and a home without files."""
    home = tmp_path / "home"
    home.mkdir()
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW", "DS_ENV"))}
    return plain | {
        "PATH": path, "HOME": str(home), "PYTHONPATH": str(REPOSITORY), "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1",
    }  # fmt: skip


def settings(shards: Path, output: Path) -> list[str]:
    return [*SETTINGS, f"shards={shards}", f"output={output}", f"tracking.tracking_uri=sqlite:///{output}.db"]


def run_script(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([SCRIPT, *arguments], check=False, capture_output=True, text=True, env=environment)


def has_trained(output: Path) -> bool:
    figures = output / "metrics.jsonl"
    return figures.is_file() and '"train"' in figures.read_text(encoding="utf-8")


def test_hostfile_gives_hosts_in_their_order(tmp_path):
    assert read_hostfile(write(tmp_path / "hostfile", "# two\n\nnode2 slots=8\n node1  slots=4 \n")) == {
        "node2": 8,
        "node1": 4,
    }
    assert list(read_hostfile(REPOSITORY / "launch" / "hostfile.example")) == ["node1", "node2"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("node1\n", "hostfile:1: got node1; expected one `name slots=N` a line"),
        ("node1 slots=0\n", "hostfile:1: got node1 slots=0"),
        ("-oProxyCommand=x slots=1\n", "hostfile:1: got -oProxyCommand=x slots=1"),
        ("a slots=1\n#b\na slots=2\n", "hostfile:3: got a again"),
        ("# none\n", "hostfile: got no host"),
    ],
)
def test_bad_hostfile_is_one_line_with_its_place(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        read_hostfile(write(tmp_path / "hostfile", text))


def test_report_of_a_host_knows_whether_it_sees_the_output_folder(sample_shards, tmp_path):
    config = load_config(DEBUG_RECIPE, settings(sample_shards, tmp_path / "run"))
    report = host_report(config, "token")
    assert report[SEES_OUTPUT] == "no"
    marker(config, "token").parent.mkdir()
    marker(config, "token").touch()
    assert host_report(config, "token") == report | {SEES_OUTPUT: "yes"}
    other = load_config(DEBUG_RECIPE, [*settings(sample_shards, tmp_path / "run"), "seed=1"])
    changed = {name for name, value in host_report(other, "token").items() if value != report[name]}
    assert changed == {"settings", SEES_OUTPUT}
    assert int(report[NVIDIA_DEVICES]) >= 0


@pytest.mark.skipif(shutil.which("ssh") is None, reason="needs ssh")
def test_hosts_that_do_not_answer_are_named_all_at_once_and_nothing_is_left(sample_shards, tmp_path):
    arguments = settings(sample_shards, tmp_path / "run")
    slots = {"a.invalid": 1, "b.invalid": 1}
    errors = check_hosts(load_config(DEBUG_RECIPE, arguments), [str(DEBUG_RECIPE), *arguments], slots)
    assert [error.where for error in errors] == ["a.invalid", "b.invalid"]
    assert all("expected an answer to `ssh" in str(error) for error in errors)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "recipe: got none"),
        (
            ["--num_gpus", "2", "recipe.yaml"],
            "--num_gpus: got an unknown option; expected options of deepspeed after --",
        ),
        (["no/recipe.yaml"], "no/recipe.yaml: got no such file"),
        (["--hostfile", "no/hostfile", str(DEBUG_RECIPE)], "no/hostfile: got No such file or directory"),
    ],
)
def test_mistakes_are_one_line_before_anything_starts(environment, arguments, message):
    done = run_script(environment, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {message}") and done.stderr.count("\n") == 1


def test_variables_file_may_have_comments_and_its_bad_line_is_named(environment, tmp_path):
    good = write(tmp_path / "good", "# comment\n\nNCCL_DEBUG=INFO\n")
    assert "no/recipe.yaml" in run_script(environment | {"DS_ENV_FILE": str(good)}, "no/recipe.yaml").stderr
    bad = write(tmp_path / "bad", "export NCCL_DEBUG=INFO\n")
    done = run_script(environment | {"DS_ENV_FILE": str(bad)}, "no/recipe.yaml")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"{bad}: got 'export NCCL_DEBUG=INFO'; expected NAME=value" in done.stderr


def test_script_asks_the_run_to_stop_at_sigterm_and_hands_on_its_status(environment, sample_shards, tmp_path):
    output, log = tmp_path / "run", tmp_path / "log"
    command = [
        SCRIPT,
        DEBUG_RECIPE,
        *settings(sample_shards, output),
        "--",
        "--num_gpus",
        "1",
        "--master_port",
        "29417",
    ]
    with log.open("w", encoding="utf-8") as stream:
        job = subprocess.Popen(command, stdout=stream, stderr=stream, env=environment, cwd=REPOSITORY)
    deadline = time.monotonic() + _LONGEST_WAIT_S
    while not has_trained(output) and job.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    job.send_signal(signal.SIGTERM)
    said = f"{job.wait(_LONGEST_WAIT_S)}: {log.read_text(encoding='utf-8')}"
    assert job.returncode == EXIT_STATUS, said
    assert "SIGTERM: the job saves a checkpoint" in said and f"stopped by {STOP_FILE}" in said
    assert any((output / "checkpoints").iterdir())
    assert not list(output.glob(f"{STOP_FILE}*"))


def test_job_obeys_the_launch_that_started_it_and_no_other(tmp_path, monkeypatch):
    monkeypatch.setenv(LAUNCH, "mine")
    request = StopRequest()
    request.watch(tmp_path, "job")
    (tmp_path / f"{STOP_FILE}.another").touch()
    for content in ("", "another job"):
        write(tmp_path / STOP_FILE, content)
        assert request.reason is None
    (tmp_path / f"{STOP_FILE}.mine").touch()
    assert request.reason == f"{STOP_FILE}.mine"
    request.forget()
    assert request.reason is None
    assert [path.name for path in tmp_path.iterdir()] == [f"{STOP_FILE}.another"]
