"""BERT's embeddings and layers (Eq. 1 and Eq. 5); `kebiolm.model.attention` says which positions see each other.

The modules are named as in BERT checkpoints (`attention.self.query`, `output.LayerNorm`, ...), so that any of them
loads. Shape letters: B rows, L positions, H hidden size, A heads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from kebiolm.model.attention import Visibility, attend
from kebiolm.model.configuration_kebiolm import KeBioLMConfig


class Embeddings(nn.Module):
    """Sum of word, position and token-type embeddings, normalised."""

    def __init__(self, config: KeBioLMConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        # Not read in forward; the released checkpoint has it, and with it the state dicts have the same keys.
        self.register_buffer("position_ids", torch.arange(config.max_position_embeddings).unsqueeze(0))

    def forward(self, input_ids: Tensor, position_ids: Tensor, token_type_ids: Tensor | None) -> Tensor:
        """[B, L] ids -> [B, L, H]; token type 0 everywhere when `token_type_ids` is None."""
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(input_ids)
        summed = self.word_embeddings(input_ids) + self.token_type_embeddings(token_type_ids)
        return self.dropout(self.LayerNorm(summed + self.position_embeddings(position_ids)))


class SelfAttention(nn.Module):
    """Multi-head attention; only the projections have weights."""

    def __init__(self, config: KeBioLMConfig) -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.dropout_probability = config.attention_probs_dropout_prob
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden: Tensor, visibility: Visibility) -> Tensor:
        """[B, L, H] -> [B, L, H]."""
        attended = attend(
            self._split_heads(self.query(hidden)),
            self._split_heads(self.key(hidden)),
            self._split_heads(self.value(hidden)),
            visibility,
            self.dropout_probability if self.training else 0.0,
        )
        return attended.flatten(2)  # [B, L, A, H/A] -> [B, L, H]

    def _split_heads(self, projected: Tensor) -> Tensor:
        return projected.unflatten(-1, (self.num_heads, -1))  # [B, L, H] -> [B, L, A, H/A]


class AddAndNorm(nn.Module):
    """Projection, dropout, residual sum, LayerNorm: the end of both halves of a layer."""

    def __init__(self, config: KeBioLMConfig, input_size: int) -> None:
        super().__init__()
        self.dense = nn.Linear(input_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, inner: Tensor, residual: Tensor) -> Tensor:
        """[B, L, input_size] and [B, L, H] -> [B, L, H]."""
        return self.LayerNorm(self.dropout(self.dense(inner)) + residual)


class Attention(nn.Module):
    """First half of a layer."""

    def __init__(self, config: KeBioLMConfig) -> None:
        super().__init__()
        self.self = SelfAttention(config)
        self.output = AddAndNorm(config, config.hidden_size)

    def forward(self, hidden: Tensor, visibility: Visibility) -> Tensor:
        """[B, L, H] -> [B, L, H]."""
        return self.output(self.self(hidden, visibility), hidden)


class Intermediate(nn.Module):
    """Widening projection of the second half."""

    def __init__(self, config: KeBioLMConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, L, H] -> [B, L, intermediate_size]."""
        return self.activation(self.dense(hidden))


class Layer(GradientCheckpointingLayer):
    """One transformer layer, LayerNorm after each sum."""

    def __init__(self, config: KeBioLMConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.intermediate = Intermediate(config)
        self.output = AddAndNorm(config, config.intermediate_size)

    def forward(self, hidden: Tensor, visibility: Visibility) -> Tensor:
        """[B, L, H] -> [B, L, H]."""
        attended = self.attention(hidden, visibility)
        return self.output(self.intermediate(attended), attended)


class Encoder(nn.Module):
    """A stack of layers; with none it returns its input."""

    def __init__(self, config: KeBioLMConfig, num_layers: int) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Layer(config) for _ in range(num_layers))

    def forward(self, hidden: Tensor, visibility: Visibility) -> Tensor:
        """[B, L, H] -> [B, L, H]."""
        for layer in self.layer:
            hidden = layer(hidden, visibility)
        return hidden


def restarting_position_ids(document_index: Tensor) -> Tensor:
    """Position ids that begin at 0 in each segment.

    Args:
        document_index: [B, L] number of each position's segment, 0 for padding.

    Returns:
        [B, L] int64.
    """
    positions = torch.arange(document_index.shape[1], device=document_index.device).expand_as(document_index)
    begins = torch.ones_like(document_index, dtype=torch.bool)
    begins[:, 1:] = document_index[:, 1:] != document_index[:, :-1]
    return positions - positions.masked_fill(~begins, 0).cummax(dim=1).values
