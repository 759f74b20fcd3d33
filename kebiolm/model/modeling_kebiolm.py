"""KeBioLM: text-only layers, an entity memory, text-entity fusion layers, and the pretraining heads (section 3).

Shape letters: B rows, L positions, N mentions in the whole batch, H hidden size, V pieces, E entities, d entity
size, k neighbours, K masked positions in the whole batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, initialization
from transformers.activations import ACT2FN
from transformers.utils import ModelOutput

from kebiolm.model import losses, mentions, released
from kebiolm.model.attention import Visibility, attention_mask_of_rows, visibility_of_segments
from kebiolm.model.configuration_kebiolm import KeBioLMConfig
from kebiolm.model.encoder import Embeddings, Encoder, restarting_position_ids
from kebiolm.model.entity_memory import EntityLookup, EntityMemory, EntityTable


@dataclass
class KeBioLMModelOutput(ModelOutput):
    """States, mentions and entities of a batch."""

    last_hidden_state: Tensor | None = None
    """[B, L, H] h^f of Eq. 5; h of Eq. 1 where there are no fusion layers."""
    bio_logits: Tensor | None = None
    """[B, L, 3] before the softmax of Eq. 2, in the order O, B, I."""
    mention_spans: Tensor | None = None
    """[N, 3] int64 (batch row, first token, last token + 1), given or detected."""
    entities: EntityLookup | None = None
    """What the entity memory found for each mention."""


@dataclass
class KeBioLMPreTrainingOutput(ModelOutput):
    """Losses and predictions of the three pretraining tasks; a loss without labels is None."""

    loss: Tensor | None = None
    """0-dim: the mean of each loss that has labels, added (Eq. 6)."""
    mlm_loss_sum: Tensor | None = None
    """0-dim fp32, Eq. 8."""
    mlm_count: Tensor | None = None
    """0-dim fp32, masked positions."""
    detection_loss_sum: Tensor | None = None
    """0-dim fp32, Eq. 9."""
    detection_count: Tensor | None = None
    """0-dim fp32, labelled tokens."""
    linking_loss_sum: Tensor | None = None
    """0-dim fp32, Eq. 10."""
    linking_count: Tensor | None = None
    """0-dim fp32, mentions with a gold entity."""
    mlm_logits: Tensor | None = None
    """[K, V] at the positions that `mlm_labels` asks for, in row-major order; [B, L, V] without `mlm_labels`."""
    bio_logits: Tensor | None = None
    """[B, L, 3] in the order O, B, I."""
    mention_spans: Tensor | None = None
    """[N, 3] int64 (batch row, first token, last token + 1), given or detected."""
    mention_vectors: Tensor | None = None
    """[N, d] h'_m: its dot products with the entity table are the linking logits."""
    entity_topk_rows: Tensor | None = None
    """[N, k] int64 rows of the entity table, nearest first."""
    entity_topk_weights: Tensor | None = None
    """[N, k] a_j of Eq. 3, sum 1."""
    entity_topk_scores: Tensor | None = None
    """[N, k] dot products."""
    last_hidden_state: Tensor | None = None
    """[B, L, H]."""


class KeBioLMPreTrainedModel(PreTrainedModel):
    """Loading, saving and fresh weights, shared by all KeBioLM models."""

    config_class = KeBioLMConfig
    base_model_prefix = "bert"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ("Embeddings", "Layer")
    # Some checkpoints have this constant and some have not.
    _keys_to_ignore_on_load_missing = (r"embeddings\.position_ids$",)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Load a saved model; arguments and result as those of `transformers.PreTrainedModel.from_pretrained`."""
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        # Loading replaces parameters by new ones, which all ask for gradients.
        for module in model.modules():
            if isinstance(module, EntityTable):
                module.weight.requires_grad_(not model.config.freeze_entity_embeddings)
        return loaded

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, EntityTable):
            initialization.normal_(module.weight, mean=0.0, std=self.config.initializer_range)
            module.weight[:, module.entity_size :].zero_()
        elif isinstance(module, Embeddings):
            initialization.copy_(module.position_ids, torch.arange(self.config.max_position_embeddings).unsqueeze(0))
        elif isinstance(module, MaskedLanguageModellingHead):
            initialization.zeros_(module.bias)


class KeBioLMModel(KeBioLMPreTrainedModel):
    """Equations 1 to 5: from ids to states that have read the entity memory."""

    def __init__(self, config: KeBioLMConfig) -> None:
        super().__init__(config)
        self.embeddings = Embeddings(config)
        self.context_encoder = Encoder(config, config.num_context_layers)
        self.mention_detector = nn.Linear(config.hidden_size, 3)
        self.entity_linker = EntityMemory(config)
        # Weights that the config leaves without use are not made: every parameter takes part in every step.
        if config.fuses_entities:
            self.entity_context_projection = nn.Linear(config.entity_size, config.hidden_size)
            if config.fusion_layer_norm:
                self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.recontext_encoder = Encoder(config, config.num_hidden_layers - config.num_context_layers)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """The word embeddings."""
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the word embeddings."""
        self.embeddings.word_embeddings = value

    def forward(
        self,
        input_ids: Tensor,
        *,
        document_index: Tensor | None = None,
        segment_offsets: Tensor | None = None,
        position_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        mention_spans: Tensor | None = None,
        entity_labels: Tensor | None = None,
        max_mentions: int | None = None,
    ) -> KeBioLMModelOutput:
        """Encode a batch.

        Args:
            input_ids: [B, L] int64. Each segment is [CLS] ... [SEP].
            document_index: [B, L] int64, number of each position's segment in its row from 1, 0 for padding;
                segments do not see each other. None: one segment a row, whose padding `attention_mask` tells.
            segment_offsets: [S + 1] int64, where each segment begins in the flattened batch, at last B L; padding is
                a segment of its own in each row. Says the same as `document_index` and goes with it; attention then
                needs no mask of L x L, which is faster.
            position_ids: [B, L] int64; None: counted from 0 in each segment.
            token_type_ids: [B, L] int64; None: 0 everywhere.
            attention_mask: [B, L], 0 for padding; None: as `document_index` says, else no padding.
            mention_spans: [N, 3] int64 (batch row, first token, last token + 1), sorted, not overlapping: gold
                mentions. None: mentions are detected.
            entity_labels: [N] int64 rows of the entity table for given mentions, -100 for none. They do not
                change the states; they are looked up for the linking loss.
            max_mentions: detected mentions kept for each row; None: as the config says.

        Raises:
            ValueError: rows longer than `max_position_embeddings`, or arguments of which one lacks the other.
        """
        if entity_labels is not None and mention_spans is None:
            raise ValueError("got entity_labels without mention_spans; expected both, in the same order")
        if segment_offsets is not None and (document_index is None or attention_mask is not None):
            raise ValueError(
                "got segment_offsets without document_index or with attention_mask; expected the first two"
            )
        document_index, position_ids, visibility = self._layout(
            input_ids, document_index, segment_offsets, position_ids, attention_mask
        )
        hidden = self.embeddings(input_ids, position_ids, token_type_ids)
        hidden = self.context_encoder(hidden, visibility)  # Eq. 1
        bio_logits = self.mention_detector(hidden)  # Eq. 2
        if mention_spans is None:
            mention_spans = self._detect_mentions(bio_logits, document_index, max_mentions)
        entities = self.entity_linker(mentions.mention_vectors(hidden, mention_spans), entity_labels)  # Eq. 3
        if self.config.fuses_entities:
            hidden = self._fuse(hidden, entities.entity_vectors, mention_spans)  # Eq. 4
        return KeBioLMModelOutput(
            last_hidden_state=self.recontext_encoder(hidden, visibility),  # Eq. 5
            bio_logits=bio_logits,
            mention_spans=mention_spans,
            entities=entities,
        )

    def _layout(
        self,
        input_ids: Tensor,
        document_index: Tensor | None,
        segment_offsets: Tensor | None,
        position_ids: Tensor | None,
        attention_mask: Tensor | None,
    ) -> tuple[Tensor, Tensor, Visibility]:
        """Segments, positions and who sees whom, from what the caller gave."""
        length, longest = input_ids.shape[1], self.config.max_position_embeddings
        if document_index is None:
            if position_ids is None:
                if length > longest:
                    raise ValueError(
                        f"got rows of {length} positions; expected at most {longest}; cut or split the text"
                    )
                position_ids = torch.arange(length, device=input_ids.device).expand_as(input_ids)
            if attention_mask is None:
                return torch.ones_like(input_ids), position_ids, None
            return (attention_mask != 0).long(), position_ids, attention_mask_of_rows(attention_mask)
        if attention_mask is not None:
            document_index = document_index.masked_fill(attention_mask == 0, 0)
        if position_ids is None:
            position_ids = restarting_position_ids(document_index)
        weight, heads = self.embeddings.word_embeddings.weight, self.config.num_attention_heads
        visibility = visibility_of_segments(
            document_index, segment_offsets, dtype=weight.dtype, head_size=self.config.hidden_size // heads
        )
        return document_index, position_ids, visibility

    def _detect_mentions(self, bio_logits: Tensor, document_index: Tensor, max_mentions: int | None) -> Tensor:
        decode = mentions.spans_of_labels if self.config.semantics == "paper" else released.released_spans_of_labels
        cap = self.config.max_mentions if max_mentions is None else max_mentions
        return decode(bio_logits.argmax(dim=-1), document_index, cap)

    def _fuse(self, hidden: Tensor, entity_vectors: Tensor, mention_spans: Tensor) -> Tensor:
        find = mentions.mention_of_token if self.config.semantics == "paper" else released.released_mention_of_token
        token_mentions = find(mention_spans, *hidden.shape[:2])
        additions = self.entity_context_projection(entity_vectors)
        hidden = mentions.add_to_mention_tokens(hidden, additions, token_mentions)
        return self.layer_norm(hidden) if self.config.fusion_layer_norm else hidden


class PredictionTransform(nn.Module):
    """Projection, activation and LayerNorm before the decoder."""

    def __init__(self, config: KeBioLMConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = ACT2FN[config.hidden_act]
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., H] -> [..., H]."""
        return self.LayerNorm(self.activation(self.dense(hidden)))


class MaskedLanguageModellingHead(nn.Module):
    """Eq. 7: scores of all pieces; the decoder's weight is the word embeddings."""

    def __init__(self, config: KeBioLMConfig) -> None:
        super().__init__()
        self.transform = PredictionTransform(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)
        # The same tensor as decoder.bias; released checkpoints have it under both names.
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., H] -> [..., V]."""
        return self.decoder(self.transform(hidden))


class PreTrainingHeads(nn.Module):
    """Gives the head its place in the state dict, `cls.predictions`."""

    def __init__(self, config: KeBioLMConfig) -> None:
        super().__init__()
        self.predictions = MaskedLanguageModellingHead(config)

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., H] -> [..., V]."""
        return self.predictions(hidden)


class KeBioLMForPreTraining(KeBioLMPreTrainedModel):
    """KeBioLM with its three pretraining tasks: masked language modelling, entity detection, entity linking."""

    _tied_weights_keys = {  # noqa: RUF012 (read by transformers as it stands)
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    }

    def __init__(self, config: KeBioLMConfig) -> None:
        super().__init__(config)
        self.bert = KeBioLMModel(config)
        self.cls = PreTrainingHeads(config)
        self.post_init()

    def get_output_embeddings(self) -> nn.Linear:
        """The decoder, tied to the word embeddings."""
        return self.cls.predictions.decoder

    def set_output_embeddings(self, value: nn.Linear) -> None:
        """Replace the decoder, with its bias."""
        self.cls.predictions.decoder = value
        self.cls.predictions.bias = value.bias

    def forward(
        self,
        input_ids: Tensor,
        *,
        document_index: Tensor | None = None,
        segment_offsets: Tensor | None = None,
        position_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        mlm_labels: Tensor | None = None,
        mlm_positions: Tensor | None = None,
        bio_labels: Tensor | None = None,
        mention_spans: Tensor | None = None,
        entity_labels: Tensor | None = None,
    ) -> KeBioLMPreTrainingOutput:
        """Encode a batch and compute the losses whose labels are given.

        Args:
            input_ids: [B, L] int64, after masking.
            document_index: see `KeBioLMModel.forward`, as for the next four.
            segment_offsets: [S + 1].
            position_ids: [B, L].
            token_type_ids: [B, L].
            attention_mask: [B, L].
            mlm_labels: [B, L] int64 original pieces, -100 where nothing is to be predicted.
            mlm_positions: [K] int64, where that is not -100 in the flattened batch, ascending. None: it is looked up,
                for which the host waits for a GPU.
            bio_labels: [B, L] int64, 0 = O, 1 = B, 2 = I, -100 = padding.
            mention_spans: [N, 3] int64 gold mentions; None: mentions are detected.
            entity_labels: [N] int64 rows of the entity table, -100 for none.
        """
        encoded = self.bert(
            input_ids,
            document_index=document_index,
            segment_offsets=segment_offsets,
            position_ids=position_ids,
            token_type_ids=token_type_ids,
            attention_mask=attention_mask,
            mention_spans=mention_spans,
            entity_labels=entity_labels,
        )
        entities, hidden = encoded.entities, encoded.last_hidden_state
        mlm = detection = linking = None
        if mlm_labels is None:
            mlm_logits = self.cls(hidden)
        else:
            targets = mlm_labels.flatten()
            if mlm_positions is None:
                mlm_positions = (targets != losses.IGNORED_LABEL).nonzero().squeeze(1)
            mlm_logits = self.cls(hidden.flatten(0, 1)[mlm_positions])
            mlm = losses.masked_language_modelling_loss(mlm_logits, targets[mlm_positions])
        if bio_labels is not None:
            detection = losses.entity_detection_loss(encoded.bio_logits, bio_labels)
        if entity_labels is not None:
            linking = losses.entity_linking_loss(entities.lse, entities.gold_logit, entities.has_gold)
        return KeBioLMPreTrainingOutput(
            loss=losses.sum_of_means([mlm, detection, linking]),
            mlm_loss_sum=mlm and mlm.sum,
            mlm_count=mlm and mlm.count,
            detection_loss_sum=detection and detection.sum,
            detection_count=detection and detection.count,
            linking_loss_sum=linking and linking.sum,
            linking_count=linking and linking.count,
            mlm_logits=mlm_logits,
            bio_logits=encoded.bio_logits,
            mention_spans=encoded.mention_spans,
            mention_vectors=entities.mention_vectors,
            entity_topk_rows=entities.topk_rows,
            entity_topk_weights=entities.topk_weights,
            entity_topk_scores=entities.topk_scores,
            last_hidden_state=hidden,
        )
