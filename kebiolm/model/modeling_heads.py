"""Fine-tuning heads: token classification, relation extraction, sequence classification (section 4.2).

They return logits, and a loss when labels are given, nothing else: what an evaluation loop keeps stays small.
Mentions are detected unless given. Shape letters: B rows, L positions, H hidden size, C labels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers.modeling_outputs import SequenceClassifierOutput, TokenClassifierOutput

from kebiolm.model.configuration_kebiolm import KeBioLMConfig
from kebiolm.model.losses import IGNORED_LABEL
from kebiolm.model.modeling_kebiolm import KeBioLMModel, KeBioLMPreTrainedModel


class _KeBioLMWithClassifier(KeBioLMPreTrainedModel):
    """A linear layer over one or more states of KeBioLM; C is `config.num_labels`."""

    num_states = 1

    def __init__(self, config: KeBioLMConfig) -> None:
        super().__init__(config)
        self.bert = KeBioLMModel(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(self.num_states * config.hidden_size, config.num_labels)
        self.post_init()

    def _classify(self, states: Tensor, labels: Tensor | None) -> tuple[Tensor | None, Tensor]:
        logits = self.classifier(self.dropout(states))
        if labels is None:
            return None, logits
        loss = cross_entropy(logits.flatten(0, -2).float(), labels.flatten(), ignore_index=IGNORED_LABEL)
        return loss, logits


class KeBioLMForTokenClassification(_KeBioLMWithClassifier):
    """A label for each token, such as B/I/O of a corpus."""

    def forward(self, input_ids: Tensor, labels: Tensor | None = None, **encoder_inputs: Any) -> TokenClassifierOutput:
        """Classify tokens.

        Args:
            input_ids: [B, L] int64.
            labels: [B, L] int64, -100 for tokens without a label; the loss is the mean over the others.
            encoder_inputs: further arguments of `KeBioLMModel.forward`.

        Returns:
            `loss` 0-dim or None, `logits` [B, L, C].
        """
        loss, logits = self._classify(self.bert(input_ids, **encoder_inputs).last_hidden_state, labels)
        return TokenClassifierOutput(loss=loss, logits=logits)


class KeBioLMForRelationExtraction(_KeBioLMWithClassifier):
    """A label for each row, from the states of the two marker tokens that stand for its entities."""

    num_states = 2

    def forward(
        self, input_ids: Tensor, marker_positions: Tensor, labels: Tensor | None = None, **encoder_inputs: Any
    ) -> SequenceClassifierOutput:
        """Classify the relation between two marked entities.

        Args:
            input_ids: [B, L] int64.
            marker_positions: [B, 2] int64, positions of the two markers in text order; equal where one marker
                stands for both entities.
            labels: [B] int64.
            encoder_inputs: further arguments of `KeBioLMModel.forward`.

        Returns:
            `loss` 0-dim or None, `logits` [B, C].
        """
        hidden = self.bert(input_ids, **encoder_inputs).last_hidden_state
        rows = torch.arange(len(hidden), device=hidden.device).unsqueeze(1)
        loss, logits = self._classify(hidden[rows, marker_positions].flatten(1), labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


class KeBioLMForSequenceClassification(_KeBioLMWithClassifier):
    """A label for each row, from the state of its first token, [CLS]."""

    def forward(
        self, input_ids: Tensor, labels: Tensor | None = None, **encoder_inputs: Any
    ) -> SequenceClassifierOutput:
        """Classify rows.

        Args:
            input_ids: [B, L] int64.
            labels: [B] int64.
            encoder_inputs: further arguments of `KeBioLMModel.forward`.

        Returns:
            `loss` 0-dim or None, `logits` [B, C].
        """
        loss, logits = self._classify(self.bert(input_ids, **encoder_inputs).last_hidden_state[:, 0], labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)
