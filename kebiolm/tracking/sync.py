"""`kebiolm track sync`: deliver figures that MLflow did not get while it could not be reached."""

from __future__ import annotations

import tempfile
from pathlib import Path

from kebiolm.console import console
from kebiolm.errors import UserError
from kebiolm.files import write_json
from kebiolm.tracking.delivery import CURSOR, Delivery
from kebiolm.tracking.metric_log import RECORDS
from kebiolm.tracking.run_description import FAILED, RUN, RUNNING, described_run, end_run
from kebiolm.tracking.sender import reason_of
from kebiolm.tracking.tracking_uri import ENVIRONMENT, tracking_uri_of_environment

SILENCE_S = 120.0
"""A run that has given no sign of life for so long is over."""


def sync_run(output: Path) -> int:
    """Send what MLflow does not have of a run, and how it ended; returns how many records went out.

    Raises:
        UserError: `output` is not the folder of a run, nobody has said where MLflow is, or it does not take them.
    """
    if not (output / RECORDS).is_file():
        got = "no such file" if output.is_dir() else "no such folder"
        mend = "give the output folder of `kebiolm pretrain`"
        raise UserError(output / RECORDS, got=got, expected="the figures of a run", mend=mend)
    _find_address(output)
    is_going_on = described_run(output)["status"] == RUNNING and seconds_since_sign_of_life(output) < SILENCE_S
    if not is_going_on and described_run(output)["status"] == RUNNING:
        # Killed so suddenly that nobody could write it down.
        end_run(output, FAILED)
    delivery = Delivery(output)
    try:
        sent = delivery.send_figures()
        described = described_run(output)
        if not is_going_on:
            delivery.set_status(described["status"], described["ended_ms"])
        delivery.send_files()
    except UserError:
        raise
    except Exception as error:  # MLflow raises many kinds
        raise UserError(
            output,
            got=f"no good answer from MLflow at {described_run(output)['tracking_uri']} ({reason_of(error)})",
            expected="the run's tracking server",
            mend=f"start it, or name another in {ENVIRONMENT} if the run has never reached one; nothing is lost",
        ) from None
    console.print(f"{sent} records sent" if sent else "nothing to send: MLflow has everything")
    console.print("the run is going on" if is_going_on else f"MLflow shows the run as {described['status']}")
    return sent


def seconds_since_sign_of_life(output: Path) -> float:
    """Seconds since the run was last seen at work, by the clock of the file system, which all nodes share.

    Its sender shows itself every few seconds; a run without one at every record of its figures.
    """
    signs = [file.stat().st_mtime for file in (output / CURSOR, output / RECORDS) if file.is_file()]
    with tempfile.NamedTemporaryFile(dir=output) as now:
        return Path(now.name).stat().st_mtime - max(signs, default=float("-inf"))


def _find_address(output: Path) -> None:
    """Take the environment's address for a run that no server has yet; one that a server has stays there."""
    described, uri = described_run(output), tracking_uri_of_environment()
    if described["run_id"] is None and uri is not None:
        write_json(output / RUN, described | {"tracking_uri": uri})
    elif described["tracking_uri"] is None:
        raise UserError(
            output,
            got="a run without MLflow (tracking.tracking_uri is null); its figures are in metrics.jsonl",
            expected="an address to send them to",
            mend=f"set {ENVIRONMENT} and run `kebiolm track sync` again",
        )
    elif uri not in (None, described["tracking_uri"]):
        console.print(f"{ENVIRONMENT} is passed over: this run is at {described['tracking_uri']}", soft_wrap=True)
