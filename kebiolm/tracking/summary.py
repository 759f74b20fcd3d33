"""What a run has come to: held-out figures before and after, and where everything is; from the run's own files."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from kebiolm.console import console
from kebiolm.tracking.metric_log import RECORDS, read_records
from kebiolm.tracking.metric_names import HELDOUT
from kebiolm.tracking.run_description import described_run

BASELINE = "heldout.most_frequent_entity_share"
"""Parameter of a run: the share of held-out mentions that its most frequent entity has, in 0..1."""

REPORT = "report.html"
"""The run's page in its output folder: curves, confusion, linking by semantic type, linked sentences."""


def print_summary(output: Path) -> None:
    """Print the summary of a run that is finished or still going on.

    Args:
        output: the run's folder.

    Raises:
        UserError: the folder holds no run.
    """
    described = described_run(output)
    records = [record for record in read_records(output / RECORDS) if record["kind"] == HELDOUT]
    if records:
        first, last = records[0], records[-1]
        table = Table("held out", f"step {first['step']}", f"step {last['step']}", title="Before and after")
        for name, value in last["metrics"].items():
            table.add_row(name.replace("_", " "), f"{first['metrics'][name]:.4f}", f"{value:.4f}")
        console.print(table)
        share = float(described["parameters"].get(BASELINE, "nan"))
        console.print(f"the most frequent entity is {share:.1%} of the held-out mentions")
    uri = described["tracking_uri"] or ""
    page = f"mlflow ui --backend-store-uri {uri}" if uri.startswith("sqlite:") else uri
    console.print(f"checkpoints   {output / 'checkpoints'}")
    console.print(f"figures       {output / RECORDS}")
    if (output / REPORT).is_file():
        console.print(f"report        {output / REPORT}")
    if not uri:
        console.print("MLflow        switched off (tracking.tracking_uri is null)")
        return
    console.print(f"MLflow run    {described['run_id'] or 'not delivered yet: kebiolm track sync ' + str(output)}")
    console.print(f"MLflow page   {page}")
