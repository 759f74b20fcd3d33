"""From B/I/O labels to mentions, from mentions to vectors, and back from entities to tokens; all on the device.

A mention is a row of `spans` [N, 3] int64: batch row, first token, last token + 1; sorted by (batch row, first
token), never overlapping. Shape letters: B rows, L positions, N mentions in the whole batch, H hidden size.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import embedding, pad

OUTSIDE, BEGIN, INSIDE = 0, 1, 2


def cannot_be_mention(document_index: Tensor) -> Tensor:
    """Positions that no mention may contain: padding, and the ends of each segment ([CLS] and [SEP]).

    Args:
        document_index: [B, L] number of each position's segment, 0 for padding.

    Returns:
        [B, L] bool.
    """
    before = pad(document_index[:, :-1], (1, 0))
    after = pad(document_index[:, 1:], (0, 1))
    return (document_index == 0) | (document_index != before) | (document_index != after)


def spans_of_labels(labels: Tensor, document_index: Tensor, max_mentions: int) -> Tensor:
    """Decode B/I/O labels (Eq. 2) to mentions.

    B begins a mention; I continues one, and begins one where there is nothing to continue. Labels of special
    positions (`cannot_be_mention`) count as O, so mentions stay inside their segment.

    Args:
        labels: [B, L] int64, 0 = O, 1 = B, 2 = I; other values count as O.
        document_index: [B, L] number of each position's segment, 0 for padding.
        max_mentions: mentions kept for each row, the first ones in text order.

    Returns:
        spans [N, 3].
    """
    in_mention = ((labels == BEGIN) | (labels == INSIDE)) & ~cannot_be_mention(document_index)
    previous_in_mention = pad(in_mention[:, :-1], (1, 0))
    begins = in_mention & ((labels == BEGIN) | ~previous_in_mention)
    continued = pad(in_mention[:, 1:] & ~begins[:, 1:], (0, 1))
    ends = in_mention & ~continued
    kept = begins.cumsum(dim=1) <= max_mentions
    # Each mention has one begin and one end, so in row-major order the two lists run in step.
    row_and_start = (begins & kept).nonzero()
    end = (ends & kept).nonzero()[:, 1:] + 1
    return torch.cat([row_and_start, end], dim=1)


def mention_vectors(hidden: Tensor, spans: Tensor) -> Tensor:
    """h_m = [h_s ; h_t] (section 3.1): states of the first and the last token of each mention.

    Args:
        hidden: [B, L, H].
        spans: [N, 3].

    Returns:
        [N, 2 H].
    """
    rows, starts, ends = spans.unbind(dim=1)
    return torch.cat([hidden[rows, starts], hidden[rows, ends - 1]], dim=1)


def mention_of_token(spans: Tensor, num_rows: int, length: int) -> Tensor:
    """M(i) of Eq. 4: the mention that each token belongs to.

    Args:
        spans: [N, 3], sorted by (row, start).
        num_rows: B.
        length: L.

    Returns:
        [B, L] int64: number of the mention counted from 1, 0 for no mention.
    """
    rows, starts, ends = spans.unbind(dim=1)
    numbers = torch.arange(1, len(spans) + 1, device=spans.device)
    begun = spans.new_zeros(num_rows, length).index_put((rows, starts), numbers)
    # Numbers grow along a row, so a running maximum is the mention that began last.
    latest = begun.cummax(dim=1).values
    end_of_latest = pad(ends, (1, 0))[latest]
    return latest * (torch.arange(length, device=spans.device) < end_of_latest)


def add_to_mention_tokens(hidden: Tensor, additions: Tensor, token_mentions: Tensor) -> Tensor:
    """Eq. 4: h_i + (W_e e'_m + b_e) for the tokens of mention m, h_i elsewhere.

    Args:
        hidden: [B, L, H].
        additions: [N, H], the term in brackets for each mention.
        token_mentions: [B, L] as `mention_of_token` returns it.

    Returns:
        [B, L, H].
    """
    nothing_and_additions = pad(additions, (0, 0, 1, 0))
    # The backward of embedding() skips the padding row: most tokens point at it.
    return hidden + embedding(token_mentions, nothing_and_additions, padding_idx=0)
