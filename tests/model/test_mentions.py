from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kebiolm.model.mentions import (
    add_to_mention_tokens,
    cannot_be_mention,
    mention_of_token,
    mention_vectors,
    spans_of_labels,
)


def spans_by_loop(labels: list[list[int]], document_index: list[list[int]], max_mentions: int) -> list[list[int]]:
    """The decoding rules, said once more in plain Python."""
    spans = []
    for row, (row_labels, segments) in enumerate(zip(labels, document_index, strict=True)):
        of_row: list[list[int]] = []
        is_open = False
        for t, (label, segment) in enumerate(zip(row_labels, segments, strict=True)):
            is_first = t == 0 or segments[t - 1] != segment
            is_last = t + 1 == len(segments) or segments[t + 1] != segment
            if segment == 0 or is_first or is_last or label not in (1, 2):
                is_open = False
            elif label == 2 and is_open:
                of_row[-1][2] = t + 1
            else:
                of_row.append([row, t, t + 1])
                is_open = True
        spans += of_row[:max_mentions]
    return spans


@st.composite
def labelled_rows(draw):
    """B/I/O labels and segment numbers of a batch; padding anywhere after the segments, labels everywhere."""
    length = draw(st.integers(1, 18))
    rows = draw(st.integers(1, 3))
    labels = [
        draw(st.lists(st.sampled_from([0, 1, 2, 2, -100]), min_size=length, max_size=length)) for _ in range(rows)
    ]
    index = []
    for _ in range(rows):
        sizes = draw(st.lists(st.integers(1, 7), max_size=6))
        segments = [number for number, size in enumerate(sizes, start=1) for _ in range(size)]
        index.append((segments + [0] * length)[:length])
    return labels, index, draw(st.integers(1, 4))


@settings(max_examples=300, deadline=None)
@given(labelled_rows())
def test_decoding_equals_the_loop(case):
    labels, index, max_mentions = case
    expected = spans_by_loop(labels, index, max_mentions)
    spans = spans_of_labels(torch.tensor(labels), torch.tensor(index), max_mentions)
    assert spans.dtype == torch.int64
    assert spans.shape == (len(expected), 3)
    assert spans.tolist() == expected

    tokens = torch.zeros(len(labels), len(labels[0]), dtype=torch.long)
    for number, (row, start, end) in enumerate(expected, start=1):
        tokens[row, start:end] = number
    assert mention_of_token(spans, *tokens.shape).tolist() == tokens.tolist()


def test_mentions_stay_inside_their_segment():
    index = torch.tensor([[1, 1, 1, 2, 2, 2, 0]])
    assert cannot_be_mention(index).int().tolist() == [[1, 0, 1, 1, 0, 1, 1]]
    everything_inside = torch.full((1, 7), 2)
    assert spans_of_labels(everything_inside, index, 50).tolist() == [[0, 1, 2], [0, 4, 5]]


def test_a_mention_is_its_first_and_last_token():
    hidden = torch.arange(24.0).view(2, 4, 3)
    vectors = mention_vectors(hidden, torch.tensor([[0, 1, 2], [1, 0, 3]]))
    assert vectors.tolist() == [[3, 4, 5, 3, 4, 5], [12, 13, 14, 18, 19, 20]]


def test_additions_reach_exactly_the_tokens_of_their_mention():
    hidden = torch.ones(2, 5, 2, requires_grad=True)
    additions = torch.tensor([[10.0, 20.0], [30.0, 40.0]], requires_grad=True)
    tokens = mention_of_token(torch.tensor([[0, 1, 3], [1, 3, 4]]), 2, 5)
    fused = add_to_mention_tokens(hidden, additions, tokens)
    assert fused[..., 0].tolist() == [[1, 11, 11, 1, 1], [1, 1, 1, 31, 1]]
    fused.sum().backward()
    assert additions.grad.tolist() == [[2, 2], [1, 1]]
    assert hidden.grad.tolist() == torch.ones(2, 5, 2).tolist()
