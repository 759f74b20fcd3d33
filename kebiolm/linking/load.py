"""Load an exported folder and check that its parts belong together."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from kebiolm.console import quiet_transformers
from kebiolm.data.entity_vocab import FILE_NAME as ENTITY_VOCAB_FILE
from kebiolm.data.entity_vocab import EntityVocab
from kebiolm.data.tokenizer import load_tokenizer
from kebiolm.errors import UserError
from kebiolm.linking.entity_index import EntityIndex
from kebiolm.model import KeBioLMConfig, KeBioLMModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from kebiolm.model.entity_memory import EntityTable

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_MEND = "give a folder made by `kebiolm export`"


def load_model_folder(folder: Path) -> tuple[KeBioLMModel, PreTrainedTokenizerFast, EntityVocab]:
    """Load model, tokenizer and entity vocabulary.

    Raises:
        UserError: a file is missing or broken, or the files do not belong together.
    """
    if not folder.is_dir():
        raise UserError(folder, got="no such folder", expected="a trained model", mend=_MEND)
    config = _load_config(folder)
    vocabulary = EntityVocab.load(_existing(folder, ENTITY_VOCAB_FILE))
    if len(vocabulary) != config.num_entities:
        raise UserError(
            folder / ENTITY_VOCAB_FILE,
            got=f"{len(vocabulary)} rows",
            expected=f"{config.num_entities}, the rows of the model's entity table",
            mend="take the vocabulary that the model was trained with, or export it again",
        )
    tokenizer = load_tokenizer(folder)
    if len(tokenizer) > config.vocab_size:
        raise UserError(
            folder,
            got=f"a tokenizer of {len(tokenizer)} pieces",
            expected=f"at most {config.vocab_size}, the model's word embeddings",
            mend="take the tokenizer that the model was trained with, or export it again",
        )
    return _load_weights(folder, config), tokenizer, vocabulary


def load_index(path: Path, table: EntityTable) -> EntityIndex:
    """Load an entity index made by `kebiolm index`; its scores come from the table itself.

    Raises:
        UserError: faiss is not installed, a file is missing or broken, or the index is of another model.
    """
    return EntityIndex.load(path, table.vectors.detach(), first_row=table.num_hidden_rows)


def _load_config(folder: Path) -> KeBioLMConfig:
    path = _existing(folder, "config.json")
    try:
        # `transformers` says of some broken files only that the folder is not on the Hub.
        return KeBioLMConfig.from_pretrained(folder, local_files_only=True)
    except UserError:
        raise
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(
            path, got=f"an unreadable file ({error})", expected="a model's config.json", mend=_MEND
        ) from None


def _load_weights(folder: Path, config: KeBioLMConfig) -> KeBioLMModel:
    if not any((folder / name).is_file() for name in _WEIGHTS):
        raise UserError(folder / _WEIGHTS[0], got="no such file", expected="the model's weights", mend=_MEND)
    try:
        with quiet_transformers():
            model, report = KeBioLMModel.from_pretrained(
                folder, config=config, local_files_only=True, output_loading_info=True
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(folder, got=f"unreadable weights ({error})", expected="a trained model", mend=_MEND) from None
    if missing := sorted(report["missing_keys"]):
        shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise UserError(folder, got=f"weights without {shown}", expected="all of a KeBioLM", mend=_MEND)
    return model


def _existing(folder: Path, name: str) -> Path:
    if not (folder / name).is_file():
        raise UserError(folder / name, got="no such file", expected="part of a trained model", mend=_MEND)
    return folder / name
