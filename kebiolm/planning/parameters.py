"""How many numbers the model has, by part, without making it. A test compares them with the real model's."""

from __future__ import annotations

from dataclasses import dataclass

from kebiolm.planning.workload import Data, Model


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """Counts of weights."""

    words: int
    """Word embeddings, which are the decoder's weight too."""
    entities: int
    """The entity table as it is stored."""
    matrices: int
    """All other weights of two dimensions: what AdamW decays, with `words`."""
    vectors: int
    """Biases and LayerNorms."""
    layer: int
    """Weights of one transformer layer, biases and LayerNorms included; counted above as well."""

    @property
    def total(self) -> int:
        """All weights."""
        return self.words + self.entities + self.matrices + self.vectors

    def trained(self, *, freeze_entities: bool) -> int:
        """Those that get gradients."""
        return self.total - (self.entities if freeze_entities else 0)

    def largest_group(self, *, freeze_entities: bool) -> int:
        """Those of the larger of the two groups that the optimizer takes in turn: with decay and without."""
        return max(self.words + self.matrices, self.vectors + (0 if freeze_entities else self.entities))


def count_parameters(model: Model, data: Data) -> Parameters:
    """Count the weights of `KeBioLMForPreTraining`, after the modules in `kebiolm.model`."""
    hidden, intermediate, size = model.hidden, model.intermediate, model.entity_size
    layer_matrices = 4 * hidden**2 + 2 * hidden * intermediate
    layer_vectors = 4 * hidden + (intermediate + hidden) + 4 * hidden  # attention, feed-forward, two LayerNorms
    matrices = (
        (model.positions + 2) * hidden  # positions, token types
        + model.layers * layer_matrices
        + 3 * hidden  # mention detector
        + 2 * hidden * size  # mention to entity
        + hidden**2  # the head's transform
    )
    vectors = 2 * hidden + model.layers * layer_vectors + 3 + size + 3 * hidden + data.pieces
    if model.context_layers < model.layers:  # the fusion
        matrices += size * hidden
        vectors += hidden + (2 * hidden if model.fusion_layer_norm else 0)
    return Parameters(
        words=data.pieces * hidden,
        entities=data.entities * model.entity_columns,
        matrices=matrices,
        vectors=vectors,
        layer=layer_matrices + layer_vectors,
    )
