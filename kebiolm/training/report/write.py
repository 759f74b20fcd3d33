"""The page of a run, OUTPUT/report.html: made of the run's own files alone, so it can be made at any time again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kebiolm.files import write_text
from kebiolm.tracking.metric_log import RECORDS, read_records
from kebiolm.tracking.run_description import RUN, described_run
from kebiolm.tracking.summary import REPORT
from kebiolm.training.report.evaluation_files import BY_ENTITY, BY_TYPE, CONFUSION, LATEST
from kebiolm.training.report.page import make_report_page

REPORT_FILES = (REPORT, CONFUSION, BY_TYPE, BY_ENTITY)
"""Files of a run's folder that show what it has come to; MLflow gets them."""


def write_report(output: Path) -> None:
    """Write the page anew, atomically; nothing where the run has no figures yet.

    Args:
        output: the run's folder.

    Raises:
        UserError: the run's figures are broken.
    """
    records = read_records(output / RECORDS)
    if not records:
        return
    latest: dict[str, Any] = {}
    if (output / LATEST).is_file():
        latest = json.loads((output / LATEST).read_text(encoding="utf-8"))
    # A folder of figures alone, as of a run whose description was removed, has a page too.
    parameters = described_run(output)["parameters"] if (output / RUN).is_file() else {}
    write_text(output / REPORT, make_report_page(output.name, records, latest, parameters))
