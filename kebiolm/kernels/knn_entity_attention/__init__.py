"""Attention of mentions over their k nearest entities, with the softmax denominator over the whole table."""

from kebiolm.kernels.knn_entity_attention.interface import KnnEntityAttentionOutput, knn_entity_attention

__all__ = ["KnnEntityAttentionOutput", "knn_entity_attention"]
