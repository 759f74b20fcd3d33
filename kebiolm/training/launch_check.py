"""What can be known to fail before any GPU is taken: `launch/pretrain.sh` calls this first.

The settings are read, and with a hostfile every host is asked over ssh what it is and sees: a job of hosts that differ
in code, packages, shards or settings fails late or, worse, trains something else than one host would.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import secrets
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from rich.markup import escape

from kebiolm.console import USER_ERROR_STATUS, error_console, exit_on_user_error
from kebiolm.errors import UserError
from kebiolm.training.config import PretrainConfig, load_config
from kebiolm.training.host_report import NVIDIA_DEVICES, SEES_OUTPUT, host_report, marker
from kebiolm.training.run_folder import RUN_FILE
from kebiolm.training.stop_request import STOP_FILE

_SECONDS_TO_CONNECT = 10
_SECONDS_TO_ANSWER = 120
"""The first start of Python from a network file system can take a minute."""

# DeepSpeed hands every variable that begins with MLFLOW to the hosts on a command line, which all users there can read.
_SECRETS = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")


def read_hostfile(path: Path) -> dict[str, int]:
    """Read DeepSpeed's hostfile: one `name slots=N` a line, # begins a comment line.

    Returns:
        Number of processes by host, in the file's order; the first host is the one that the others call.

    Raises:
        UserError: the file cannot be read, has another line, names a host twice or none at all.
    """
    expected, mend = "one `name slots=N` a line", "see launch/hostfile.example"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        got = getattr(error, "strerror", None) or "a file that is not text"
        raise UserError(path, got=got, expected="a hostfile", mend=mend) from None
    slots: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = re.fullmatch(r"\s*([^\s-]\S*)\s+slots=([1-9]\d*)\s*", line)
        if match is None:
            raise UserError(f"{path}:{number}", got=line.strip(), expected=expected, mend=mend)
        if match[1] in slots:
            raise UserError(f"{path}:{number}", got=f"{match[1]} again", expected="each host once", mend=mend)
        slots[match[1]] = int(match[2])
    if not slots:
        raise UserError(path, got="no host", expected=expected, mend=mend)
    return slots


def check_hosts(config: PretrainConfig, arguments: list[str], slots: dict[str, int]) -> list[UserError]:
    """Ask every host what it is and sees, all at a time.

    Args:
        config: the run's settings, as read here.
        arguments: recipe and overrides as given, for the hosts to read themselves.
        slots: what `read_hostfile` returned.

    Returns:
        What must be mended, in the order of the hosts.

    Raises:
        UserError: shards or DeepSpeed's settings are not there on this host.
    """
    token = secrets.token_hex(8)
    with _marked(config, token), ThreadPoolExecutor(len(slots)) as pool:
        here = host_report(config, token)
        answers = pool.map(lambda host: _ask(host, token, arguments), slots)
        return [
            error for host, answer in zip(slots, answers, strict=True) for error in _judge(host, answer, here, slots)
        ]


def _ask(host: str, token: str, arguments: list[str]) -> dict[str, str] | UserError:
    """The report of one host, from the folder and with the Python that DeepSpeed's launcher would use there."""
    folder = os.getcwd()
    report = [sys.executable, "-m", "kebiolm.training.host_report", token, *arguments]
    command = f"cd {shlex.quote(folder)} && PYTHONPATH={shlex.quote(folder)} {shlex.join(report)}"
    options = ["-o", "BatchMode=yes", "-o", f"ConnectTimeout={_SECONDS_TO_CONNECT}"]
    try:
        done = subprocess.run(
            ["ssh", *options, host, command],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_SECONDS_TO_ANSWER, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        got = f"no answer in {_SECONDS_TO_ANSWER} s"
        return UserError(host, got=got, expected="a report of the host", mend="look at its load and file systems")
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    if done.returncode == 255:  # ssh's own
        got = lines[-1] if lines else "no connection"
        mend = "mend its network or its keys (ssh-copy-id), or comment it out in the hostfile"
        return UserError(host, got=got, expected=f"an answer to `ssh {host}` without a password", mend=mend)
    if done.returncode != 0:
        got = lines[-1] if lines else f"status {done.returncode}"
        return UserError(
            host, got=got.removeprefix("error: "), expected="this folder, its virtual environment and the inputs",
            mend="put them on a file system that all hosts share, at the same paths",
        )  # fmt: skip
    # A login script may have printed something before.
    return json.loads(done.stdout.splitlines()[-1])


def _judge(
    host: str, answer: dict[str, str] | UserError, here: dict[str, str], slots: dict[str, int]
) -> Iterator[UserError]:
    if isinstance(answer, UserError):
        yield answer
        return
    if answer[SEES_OUTPUT] != "yes":
        yield UserError(
            host, got="an output folder that is not the one of this host", expected="one that all hosts share",
            mend="choose an output on a shared file system",
        )  # fmt: skip
    for name, value in here.items():
        if name not in (SEES_OUTPUT, NVIDIA_DEVICES) and answer[name] != value:
            mend = "give all hosts the same, best by a shared file system"
            yield UserError(host, got=f"{name} {answer[name]}", expected=f"{value} as on this host", mend=mend)
    devices = int(answer[NVIDIA_DEVICES])
    if 0 < devices < slots[host] and os.environ.get("DS_ACCELERATOR") != "cpu":
        yield UserError(
            host, got=f"slots={slots[host]}", expected=f"at most its {devices} GPUs", mend="correct the hostfile"
        )


@contextmanager
def _marked(config: PretrainConfig, token: str) -> Iterator[None]:
    """Leave a file in the output folder for the time of the check; a folder that was not there is removed again."""
    folder = config.output
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    marker(config, token).touch()
    try:
        yield
    finally:
        marker(config, token).unlink()
        if is_new:
            folder.rmdir()


def _check_launcher() -> list[UserError]:
    expected = "what DeepSpeed reaches the hosts with"
    errors = [
        UserError(name, got="no such command", expected=expected, mend=f"install it (apt-get install {package})")
        for name, package in (("pdsh", "pdsh"), ("ssh", "openssh-client"))
        if shutil.which(name) is None
    ]
    return errors + [
        UserError(
            name, got="a secret in the environment", expected="none: with several hosts it is seen in `ps`",
            mend="unset it, and put it into ~/.mlflow/credentials",
        )
        for name in _SECRETS
        if os.environ.get(name)
    ]  # fmt: skip


def main() -> None:
    """Check, and print for the script two lines: the file by which a run is known, and the one that asks to stop."""
    parser = argparse.ArgumentParser(description="Check settings and hosts before a launch.")
    parser.add_argument("--hostfile", type=Path)
    parser.add_argument("config", type=Path, help="YAML recipe")
    parser.add_argument("overrides", nargs="*", help="section.key=value")
    parsed = parser.parse_args()
    with exit_on_user_error():
        config = load_config(parsed.config, parsed.overrides)
        errors = []
        if parsed.hostfile is not None:
            slots = read_hostfile(parsed.hostfile)
            errors = _check_launcher() or check_hosts(config, [str(parsed.config), *parsed.overrides], slots)
            if not errors:
                error_console.print(f"{len(slots)} hosts agree in code, packages, settings, shards and output folder")
    for error in errors:
        error_console.print(f"[bold red]error:[/] {escape(str(error))}")
    if errors:
        sys.exit(USER_ERROR_STATUS)
    print(config.output / RUN_FILE)
    print(config.output / STOP_FILE)


if __name__ == "__main__":
    main()
