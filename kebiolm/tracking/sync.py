"""`kebiolm track sync`: deliver figures that MLflow did not get while it could not be reached."""

from __future__ import annotations

import tempfile
from pathlib import Path

from kebiolm.console import console
from kebiolm.errors import UserError
from kebiolm.tracking.delivery import CURSOR, Delivery
from kebiolm.tracking.metric_log import RECORDS
from kebiolm.tracking.run_description import FAILED, RUNNING, described_run, end_run
from kebiolm.tracking.sender import reason_of

SILENCE_S = 120.0
"""A run whose sender has given no sign of life for so long is over."""


def sync_run(output: Path) -> int:
    """Send what MLflow does not have of a run, and how it ended; returns how many records went out.

    Raises:
        UserError: `output` is not the folder of a run, or MLflow does not take them.
    """
    if not (output / RECORDS).is_file():
        got = "no such file" if output.is_dir() else "no such folder"
        mend = "give the output folder of `kebiolm pretrain`"
        raise UserError(output / RECORDS, got=got, expected="the figures of a run", mend=mend)
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
            expected="the tracking server that the run was started with",
            mend="start the server, then run `kebiolm track sync` again; nothing is lost meanwhile",
        ) from None
    console.print(f"{sent} records sent" if sent else "nothing to send: MLflow has everything")
    console.print("the run is going on" if is_going_on else f"MLflow shows the run as {described['status']}")
    return sent


def seconds_since_sign_of_life(output: Path) -> float:
    """Seconds since the run's sender was last seen at work, by the clock of the file system, which all nodes share."""
    if not (output / CURSOR).is_file():
        return float("inf")
    with tempfile.NamedTemporaryFile(dir=output) as now:
        return Path(now.name).stat().st_mtime - (output / CURSOR).stat().st_mtime
