"""`kebiolm shards show`: packed sequences as text that a person can read, with their mentions in colour."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from kebiolm.console import console as default_console
from kebiolm.data.entity_vocab import NIL_ROW, NUM_SPECIAL_ROWS, EntityVocab
from kebiolm.data.shard_format import BEGIN, HELDOUT, OUTSIDE, SPLITS, TRAIN, PackedSequence, PackedShards
from kebiolm.data.tokenizer import load_tokenizer
from kebiolm.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Colours that stand out on dark and on light terminals; one concept has one colour within a document.
_COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "red", "bright_cyan", "bright_magenta")
_NIL_STYLE = "bold underline"  # linked, but to a concept outside the entity vocabulary
_CAP_STYLE = "dim underline"  # beyond the cap on mentions: BIO labels only
_SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
_GLUED_LEFT = re.compile(r"[.,;:!?%)\]}/'-]+")
_GLUED_RIGHT = re.compile(r"[(\[{/'-]$")
_DECIMAL_POINT = re.compile(r"\d\.$")


def show_shards(path: Path, *, n: int = 3, split: str = TRAIN, first: int = 0, console: Console | None = None) -> None:
    """Print the counts of a shards folder and some of its sequences.

    Pieces are joined to words for reading; white space around punctuation and the case of letters may differ from the
    source text, because the pieces do not have them.

    Args:
        path: a folder made by `kebiolm pack`.
        n: number of sequences.
        split: "train" or "heldout".
        first: sample id of the first sequence.
        console: where to print.

    Raises:
        UserError: the folder is broken, or there is no such split or sequence.
    """
    console = console or default_console
    if split not in SPLITS:
        raise UserError("--split", got=split, expected=" or ".join(SPLITS), mend="give one of them")
    shards = PackedShards.load(path)
    sequences = shards.heldout if split == HELDOUT else shards.train
    if not 0 <= first < max(len(sequences), 1) or n < 1:
        raise UserError(
            "--first and -n",
            got=f"{first} and {n}",
            expected=f"a sample id below {len(sequences)} and at least 1 sequence",
            mend="give smaller numbers",
        )
    tokenizer = load_tokenizer(shards.tokenizer_path)
    console.print(_header(shards), soft_wrap=False, highlight=False)
    for sample_id in range(first, min(first + n, len(sequences))):
        title = f"{split} [bold]#{sample_id}[/]"
        panel = _sequence_panel(sequences[sample_id], title, shards, tokenizer)
        console.print(panel, soft_wrap=False, highlight=False)


def _header(shards: PackedShards) -> RenderableType:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    for column in ("split", "sequences", "documents", "pieces", "filled", "mentions", "NIL", "lost"):
        table.add_column(column, justify="left" if column == "split" else "right")
    for split in SPLITS:
        counts = shards.manifest["counts"][split]
        numbers = [counts[name] for name in ("sequences", "documents", "pieces")]
        mentions = [counts["mentions_kept"], counts["mentions_nil"], counts["mentions_in"] - counts["mentions_kept"]]
        cells = [f"{number:,}" for number in (*numbers, *mentions)]
        table.add_row(split, *cells[:3], f"{counts['fill_rate']:.1%}", *cells[3:])
    concepts = len(shards.entity_vocab) - NUM_SPECIAL_ROWS
    vocabulary = shards.manifest["tokenizer"]["vocab_size"]
    title = f"[bold]{escape(str(shards.path))}[/]  {concepts:,} concepts, {vocabulary:,} word pieces"
    return Padding(Group(title, table), (1, 0))


def _sequence_panel(
    sequence: PackedSequence, title: str, shards: PackedShards, tokenizer: PreTrainedTokenizerFast
) -> Panel:
    borders = [*sequence.document_starts.tolist(), len(sequence)]
    parts: list[RenderableType] = []
    for document_id, (start, end) in zip(sequence.document_ids, pairwise(borders), strict=True):
        if parts:
            parts.append("")
        parts.append(Text.assemble((f" {document_id} ", "reverse"), (f" pieces {start}-{end - 1}", "dim")))
        parts += _document_parts(sequence, start, end, shards.entity_vocab, tokenizer)
    facts = (
        f"{len(sequence)} of {shards.max_length} pieces",
        f"{len(sequence.document_ids)} segment{'s' * (len(sequence.document_ids) != 1)}",
        f"{len(sequence.mention_starts)} mentions",
    )
    return Panel(
        Group(*parts), title=f"{title} · {' · '.join(facts)}", title_align="left", border_style="dim", padding=(1, 2)
    )


def _document_parts(
    sequence: PackedSequence, start: int, end: int, vocab: EntityVocab, tokenizer: PreTrainedTokenizerFast
) -> list[RenderableType]:
    """The text of one segment, and the legend of its concepts."""
    entities = dict(zip(sequence.mention_starts.tolist(), sequence.mention_entities.tolist(), strict=True))
    counts = Counter(row for first, row in entities.items() if start <= first < end)
    concepts = list(counts)  # in the order of their first mention
    text = Text()
    for run_start, run_end in _borders(start + 1, end - 1, _run_starts(sequence.bio_labels)):
        is_mention = sequence.bio_labels[run_start] == BEGIN
        row = entities.get(run_start)
        style = _concept_style(row, concepts) if is_mention else ""
        for word_start, word_end in _borders(run_start, run_end, sequence.word_starts.astype(bool)):
            word = tokenizer.decode(sequence.input_ids[word_start:word_end]).removeprefix("##")
            if sequence.word_starts[word_start] and _has_space(text.plain, word):
                text.append(" ")
            text.append(word, style)
        if row is not None:
            text.append(str(concepts.index(row) + 1).translate(_SUPERSCRIPTS), "dim")
    legend = Table.grid(padding=(0, 2))
    for number, row in enumerate(concepts, start=1):
        name = "outside the entity vocabulary" if row == NIL_ROW else vocab.name(row)
        cui = Text(vocab.cui(row), _concept_style(row, concepts))
        types = Text(", ".join(vocab.semantic_types(row)), "dim")
        legend.add_row(Text(str(number), "dim"), cui, name, types, f"x{counts[row]}")
    return [text, "", Padding(legend, (0, 0, 0, 2))] if concepts else [text]


def _has_space(before: str, word: str) -> bool:
    """Whether a reader expects white space between a text and its next word."""
    decimal = word[:1].isdigit() and _DECIMAL_POINT.search(before)
    return bool(before) and not (decimal or _GLUED_LEFT.fullmatch(word) or _GLUED_RIGHT.search(before))


def _run_starts(bio_labels: np.ndarray) -> np.ndarray:
    """Flags of the positions at which a mention begins, or plain text begins after one."""
    after_mention = np.append(False, bio_labels[:-1] != OUTSIDE)
    return (bio_labels == BEGIN) | ((bio_labels == OUTSIDE) & after_mention)


def _borders(start: int, end: int, begins: np.ndarray) -> Iterator[tuple[int, int]]:
    """Positions start..end as ranges, a new one at each flag."""
    inner = (start + 1 + np.flatnonzero(begins[start + 1 : end])).tolist()
    return pairwise([start, *inner, end]) if start < end else iter(())


def _concept_style(row: int | None, concepts: list[int]) -> str:
    if row is None:
        return _CAP_STYLE
    return _NIL_STYLE if row == NIL_ROW else f"bold {_COLOURS[concepts.index(row) % len(_COLOURS)]}"
