"""What became of documents and mentions; nothing is lost without being counted."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from kebiolm.console import console
from kebiolm.data.entity_vocab import NUM_SPECIAL_ROWS
from kebiolm.data.shard_format import HELDOUT, SPLITS

# Rows of the summary, and after which of them a line is drawn.
_SUMMARY_ROWS = (
    ("documents", False),
    ("empty_documents", False),
    ("cut_documents", True),
    ("segments", False),
    ("sequences", False),
    ("pieces", False),
    ("fill_rate", True),
    ("mentions_in", False),
    ("mentions_kept", False),
    ("mentions_nil", True),
    ("mentions_beyond_cap", False),
    ("mentions_unaligned", False),
    ("mentions_overlapping", False),
    ("mentions_broken", False),
)


@dataclass(frozen=True, kw_only=True)
class SplitCounts:
    """Documents, sequences and mentions of one split, or of a part of it."""

    documents: int = 0
    empty_documents: int = 0
    """Documents without a single piece."""
    cut_documents: int = 0
    """Documents of more than one segment."""
    segments: int = 0
    sequences: int = 0
    pieces: int = 0
    """Pieces of the sequences, special ones included."""
    mentions_in: int = 0
    mentions_kept: int = 0
    """Mentions that are listed with their entity, NIL included."""
    mentions_nil: int = 0
    """Those of the kept whose concept is outside the entity vocabulary."""
    mentions_beyond_cap: int = 0
    """Mentions of a segment beyond its `max_mentions`: BIO labels only."""
    mentions_unaligned: int = 0
    """Mentions without a piece."""
    mentions_overlapping: int = 0
    """Mentions that share a piece with an earlier one."""
    mentions_broken: int = 0
    """Mentions longer than a whole segment."""

    def __add__(self, other: SplitCounts) -> SplitCounts:
        return SplitCounts(
            **{field.name: getattr(self, field.name) + getattr(other, field.name) for field in fields(self)}
        )

    def as_dict(self, max_length: int) -> dict[str, Any]:
        """All counts and the share of positions that hold a piece; checks that no mention is missing."""
        lost = self.mentions_beyond_cap + self.mentions_unaligned + self.mentions_overlapping + self.mentions_broken
        assert self.mentions_in == self.mentions_kept + lost, "mentions in = mentions kept + mentions lost"
        fill = self.pieces / (self.sequences * max_length) if self.sequences else 0.0
        return {**asdict(self), "fill_rate": round(fill, 6)}


def print_summary(manifest: dict[str, Any], out: Path) -> None:
    """Print the counts of a shards folder as a table."""
    concepts = manifest["entity_vocab"]["rows"] - NUM_SPECIAL_ROWS
    table = Table(title=f"[bold]{escape(str(out))}[/]  {concepts:,} concepts", title_justify="left", title_style="")
    table.add_column("")
    for split in SPLITS:
        table.add_column(split, justify="right")
    for name, last_of_section in _SUMMARY_ROWS:
        values = [manifest["counts"][split][name] for split in SPLITS]
        cells = [f"{value:.2%}" if name == "fill_rate" else f"{value:,}" for value in values]
        label = name.replace("_", " ")
        if name == "mentions_beyond_cap":
            label += f" of {manifest['settings']['max_mentions']} a segment"
        table.add_row(label, *cells, end_section=last_of_section)
    console.print(table)
    if not manifest["counts"][HELDOUT]["sequences"]:
        console.print("[yellow]No held-out sequence: training cannot evaluate. Give a larger --heldout.[/]")
