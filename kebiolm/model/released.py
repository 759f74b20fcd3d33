"""What the authors' released code computes differently from the paper, for `semantics: released`.

Its weights were trained with these habits, so reading them needs the same ones:

- A mention's entity is also added to the token after the mention, even to [SEP]; the next mention overwrites it.
- Every row gets as many mentions as the row with most of them (at most `max_mentions`). The ones it lacks are
  padding mentions over [CLS], whose entity is added to positions 0 and 1, over a real mention that begins there.
  So the output for a row depends on the other rows of its batch.
- Position 0 never begins a mention, but the last [SEP] can be part of one.
- I begins a mention after O and at position 1. After a label of -100 it extends the mention before the gap.
- The special rows of the entity table take part in top-k and softmax.
- Entities are added and normalised even when there is no fusion layer.

The last two are decided in the config; the rest is here, vectorised like the paper's own rules in
`kebiolm.model.mentions`. Shape letters: B rows, L positions, W mentions in each row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kebiolm.errors import UserError
from kebiolm.model.configuration_kebiolm import KeBioLMConfig
from kebiolm.model.entity_memory import IGNORED_ENTITY
from kebiolm.model.losses import IGNORED_LABEL
from kebiolm.model.mentions import BEGIN, INSIDE, OUTSIDE, mention_of_token


def released_spans_of_labels(labels: Tensor, document_index: Tensor, max_mentions: int) -> Tensor:
    """Decode B/I/O labels as the release does.

    Args:
        labels: [B, L] int64, 0 = O, 1 = B, 2 = I, -100 = no label.
        document_index: [B, L], 0 for padding; only the number of other positions in each row matters.
        max_mentions: largest W.

    Returns:
        [B W, 3] int64 (batch row, first token, last token + 1), W in every row; (row, 0, 1) for a padding mention.
    """
    num_rows, length = labels.shape
    positions = torch.arange(length, device=labels.device)
    in_text = (positions >= 1) & (positions < (document_index != 0).sum(dim=1, keepdim=True))
    after_outside = (labels.roll(1, dims=1) == OUTSIDE) | (positions == 1)
    begins = in_text & ((labels == BEGIN) | ((labels == INSIDE) & after_outside))
    number = begins.cumsum(dim=1)  # of the mention that began last; 0 before the first
    in_mention = in_text & ((labels == BEGIN) | (labels == INSIDE)) & (number > 0)

    # Column m of these tables is mention m; column 0 takes what belongs to none.
    starts = labels.new_zeros(num_rows, length + 1).scatter_add(1, number * begins, positions * begins)
    ends = labels.new_zeros(num_rows, length + 1).scatter_reduce(
        1, number * in_mention, (positions + 1) * in_mention, reduce="amax"
    )
    width = min(int(number.max()), max_mentions) if labels.numel() else 0
    starts, ends = starts[:, 1 : width + 1], ends[:, 1 : width + 1]
    rows = torch.arange(num_rows, device=labels.device).unsqueeze(1).expand_as(starts)
    return torch.stack([rows, starts, ends.clamp(min=1)], dim=2).flatten(0, 1)


def released_mention_of_token(spans: Tensor, num_rows: int, length: int) -> Tensor:
    """The mention whose entity the release adds to each token.

    Args:
        spans: [B W, 3] as `released_spans_of_labels` returns them.
        num_rows: B.
        length: L.

    Returns:
        [B, L] int64: number of the mention counted from 1, 0 for none.
    """
    rows, starts, ends = spans.unbind(dim=1)
    is_padding = starts == 0
    # One token too many. A padding mention must not hide the real ones here, so it gets no token at first.
    wide = torch.stack([rows, starts, torch.where(is_padding, 0, ends + 1)], dim=1)
    numbers = torch.arange(1, len(spans) + 1, device=spans.device)
    real = wide[~is_padding]
    token_mentions = mention_of_token(real, num_rows, length)
    token_mentions = torch.cat([numbers.new_zeros(1), numbers[~is_padding]])[token_mentions]
    padding_mention = (
        spans.new_zeros(num_rows).scatter_reduce(0, rows, numbers * is_padding, reduce="amax").unsqueeze(1)
    )
    overwritten = (padding_mention > 0) & (torch.arange(length, device=spans.device) < 2)
    return torch.where(overwritten, padding_mention, token_mentions)


def released_inputs(
    config: KeBioLMConfig,
    attention_mask: Tensor,
    mention_detection_labels: Tensor,
    gold_entity_ids: Tensor | None = None,
) -> dict[str, Tensor]:
    """Turn gold labels as the release takes them into arguments of `KeBioLMForPreTraining.forward`.

    Args:
        config: of the model; only `max_mentions` is read.
        attention_mask: [B, L], 0 for padding.
        mention_detection_labels: [B, L] int64, 0 = O, 1 = B, 2 = I, -100 = no label.
        gold_entity_ids: [B, W] int64 rows of the entity table, -100 for none. W must be the largest number of
            mentions in a row of the batch, at most `max_mentions`.

    Returns:
        `mention_spans` [B W, 3], `bio_labels` [B, L], and `entity_labels` [B W] if gold entities were given.

    Raises:
        UserError: the width of `gold_entity_ids` is another one.
    """
    spans = released_spans_of_labels(mention_detection_labels, attention_mask, config.max_mentions)
    num_rows = len(attention_mask)
    inputs = {
        "mention_spans": spans,
        "bio_labels": mention_detection_labels.masked_fill(attention_mask == 0, IGNORED_LABEL),
    }
    if gold_entity_ids is not None:
        width = len(spans) // max(num_rows, 1)
        if gold_entity_ids.shape != (num_rows, width):
            raise UserError(
                "gold_entity_ids",
                got=f"shape {tuple(gold_entity_ids.shape)}",
                expected=f"({num_rows}, {width}): the most mentions in a row of this batch, at most max_mentions",
                mend=f"pad or cut each row to {width} ids; {IGNORED_ENTITY} stands for no entity",
            )
        inputs["entity_labels"] = gold_entity_ids.flatten()
    return inputs
