"""Operators that the model calls; they import nothing else of this package."""

from kebiolm.kernels.knn_entity_attention import KnnEntityAttentionOutput, knn_entity_attention
from kebiolm.kernels.knn_entity_attention.sharded import shard_rows, sharded_knn_entity_attention

__all__ = ["KnnEntityAttentionOutput", "knn_entity_attention", "shard_rows", "sharded_knn_entity_attention"]
