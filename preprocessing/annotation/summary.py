"""What came of an annotation job, as a table for the terminal."""

from __future__ import annotations

from typing import Any

from rich.table import Table


def summary_table(manifest: dict[str, Any]) -> Table:
    """The counts of a finished folder."""
    counts, settings = manifest["counts"], manifest["settings"]
    found, linked = counts["mentions_found"], counts["mentions_linked"]
    table = Table(title="Annotated documents", show_header=False, title_justify="left")
    table.add_column(justify="left")
    table.add_column(justify="right")
    table.add_row("documents in", f"{counts['documents_in']:,}")
    table.add_row("documents out", f"{counts['documents_out']:,}")
    table.add_row("rejects", f"{counts['rejects']:,}")
    for reason, count in manifest["rejects_by_reason"].items():
        table.add_row(f"    {reason}", f"{count:,}")
    table.add_row("abbreviations not looked for", f"{counts['abbreviations_skipped']:,}", end_section=True)
    table.add_row("mentions found", f"{found:,}")
    table.add_row(f"    linked (score > {settings['threshold']}), kept", f"{linked:,}")
    table.add_row("    not linked, left out", f"{found - linked:,}")
    table.add_row("distinct texts, linked once each", f"{counts['distinct_texts']:,}")
    return table
