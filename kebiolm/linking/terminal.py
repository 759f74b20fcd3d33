"""Linked texts on the terminal: the text with its mentions in colour, then a table of what they are linked to."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Column, Table
from rich.text import Text

from kebiolm.linking.linked_text import LinkedMention, LinkedText
from kebiolm.linking.type_groups import count_types, shown_type

_COLOURS = ("cyan", "yellow", "green", "magenta", "bright_blue", "bright_red", "bright_green", "bright_magenta")
_BAR_WIDTH = 8
_PARTS_OF_A_CELL = " ▏▎▍▌▋▊▉"
# A terminal obeys these wherever they come from; a tab and a line feed do no harm.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
# From this width on, alternatives have a column to themselves; below, they stand under their concept.
_WIDE = 100


def print_linked(texts: Sequence[LinkedText], console: Console) -> None:
    """Print texts with their mentions."""
    colours = {kind: _COLOURS[place % len(_COLOURS)] for place, kind in enumerate(count_types(texts))}
    for number, text in enumerate(texts):
        if number:
            console.print()
        console.print(Padding(_highlighted(text, colours), (0, 1, 1, 1)), soft_wrap=False)
        if text.mentions:
            console.print(_table(text, colours, is_wide=console.width >= _WIDE), soft_wrap=False)
        else:
            console.print(" no mention detected", style="dim")


def _highlighted(text: LinkedText, colours: Mapping[str, str]) -> Text:
    shown = Text(_printable(text.text))
    for mention in text.mentions:
        shown.stylize(f"bold underline {colours[shown_type(mention)]}", mention.start, mention.end)
    return shown


def _table(text: LinkedText, colours: Mapping[str, str], *, is_wide: bool) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=True, show_edge=False, padding=(0, 1), leading=1, header_style="dim")
    table.add_column("mention", ratio=3, overflow="fold")
    table.add_column("concept" if is_wide else "concept and alternatives", ratio=5, overflow="fold")
    table.add_column("attention", no_wrap=True, min_width=_BAR_WIDTH + 5)
    if is_wide:
        table.add_column("alternatives", ratio=6, overflow="fold")
    for mention in text.mentions:
        colour = colours[shown_type(mention)]
        concept, alternatives = _concept(mention), _alternatives(mention)
        cells = [
            Text.assemble((_printable(mention.text), f"bold {colour}"), (f"\n{mention.start}-{mention.end}", "dim")),
            concept if is_wide else Group(concept, alternatives),
            Text.assemble((_bar(mention.score), colour), f" {mention.score:.2f}"),
        ]
        table.add_row(*cells, *([alternatives] if is_wide else []))
    return table


def _concept(mention: LinkedMention) -> Text:
    shown = Text.assemble((_printable(mention.cui), "bold"), f" {_printable(mention.name)}")
    if mention.semantic_types:
        shown.append("\n" + _printable(", ".join(mention.semantic_types)), "dim")
    return shown


def _alternatives(mention: LinkedMention) -> Table:
    lines = Table.grid("", "", Column(overflow="fold"), padding=(0, 1))
    for candidate in mention.alternatives:
        cui, name = Text(_printable(candidate.cui), style="dim"), Text(_printable(candidate.name))
        lines.add_row(f"{candidate.weight:.2f}", cui, name)
    return lines


def _printable(text: str) -> str:
    """A text without control characters; each is one U+FFFD, so that positions stay."""
    return _CONTROL.sub("\ufffd", text)


def _bar(share: float) -> str:
    """A bar of eighths of a cell; share 0 to 1."""
    eighths = round(share * _BAR_WIDTH * 8)
    return ("█" * (eighths // 8) + _PARTS_OF_A_CELL[eighths % 8]).ljust(_BAR_WIDTH)[:_BAR_WIDTH]
