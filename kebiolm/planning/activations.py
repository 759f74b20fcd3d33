"""Bytes that a micro batch's forward pass leaves for its backward pass, and what they need beside.

Counted after the operations of `kebiolm.model` as torch saves their inputs. Shape letters: T = B L positions of a micro
batch, H hidden size, I intermediate size, A heads, K masked positions, M mentions, V pieces, E entities.
"""

from __future__ import annotations

from dataclasses import dataclass

from kebiolm.planning.cards import Card
from kebiolm.planning.workload import Workload

# Tensors of [T, H] that a layer saves: its input, query, key, value, attended states, both sums before a LayerNorm, the
# result of the first one.
_STATES_OF_LAYER = 8
# Of [T, I]: before and after the activation function.
_WIDE_STATES_OF_LAYER = 2
_INDEX_TENSORS = 10  # int64 [T]: ids, positions, segments, labels, and what is made of them
_TILE_BYTES = 16 * 2**20  # of scores, in the operator's plain PyTorch
_BLOCK, _BLOCK_MAXIMA_BYTES = 32, 256 * 2**20  # entities of a block in the GPU kernels; largest memory of their maxima


@dataclass(frozen=True, kw_only=True)
class Activations:
    """Bytes of one micro batch."""

    layer: int
    """What one layer saves, attention weights not counted."""
    attention: int
    """What one layer saves of attention weights; 0 where the kernel computes them again."""
    kept_of_layer: int
    """What a layer holds until its backward pass: all it saves, or its input with activation checkpointing."""
    outside: int
    """Saved by embeddings, fusion and inputs."""
    layer_backward: int
    """Beside, in a layer's backward pass; a checkpointed layer's own activations are made again then."""
    head: int
    """The language-model head at its highest: three times K V numbers of fp32."""
    search: int
    """The entity search's backward pass: work space, without the table's gradient."""
    evaluation: int
    """An evaluation batch at its highest."""


def count_activations(workload: Workload, card: Card) -> Activations:
    """Count a micro batch's activations for a kind of card."""
    optimization, model, data = workload.config.optimization, workload.model, workload.data
    size = workload.zero.bytes
    tokens = optimization.micro_batch_size * data.length
    states, wide = tokens * model.hidden * size, tokens * model.intermediate * size
    dropped = 0
    if model.hidden_dropout:  # a CPU keeps noise as numbers, a GPU as bytes
        dropped = 2 * (states if card.is_cpu else tokens * model.hidden)
    layer = _STATES_OF_LAYER * states + _WIDE_STATES_OF_LAYER * wide + dropped
    attention = _attention(workload, card)
    whole_layer = layer + attention
    is_checkpointed = optimization.activation_checkpointing
    layer_backward = 2 * wide + 2 * states
    return Activations(
        layer=layer,
        attention=attention,
        kept_of_layer=states if is_checkpointed else whole_layer,
        outside=3 * states + dropped // 2 + _INDEX_TENSORS * tokens * 8,
        layer_backward=layer_backward + (whole_layer if is_checkpointed else 0),
        head=_head(workload, tokens, training=True),
        search=_search(workload, card),
        evaluation=_evaluation(workload),
    )


def has_segment_kernel(workload: Workload) -> bool:
    """Whether attention is computed within segments only (`kebiolm.model.attention`)."""
    head_size = workload.model.hidden // workload.model.heads
    return head_size % 8 == 0 and head_size <= 256


def _attention(workload: Workload, card: Card) -> int:
    """A layer's saved attention weights, or the sums that a fused kernel keeps in their place."""
    optimization, model, data = workload.config.optimization, workload.model, workload.data
    sums = optimization.micro_batch_size * data.length * model.heads * 4
    if card.is_cpu:
        if not model.attention_dropout:
            return sums
        # Weights, noise, and weights with dropout.
        return int(3 * optimization.micro_batch_size * model.heads * data.squared_segments * workload.zero.bytes)
    if has_segment_kernel(workload):
        return sums
    return sums + optimization.micro_batch_size * data.length**2 * workload.zero.bytes  # a mask for the kernel


def _head(workload: Workload, tokens: int, *, training: bool) -> int:
    """The head's scores: their log-softmax and two gradients, or in evaluation the scores and their log-softmax."""
    masked = tokens * workload.data.fill * workload.config.masking.probability
    of_fp32 = 3 if training else 2
    of_scores = of_fp32 * 4 + (0 if training else workload.zero.bytes % 4)
    return int(masked * (workload.data.pieces * of_scores + 6 * workload.model.hidden * workload.zero.bytes))


def _search(workload: Workload, card: Card) -> int:
    model, data = workload.model, workload.data
    mentions = workload.config.optimization.micro_batch_size * data.mentions
    neighbours = min(workload.config.model.max_candidate_entities, data.entities)
    per_mention = neighbours * 24 + 8 * model.entity_columns  # candidates with their places; vectors
    is_half = workload.zero.precision != "fp32"
    if card.is_cpu or (not is_half and "bf16" not in card.tflops):
        if card.is_cpu and not is_half:
            return int(mentions * per_mention)
        # The operator in plain PyTorch adds up in fp32, with the table as fp32 beside.
        return int(mentions * per_mention) + 2 * data.entities * model.entity_columns * 4 + _TILE_BYTES
    maxima = min(mentions * data.entities / _BLOCK * 4, _BLOCK_MAXIMA_BYTES)
    candidates = mentions * neighbours * _BLOCK * 4
    return int(maxima + candidates + mentions * per_mention + 8 * data.entities)


def _evaluation(workload: Workload) -> int:
    """Nothing is saved: the widest layer, or the head; 0 where nothing is held out, a full batch where not known."""
    section, heldout = workload.config.evaluation, workload.data.heldout
    limits = (section.micro_batch_size, heldout, section.max_sequences)
    sequences = min(limit for limit in limits if limit is not None)
    tokens = sequences * workload.data.length
    states = tokens * workload.model.hidden * workload.zero.bytes
    wide = tokens * workload.model.intermediate * workload.zero.bytes
    layer = max(6 * states, 3 * states + 2 * wide)
    return max(layer, 2 * states + _head(workload, tokens, training=False)) + _INDEX_TENSORS * tokens * 8
