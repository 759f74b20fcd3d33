"""The model run over windows, in batches of similar length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from kebiolm.linking.windows import Window
from kebiolm.model import KeBioLMModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Positions of one batch, padding included: bounds the [mentions, entities] scores to below 1 GB at the paper's sizes.
_POSITIONS_PER_BATCH = 4096


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ReadWindow:
    """What the model made of a window; N = its mentions, k = entities that were asked for."""

    window: Window
    spans: list[tuple[int, int]]
    """N pairs: first character in the whole text, and the one after the last."""
    rows: np.ndarray
    """[N, k] int64, rows of the entity table, nearest first; -1 after the last that an entity index found."""
    weights: np.ndarray
    """[N, k] float32, attention weights a_j of equation 3."""
    probabilities: np.ndarray
    """[N] float32, softmax over all entities (equation 10) of the nearest one; NaN with an entity index, which does not
    look at all of them."""
    mention_vectors: np.ndarray
    """[N, entity_size] float32, h'_m."""
    state_sum: np.ndarray
    """[hidden_size] float32, sum of the final states of the window's pieces."""


def read_windows(
    model: KeBioLMModel, tokenizer: PreTrainedTokenizerFast, windows: Sequence[Window], top: int
) -> list[ReadWindow]:
    """Run the model over all windows; results in the order of `windows`.

    Args:
        model: in evaluation mode.
        tokenizer: the model's, for its special ids.
        windows: with at least one piece each.
        top: entities to return for each mention, at least 1; fewer where the table has fewer.
    """
    results: dict[int, ReadWindow] = {}
    # In released semantics the output of a row depends on its batch, so each window is read alone.
    for batch in _batches(windows, alone=model.config.semantics == "released"):
        read = _read_batch(model, tokenizer, [windows[number] for number in batch], top)
        results.update(zip(batch, read, strict=True))
    return [results[number] for number in range(len(windows))]


def _batches(windows: Sequence[Window], *, alone: bool) -> Iterator[list[int]]:
    """Numbers of the windows of each batch; windows of similar length come together."""
    batch: list[int] = []
    for number in sorted(range(len(windows)), key=lambda number: len(windows[number].input_ids)):
        positions = (len(batch) + 1) * (len(windows[number].input_ids) + 2)
        if batch and (alone or positions > _POSITIONS_PER_BATCH):
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


@torch.inference_mode()
def _read_batch(
    model: KeBioLMModel, tokenizer: PreTrainedTokenizerFast, windows: Sequence[Window], top: int
) -> Iterator[ReadWindow]:
    cls_id, sep_id = tokenizer.cls_token_id, tokenizer.sep_token_id
    rows = [torch.tensor([cls_id, *window.input_ids, sep_id]) for window in windows]
    input_ids = pad_sequence(rows, batch_first=True, padding_value=tokenizer.pad_token_id).to(model.device)
    lengths = torch.tensor([len(row) for row in rows], device=model.device).unsqueeze(1)
    positions = torch.arange(input_ids.shape[1], device=model.device)
    # Training keeps the first `max_mentions` of a row to bound its memory; a reader wants all of them. In released
    # semantics the cap is part of what the model computes.
    cap = None if model.config.semantics == "released" else input_ids.shape[1]
    output = model(input_ids, attention_mask=(positions < lengths).long(), max_mentions=cap)

    is_piece = (positions >= 1) & (positions < lengths - 1)
    state_sums = _to_numpy((output.last_hidden_state.float() * is_piece.unsqueeze(2)).sum(dim=1))
    spans, found = output.mention_spans.cpu().numpy(), output.entities
    table_rows, weights = found.topk_rows[:, :top].cpu().numpy(), _to_numpy(found.topk_weights[:, :top])
    probabilities = _to_numpy((found.topk_scores[:, 0].float() - found.lse).exp())
    mention_vectors = _to_numpy(found.mention_vectors)

    for number, window in enumerate(windows):
        # Released semantics fills rows up with spans on [CLS] and may begin one on [SEP]: no mentions of this text.
        starts_on_piece = (spans[:, 1] >= 1) & (spans[:, 1] <= len(window.input_ids))
        # An entity index may find nothing at all for a mention.
        has_entity = table_rows[:, 0] >= 0
        chosen = np.flatnonzero((spans[:, 0] == number) & starts_on_piece & has_entity)
        yield ReadWindow(
            window=window,
            spans=[_characters(window, first, end) for _, first, end in spans[chosen].tolist()],
            rows=table_rows[chosen],
            weights=weights[chosen],
            probabilities=probabilities[chosen],
            mention_vectors=mention_vectors[chosen],
            state_sum=state_sums[number],
        )


def _characters(window: Window, first: int, end: int) -> tuple[int, int]:
    """Characters of a span of positions; piece 0 is at position 1, and a [SEP] inside the span has no characters."""
    last = min(end - 1, len(window.offsets))
    return window.offsets[first - 1][0], window.offsets[last - 1][1]


def _to_numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.float().cpu().numpy()
