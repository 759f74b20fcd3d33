"""`kebiolm track sync`: deliver figures that MLflow did not get while it could not be reached."""

from __future__ import annotations

from pathlib import Path

from kebiolm.console import console
from kebiolm.errors import UserError
from kebiolm.training.tracking import RECORDS, RUN, sync_records


def sync_run(output: Path) -> int:
    """Send the undelivered figures of a run to its MLflow run; returns how many records went out.

    Raises:
        UserError: `output` is not a run that MLflow knows, or MLflow does not answer.
    """
    for name, what in ((RECORDS, "the figures of a run"), (RUN, "the MLflow run that the figures belong to")):
        if not (output / name).is_file():
            raise UserError(
                output / name,
                got="no such file" if output.is_dir() else "no such folder",
                expected=what,
                mend="give the OUTPUT folder of a run; if MLflow was never reached, start the run again: it sends all",
            )
    try:
        sent = sync_records(output)
    except Exception as error:  # MLflow raises many kinds
        raise UserError(
            output / RUN,
            got=f"no answer from MLflow ({type(error).__name__}: {str(error)[:200]})",
            expected="a tracking server that answers",
            mend="start it, or set MLFLOW_TRACKING_URI to where it is now; nothing is lost meanwhile",
        ) from None
    console.print(f"{sent} records sent" if sent else "nothing to send: MLflow has everything")
    return sent
