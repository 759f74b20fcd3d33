"""Start a KeBioLM from a BERT checkpoint (section 4.1) and its entity table from TransE vectors (section 3.3)."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from kebiolm.errors import UserError
from kebiolm.model.configuration_kebiolm import KeBioLMConfig
from kebiolm.model.modeling_kebiolm import KeBioLMForPreTraining

# Sizes and rates that a start from BERT takes over; the rest of a KeBioLMConfig is about entities.
_SHARED_FIELDS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "max_position_embeddings",
    "type_vocab_size",
    "initializer_range",
    "layer_norm_eps",
    "pad_token_id",
)
_LAYER = re.compile(r"^encoder\.layer\.(\d+)\.")
# Filled through the names they are tied to: the word embeddings and `cls.predictions.bias`.
_TIED = {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"}
_CONSTANT = {"bert.embeddings.position_ids"}
_FOLDER_MEND = "give the folder of a BERT checkpoint in the Hugging Face layout"


@dataclass(frozen=True, kw_only=True)
class StartReport:
    """What a start from a BERT checkpoint did, by state-dict key, each list sorted."""

    loaded: list[str]
    """Keys of the model that were filled."""
    fresh: list[str]
    """Keys of the model that keep their random start."""
    unused: list[str]
    """Keys of the checkpoint that have no place in the model, such as its pooler."""

    def __str__(self) -> str:
        modules = sorted({key.rsplit(".", 1)[0] for key in self.fresh})
        return (
            f"{len(self.loaded)} tensors loaded, {len(self.fresh)} fresh ({', '.join(modules) or 'none'}), "
            f"{len(self.unused)} of the checkpoint unused"
        )


def config_from_bert(folder: Path, **fields: Any) -> KeBioLMConfig:
    """Make a config with the sizes of a BERT checkpoint.

    Args:
        folder: a folder with the config.json of a BERT.
        fields: further fields of `KeBioLMConfig`; they win over those of the checkpoint.

    Raises:
        UserError: there is no readable config.json of a BERT, or a field is out of its range.
    """
    path = Path(folder) / "config.json"
    bert = _read_json(path)
    # Old BERT configs do not say their type.
    if (model_type := bert.get("model_type", "bert")) != "bert":
        raise UserError(path, got=f"model_type {model_type}", expected="model_type bert", mend=_FOLDER_MEND)
    return KeBioLMConfig(**{name: bert[name] for name in _SHARED_FIELDS if name in bert} | fields)


def load_bert_weights(model: KeBioLMForPreTraining, folder: Path) -> StartReport:
    """Fill a model with the weights of a BERT checkpoint, in place.

    The first `num_context_layers` layers become text-only layers, the others fusion layers. The masked language
    modelling head is taken if the checkpoint has all of it. Mention detector, projections, fusion LayerNorm and
    entity table stay fresh.

    Args:
        model: a new model.
        folder: pytorch_model.bin, model.safetensors or an index of shards, with or without the prefix "bert.".

    Raises:
        UserError: the weights are unreadable, of another size, or not a whole BERT encoder.
    """
    folder, config = Path(folder), model.config
    checkpoint = {_kebiolm_name(key, config.num_context_layers): t for key, t in _read_weights(folder).items()}
    state = model.state_dict()
    _check_sizes(folder, checkpoint, state, config)
    head = {name for name in state if name.startswith("cls.")} - _TIED
    takes_head = head <= checkpoint.keys()
    loadable = {
        name: tensor
        for name, tensor in checkpoint.items()
        if name in state and name not in _TIED and (takes_head or name not in head)
    }
    model.load_state_dict(loadable, strict=False)

    filled = {state[name].data_ptr() for name in loadable}
    loaded = {name for name in state if state[name].data_ptr() in filled}
    return StartReport(
        loaded=sorted(loaded - _CONSTANT),
        fresh=sorted(state.keys() - loaded - _CONSTANT),
        unused=sorted(checkpoint.keys() - loaded - _CONSTANT),
    )


@torch.no_grad()
def load_entity_embeddings(model: KeBioLMForPreTraining, embeddings: Tensor, *, where: object) -> None:
    """Start the entity table from given vectors, such as TransE's, in place.

    Args:
        model: the model to fill.
        embeddings: [E, d], rows in the order of the model's entity table.
        where: where the vectors come from, for the error message.

    Raises:
        UserError: another shape, or values that are not finite.
    """
    table = model.bert.entity_linker.entity_embeddings.vectors
    if embeddings.shape != table.shape:
        raise UserError(
            where,
            got=f"entity vectors of shape {tuple(embeddings.shape)}",
            expected=f"{tuple(table.shape)} (num_entities, entity_size)",
            mend="train the vectors on the entity vocabulary of these shards, with the model's entity_size",
        )
    if not embeddings.isfinite().all():
        bad = int((~embeddings.isfinite().all(dim=1)).sum())
        raise UserError(
            where, got=f"{bad} rows with NaN or infinity", expected="finite vectors", mend="train them again"
        )
    table.copy_(embeddings)


def weight_files(folder: Path) -> list[Path]:
    """The files in which a checkpoint folder has its weights, sorted by name.

    Raises:
        UserError: there are none.
    """
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return [folder / name]
        if (folder / f"{name}.index.json").is_file():
            files = _read_json(folder / f"{name}.index.json")["weight_map"].values()
            return [folder / file for file in sorted(set(files))]
    got = "neither model.safetensors nor pytorch_model.bin" if folder.is_dir() else "no such folder"
    raise UserError(folder, got=got, expected="the weights of a BERT", mend=_FOLDER_MEND)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(path, got="no such file", expected="the config of a BERT", mend=_FOLDER_MEND) from None
    except ValueError as error:
        raise UserError(path, got=f"text that is not JSON ({error})", expected="JSON", mend=_FOLDER_MEND) from None


def _read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint folder, on the CPU."""
    return {key: tensor for file in weight_files(folder) for key, tensor in _read_weight_file(file).items()}


def _read_weight_file(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # both libraries raise many types for a broken file
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise UserError(
            path, got=f"an unreadable file ({reason})", expected="a file of tensors", mend="copy the checkpoint again"
        ) from None


def _kebiolm_name(key: str, num_context_layers: int) -> str:
    """BERT's name of a weight -> KeBioLM's name of it."""
    # Checkpoints converted from TensorFlow name the weights of LayerNorm gamma and beta.
    key = key.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
    if key.startswith("cls."):
        return key
    key = key.removeprefix("bert.")
    if match := _LAYER.match(key):
        layer, rest = int(match.group(1)), key[match.end() :]
        if layer < num_context_layers:
            return f"bert.context_encoder.layer.{layer}.{rest}"
        return f"bert.recontext_encoder.layer.{layer - num_context_layers}.{rest}"
    return f"bert.{key}"


def _check_sizes(folder: Path, checkpoint: dict[str, Tensor], state: dict[str, Tensor], config: KeBioLMConfig) -> None:
    """Raise UserError unless the checkpoint holds a BERT encoder of exactly the model's sizes."""
    vocabulary = checkpoint.get("bert.embeddings.word_embeddings.weight")
    if vocabulary is not None and len(vocabulary) != config.vocab_size:
        raise UserError(
            folder,
            got=f"a vocabulary of {len(vocabulary)} pieces",
            expected=f"{config.vocab_size} (vocab_size)",
            mend="pack the shards with the tokenizer of this checkpoint",
        )
    if any(name.startswith("bert.recontext_encoder.") and name not in state for name in checkpoint):
        raise UserError(
            folder,
            got="more layers",
            expected=f"{config.num_hidden_layers} (num_hidden_layers)",
            mend="set num_hidden_layers to the checkpoint's number of layers",
        )
    encoder = re.compile(r"bert\.(embeddings|context_encoder|recontext_encoder)\.")
    missing = sorted(name for name in state if encoder.match(name) and name not in checkpoint.keys() | _CONSTANT)
    if missing:
        got = f"no weight for {missing[0]} ({len(missing)} missing)"
        raise UserError(folder, got=got, expected="all layers of a BERT of the model's depth", mend=_FOLDER_MEND)
    for name in sorted(checkpoint.keys() & state.keys()):
        if checkpoint[name].shape != state[name].shape:
            raise UserError(
                f"{folder} ({name})",
                got=f"shape {tuple(checkpoint[name].shape)}",
                expected=f"{tuple(state[name].shape)}",
                mend="set the model's sizes to those of the checkpoint's config.json",
            )
