"""The model at step 0: sizes from the recipe and the shards, weights from BERT and TransE where these are given."""

from __future__ import annotations

from typing import Any

import torch

from kebiolm.console import console
from kebiolm.data.shard_format import PackedShards
from kebiolm.data.tokenizer import check_tokenizer, load_tokenizer
from kebiolm.errors import UserError
from kebiolm.model import KeBioLMConfig, KeBioLMForPreTraining
from kebiolm.model.from_bert import config_from_bert, load_bert_weights, load_entity_embeddings
from kebiolm.training.config import ModelSection, PretrainConfig
from kebiolm.transe.start_vectors import load_transe

# Rows of the entity table begin at multiples of 16 bytes in half precision.
_ROW_MULTIPLE = 8
# Settings that a BERT checkpoint decides where the run starts from one.
_SIZES_OF_A_CHECKPOINT = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")


def make_initial_model(config: PretrainConfig, shards: PackedShards, *, say: bool = True) -> KeBioLMForPreTraining:
    """Build the model that a run starts from; equal on every process.

    Args:
        config: the run's settings.
        shards: decide the numbers of pieces and of entities.
        say: print what was loaded from where.

    Raises:
        UserError: the checkpoint, the vectors and the shards do not fit together.
    """
    torch.manual_seed(config.seed)
    model = KeBioLMForPreTraining(_make_config(config, shards))
    if config.model.init_from:
        report = load_bert_weights(model, config.model.init_from)
        if say:
            console.print(f"start from {config.model.init_from}: {report}")
    if config.entities.init_from:
        vectors = load_transe(config.entities.init_from, shards.entity_vocab)
        load_entity_embeddings(model, vectors.entity_embeddings, where=config.entities.init_from)
    if config.optimization.activation_checkpointing:
        _checkpoint_activations(model)
    return model


def _checkpoint_activations(model: KeBioLMForPreTraining) -> None:
    """Let each layer keep only its input, and compute the rest again, with the same dropout, in the backward pass."""
    # The older name is deprecated in newer versions of transformers, and the newer one absent in older ones.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False, "preserve_rng_state": True})


def _make_config(config: PretrainConfig, shards: PackedShards) -> KeBioLMConfig:
    section = config.model
    fields: dict[str, Any] = section.model_dump(exclude={"init_from"}) | {
        "num_entities": len(shards.entity_vocab),
        "entity_row_size": -(-section.entity_size // _ROW_MULTIPLE) * _ROW_MULTIPLE,
        "freeze_entity_embeddings": config.entities.freeze,
        "max_mentions": shards.manifest["settings"]["max_mentions"],
    }
    vocab_size = shards.manifest["tokenizer"]["vocab_size"]
    if section.init_from is None:
        # No more positions than will be trained: a longer text would meet random ones.
        return KeBioLMConfig(**fields, vocab_size=vocab_size, max_position_embeddings=shards.max_length)

    check_tokenizer(load_tokenizer(section.init_from), shards.manifest, where=section.init_from)
    for name in _SIZES_OF_A_CHECKPOINT:
        _check_not_set(section, name)
        del fields[name]
    model_config = config_from_bert(section.init_from, **fields)
    if shards.max_length > model_config.max_position_embeddings:
        raise UserError(
            config.shards,
            got=f"sequences of {shards.max_length} pieces",
            expected=f"at most {model_config.max_position_embeddings}, as {section.init_from} has positions",
            mend="pack again with a smaller --max-length",
        )
    return model_config


def _check_not_set(section: ModelSection, name: str) -> None:
    if name in section.model_fields_set:
        raise UserError(
            f"model.{name}",
            got=f"{getattr(section, name)} beside model.init_from",
            expected="sizes from the checkpoint alone",
            mend=f"remove model.{name}",
        )
