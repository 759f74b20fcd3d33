"""`kebiolm track sync`: deliver figures that MLflow did not get while it could not be reached."""

from __future__ import annotations

from pathlib import Path

from kebiolm.console import console
from kebiolm.errors import UserError
from kebiolm.training.tracking import RECORDS, sync_records


def sync_run(output: Path) -> int:
    """Send the undelivered figures of a run to its MLflow run; returns how many records went out.

    Raises:
        UserError: `output` is not the folder of a run, or MLflow does not answer.
    """
    if not (output / RECORDS).is_file():
        got = "no such file" if output.is_dir() else "no such folder"
        mend = "give the output folder of `kebiolm pretrain`"
        raise UserError(output / RECORDS, got=got, expected="the figures of a run", mend=mend)
    try:
        sent = sync_records(output)
    except UserError:
        raise
    except Exception as error:  # MLflow raises many kinds
        raise UserError(
            output,
            got=f"no answer from MLflow ({type(error).__name__}: {str(error)[:200]})",
            expected="the tracking server that the run was started with",
            mend="start the server, then run `kebiolm track sync` again; nothing is lost meanwhile",
        ) from None
    console.print(f"{sent} records sent" if sent else "nothing to send: MLflow has everything")
    return sent
