"""The KeBioLM model in Hugging Face style; importing this registers it with `AutoConfig` and `AutoModel...`."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from kebiolm.model.configuration_kebiolm import KeBioLMConfig
from kebiolm.model.modeling_heads import (
    KeBioLMForRelationExtraction,
    KeBioLMForSequenceClassification,
    KeBioLMForTokenClassification,
)
from kebiolm.model.modeling_kebiolm import (
    KeBioLMForPreTraining,
    KeBioLMModel,
    KeBioLMModelOutput,
    KeBioLMPreTrainingOutput,
)

AutoConfig.register(KeBioLMConfig.model_type, KeBioLMConfig)
AutoModel.register(KeBioLMConfig, KeBioLMModel)
AutoModelForPreTraining.register(KeBioLMConfig, KeBioLMForPreTraining)
AutoModelForTokenClassification.register(KeBioLMConfig, KeBioLMForTokenClassification)
AutoModelForSequenceClassification.register(KeBioLMConfig, KeBioLMForSequenceClassification)

__all__ = [
    "KeBioLMConfig",
    "KeBioLMForPreTraining",
    "KeBioLMForRelationExtraction",
    "KeBioLMForSequenceClassification",
    "KeBioLMForTokenClassification",
    "KeBioLMModel",
    "KeBioLMModelOutput",
    "KeBioLMPreTrainingOutput",
]
