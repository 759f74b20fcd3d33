"""`kebiolm export`: a training checkpoint becomes one folder that `from_pretrained` loads.

OUT/
    config.json, model.safetensors    a `KeBioLMForPreTraining`, names of the weights as in training
    tokenizer.json, ...               the tokenizer of the shards
    entity_vocab.tsv                  which row of the entity table is which concept
    README.md                         model card
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from rich.markup import escape
from torch import Tensor

from kebiolm.console import console, error_console, quiet_transformers
from kebiolm.data.entity_vocab import FILE_NAME as ENTITY_VOCAB_FILE
from kebiolm.data.entity_vocab import EntityVocab
from kebiolm.data.tokenizer import load_tokenizer
from kebiolm.errors import UserError
from kebiolm.export.consolidate import consolidate
from kebiolm.export.model_card import FILE_NAME as MODEL_CARD_FILE
from kebiolm.export.model_card import make_model_card
from kebiolm.files import atomic_folder
from kebiolm.model import KeBioLMConfig, KeBioLMForPreTraining
from kebiolm.tracking.delivery import log_artifact
from kebiolm.training.checkpoint import MARKER, MODEL_FOLDER, find_checkpoint

TRAINING_FILE = "training.json"
WEIGHTS_FILE = "model.safetensors"
ENTITY_TABLE = "bert.entity_linker.entity_embeddings.weight"
_MEND = "use another checkpoint of the run"


def export_checkpoint(path: Path, out: Path, *, overwrite: bool = False) -> Path:
    """Write the model of a checkpoint as a Hugging Face folder, read it back, and attach its card to the MLflow run.

    Args:
        path: a checkpoint folder, or the OUTPUT folder of a run, whose newest complete checkpoint is taken.
        out: folder to write.
        overwrite: replace an earlier export at `out`.

    Returns:
        `out`.

    Raises:
        UserError: there is no complete checkpoint, its weights do not fit its config.json, or `out` may not be
            written.
    """
    checkpoint = find_checkpoint(path)
    files, training = checkpoint / MODEL_FOLDER, _read_training(checkpoint)
    with atomic_folder(out, overwrite=overwrite, is_ours=_is_exported, inputs=[checkpoint]) as folder:
        config, state = _without_padding(KeBioLMConfig.from_pretrained(files), consolidate(checkpoint))
        model = load_weights(config, state, where=checkpoint)
        with quiet_transformers():
            model.save_pretrained(folder)
        # transformers writes it readable for its owner alone.
        (folder / WEIGHTS_FILE).chmod(0o644)
        _copy_texts(files, folder)
        vocabulary = _check_texts(folder, model.config)
        card = make_model_card(model.config, vocabulary, training, step=_step(checkpoint), title=out.name)
        (folder / MODEL_CARD_FILE).write_text(card, encoding="utf-8")
        check_reload(folder, model.state_dict())
    _attach_card(checkpoint.parent.parent, out / MODEL_CARD_FILE)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    console.print(f"checkpoint    {checkpoint} (step {_step(checkpoint)})")
    console.print(f"model         {out} ({parameters:,} parameters, {len(vocabulary):,} rows in the entity table)")
    console.print(f'try it        kebiolm link {out} "your text"')
    return out


def _without_padding(config: KeBioLMConfig, state: dict[str, Tensor]) -> tuple[KeBioLMConfig, dict[str, Tensor]]:
    """Cut off the zeros behind the entity vectors, which only training wants."""
    if ENTITY_TABLE in state and state[ENTITY_TABLE].shape[1] == config.entity_columns:
        state = state | {ENTITY_TABLE: state[ENTITY_TABLE][:, : config.entity_size].contiguous()}
    config.entity_row_size = None
    return config, state


def load_weights(config: KeBioLMConfig, state: dict[str, Tensor], *, where: object) -> KeBioLMForPreTraining:
    """Make a model that holds exactly the weights of `state`; a tied weight may be there under one name only.

    Raises:
        UserError: a weight is missing, is left over, or has another shape; `where` is named.
    """
    model = KeBioLMForPreTraining(config)
    expected = model.state_dict()
    tied = {name: other for name, other in model.all_tied_weights_keys.items() if name not in state}
    state = state | {name: state[other] for name, other in tied.items() if other in state}
    problems = [f"no {name}" for name in sorted(expected.keys() - state.keys())]
    problems += [f"unknown {name}" for name in sorted(state.keys() - expected.keys())]
    problems += [
        f"{name} {tuple(state[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in sorted(expected.keys() & state.keys())
        if state[name].shape != expected[name].shape
    ]
    if problems:
        shown = "; ".join(problems[:5]) + (f"; {len(problems) - 5} more" if len(problems) > 5 else "")
        raise UserError(where, got=shown, expected="the weights that its config.json describes", mend=_MEND)
    model.load_state_dict(state)
    return model.eval()


def check_reload(folder: Path, state: dict[str, Tensor]) -> None:
    """Load an exported folder the way a user would and compare every tensor.

    Raises:
        UserError: a weight is missing, is left over, or differs.
    """
    with quiet_transformers():
        reloaded, report = KeBioLMForPreTraining.from_pretrained(folder, output_loading_info=True)
    found = reloaded.state_dict()
    problems = [
        f"{kind.replace('_', ' ')}: {', '.join(sorted(map(str, names)))}" for kind, names in report.items() if names
    ]
    problems += [f"{name} differs" for name in state if name not in found or not torch.equal(state[name], found[name])]
    if problems:
        raise UserError(
            folder / WEIGHTS_FILE, got="; ".join(problems[:5]), expected="the weights that were written", mend=_MEND
        )


def _is_exported(folder: Path) -> bool:
    """Whether this command made a folder; the folder has no manifest, because other tools read it as it stands."""
    return all((folder / name).is_file() for name in ("config.json", WEIGHTS_FILE, ENTITY_VOCAB_FILE))


def _read_training(checkpoint: Path) -> dict[str, Any]:
    path = checkpoint / MODEL_FOLDER / TRAINING_FILE
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(path, got=error, expected="the settings and figures of the run", mend=_MEND) from None


def _step(checkpoint: Path) -> int:
    return int(json.loads((checkpoint / MARKER).read_text(encoding="utf-8"))["step"])


def _copy_texts(files: Path, folder: Path) -> None:
    """Tokenizer and vocabulary; config.json is there already, as the model wrote it."""
    for file in sorted(files.iterdir()):
        if file.name != TRAINING_FILE and not (folder / file.name).exists():
            shutil.copyfile(file, folder / file.name)


def _check_texts(folder: Path, config: KeBioLMConfig) -> EntityVocab:
    """Tokenizer and vocabulary must load and be as large as the model's tables; returns the vocabulary."""
    vocabulary = EntityVocab.load(folder / ENTITY_VOCAB_FILE)
    sizes = (
        ("rows in the entity vocabulary", len(vocabulary), config.num_entities),
        ("pieces in the tokenizer", len(load_tokenizer(folder)), config.vocab_size),
    )
    for what, size, expected in sizes:
        if size != expected:
            raise UserError(folder, got=f"{size} {what}", expected=f"{expected}, as in config.json", mend=_MEND)
    return vocabulary


def _attach_card(output: Path, card: Path) -> None:
    """Attach the model card to the run's MLflow run; an export is good without it."""
    try:
        log_artifact(output, card)
    except Exception as error:  # MLflow raises many kinds
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        error_console.print(f"[yellow]model card not attached to the MLflow run:[/] {escape(reason)}")
