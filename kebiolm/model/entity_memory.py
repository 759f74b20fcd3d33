"""The entity memory: a table of entity embeddings, and how mentions look things up in it (Eq. 3, terms of Eq. 10).

Shape letters: N mentions, H hidden size, E rows of the table, d entity size, k neighbours.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, pad

from kebiolm.kernels import KnnEntityAttentionOutput, knn_entity_attention
from kebiolm.model.configuration_kebiolm import KeBioLMConfig

IGNORED_ENTITY = -100


class EntityLookup(NamedTuple):
    """What the memory knows of each mention; rows are rows of the table, k is at most the number of visible rows."""

    mention_vectors: Tensor
    """[N, d] h'_m = W_m h_m + b_m."""
    entity_vectors: Tensor
    """[N, d] e'_m, weighted sum of the k nearest entities."""
    topk_rows: Tensor
    """[N, k] int64, nearest first."""
    topk_weights: Tensor
    """[N, k] a_j of Eq. 3, sum 1 (no gradient: for reading)."""
    topk_scores: Tensor
    """[N, k] dot products."""
    lse: Tensor
    """[N] fp32, log of the denominator of Eq. 10."""
    gold_logit: Tensor
    """[N] fp32, dot product with the gold entity, 0 where there is none."""
    has_gold: Tensor
    """[N] bool."""


class SearchIndex(Protocol):
    """Finds nearest entities in place of the exact search: for inference with very large tables."""

    def search(self, vectors: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """[N, d] -> dot products [N, k], largest first, and rows of the table [N, k] int64, -1 after the last found."""


class EntityTable(nn.Module):
    """The entity embeddings; searched in here, so that the module that owns the weight also uses it.

    ZeRO stage 3 gathers a sharded weight when its own module runs, not when another module reads it.

    Rows may be stored wider than an entity (`KeBioLMConfig.entity_row_size`), so that each begins at a multiple of 16
    bytes, which lets GPUs load it in one piece. What lies behind `entity_size` is 0 and stays so: mentions are 0 there
    as well, hence the gradient too.
    """

    def __init__(self, config: KeBioLMConfig) -> None:
        super().__init__()
        self.num_hidden_rows = config.num_hidden_entity_rows
        self.num_neighbours = config.max_candidate_entities
        self.entity_size = config.entity_size
        self.weight = nn.Parameter(torch.empty(config.num_entities, config.entity_columns))
        self.weight.requires_grad_(not config.freeze_entity_embeddings)
        self.index: SearchIndex | None = None
        """Where to search instead of in the whole table; there is no log-sum-exp then (NaN), and no gold entity."""

    @property
    def vectors(self) -> Tensor:
        """[E, d] the entities without what lies behind them, a view."""
        return self.weight[:, : self.entity_size]

    def forward(self, mention_vectors: Tensor, gold_rows: Tensor | None) -> KnnEntityAttentionOutput:
        """Search the visible rows. mention_vectors [N, d]; gold_rows [N] or None; `topk_idx` are rows of the table."""
        if self.index is not None:
            return self._search_index(self.index, mention_vectors, gold_rows)
        hidden = self.num_hidden_rows
        gold = None if gold_rows is None else torch.where(gold_rows >= hidden, gold_rows, IGNORED_ENTITY)
        found = knn_entity_attention(
            pad(mention_vectors, (0, self.weight.shape[1] - self.entity_size)),
            self.weight,
            gold,
            self.num_neighbours,
            ignore_index=IGNORED_ENTITY,
            first_row=hidden,
        )
        return found._replace(att=found.att[:, : self.entity_size])

    def _search_index(
        self, index: SearchIndex, mention_vectors: Tensor, gold_rows: Tensor | None
    ) -> KnnEntityAttentionOutput:
        if gold_rows is not None:
            raise ValueError("gold_rows: got rows beside an index; expected none, an index has no linking loss")
        values, rows = index.search(mention_vectors.detach(), self.num_neighbours)
        values = values.masked_fill(rows < 0, -torch.inf)
        # A mention for which nothing was found gets no weights at all, and not NaN.
        weights = values.softmax(dim=1).nan_to_num(nan=0.0).to(self.weight.dtype)
        neighbours = embedding(rows.clamp(min=0), self.vectors)
        unknown = torch.full_like(values[:, 0], torch.nan)
        return KnnEntityAttentionOutput(
            att=(weights.unsqueeze(1) @ neighbours).squeeze(1).to(mention_vectors.dtype),
            lse=unknown,
            gold_logit=torch.zeros_like(unknown),
            topk_val=values,
            topk_idx=rows,
        )


class EntityMemory(nn.Module):
    """Projection of mentions into the space of entities, and the table."""

    def __init__(self, config: KeBioLMConfig) -> None:
        super().__init__()
        self.entity_embeddings = EntityTable(config)
        self.mention_to_entity_projection = nn.Linear(2 * config.hidden_size, config.entity_size)

    def forward(self, pooled_mentions: Tensor, gold_rows: Tensor | None) -> EntityLookup:
        """Look mentions up.

        Args:
            pooled_mentions: [N, 2 H] h_m.
            gold_rows: [N] int64 rows of the gold entities; a negative number or a hidden row means none.
                None when no gold is known.
        """
        mention_vectors = self.mention_to_entity_projection(pooled_mentions)
        found = self.entity_embeddings(mention_vectors, gold_rows)
        if gold_rows is None:
            has_gold = torch.zeros_like(found.lse, dtype=torch.bool)
        else:
            has_gold = gold_rows >= self.entity_embeddings.num_hidden_rows
        return EntityLookup(
            mention_vectors=mention_vectors,
            entity_vectors=found.att,
            topk_rows=found.topk_idx,
            topk_weights=found.topk_val.detach().softmax(dim=1),
            topk_scores=found.topk_val,
            lse=found.lse,
            gold_logit=found.gold_logit,
            has_gold=has_gold,
        )
