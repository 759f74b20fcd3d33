"""The settings of a pretraining run: a YAML file plus `key=value` overrides, checked as a whole before the start."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from kebiolm.errors import UserError


class _Section(BaseModel):
    """A group of settings; an unknown key is an error, never ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelSection(_Section):
    """Sizes of the network (paper section 4.1); taken from the checkpoint where `init_from` is given."""

    init_from: Path | None = Field(None, description="folder of a BERT checkpoint to start from (paper: PubMedBERT)")
    hidden_size: int = Field(768, gt=0)
    num_hidden_layers: int = Field(12, gt=0)
    num_context_layers: int = Field(8, ge=0, description="layers below the entity memory (equation 1)")
    num_attention_heads: int = Field(12, gt=0)
    intermediate_size: int = Field(3072, gt=0)
    hidden_dropout_prob: float = Field(0.1, ge=0, lt=1)
    attention_probs_dropout_prob: float = Field(0.1, ge=0, lt=1)
    entity_size: int = Field(100, gt=0, description="width of an entity vector")
    max_candidate_entities: int = Field(
        100, gt=0, description="k nearest entities that a mention attends to (equation 3)"
    )
    fusion_layer_norm: bool = Field(True, description="LayerNorm after the fusion; false is equation 4 to the letter")

    @model_validator(mode="after")
    def _check(self) -> ModelSection:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads")
        if self.num_context_layers > self.num_hidden_layers:
            raise ValueError(f"num_context_layers {self.num_context_layers} is above num_hidden_layers")
        return self


class EntitySection(_Section):
    """The entity table's start."""

    init_from: Path | None = Field(None, description="file made by `kebiolm transe`; none: random start")
    freeze: bool = Field(False, description="keep the entity vectors as they start (the paper's +frz)")


class MaskingSection(_Section):
    """Masking of the language-model task (paper section 3.2: 12% [MASK], 1.5% random, 1.5% kept)."""

    probability: float = Field(0.15, gt=0, lt=1, description="share of the tokens to predict")
    whole_entity: bool = Field(True, description="false: whole words only (the paper's -wem)")


class OptimizationSection(_Section):
    """AdamW and its schedule (paper section 4.1; weight decay, betas and clipping are not given there)."""

    global_batch_size: int = Field(512, gt=0, description="sequences per optimizer step over all processes")
    micro_batch_size: int = Field(8, gt=0, description="sequences per forward pass of one process")
    epochs: float = Field(2.0, gt=0, description="passes over the training sequences")
    max_steps: int | None = Field(None, gt=0, description="number of optimizer steps in place of epochs")
    learning_rate: float = Field(5e-5, gt=0)
    warmup_steps: int = Field(10_000, ge=0)
    weight_decay: float = Field(0.01, ge=0)
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.999, ge=0, lt=1)
    max_grad_norm: float = Field(1.0, gt=0)


class StabilitySection(_Section):
    """What follows a loss or gradient that is not finite; the weights are never updated with one."""

    on_nonfinite: Literal["stop", "skip"] = Field("stop", description="end the run, or go on without the step")
    max_skipped_in_a_row: int = Field(20, gt=0, description="end the run in any case, fp16 overflows included")


class EvaluationSection(_Section):
    """Evaluation on the held-out shards."""

    every_steps: int = Field(1000, gt=0)
    micro_batch_size: int = Field(16, gt=0)
    max_sequences: int | None = Field(None, gt=0, description="evaluate on the first so many only; none: all")


class CheckpointSection(_Section):
    """When to save, and how many to keep."""

    every_steps: int = Field(1000, gt=0)
    keep: int = Field(3, gt=0, description="newest complete checkpoints that stay on disk")


class TrackingSection(_Section):
    """Where figures go besides OUTPUT/metrics.jsonl."""

    every_steps: int = Field(10, gt=0, description="log the training losses every so many steps")
    tracking_uri: str = Field("sqlite:///mlflow.db", description="the environment's MLFLOW_TRACKING_URI wins over it")
    experiment: str = "kebiolm-pretraining"
    run_name: str | None = None


class PretrainConfig(_Section):
    """All settings of one pretraining run."""

    shards: Path = Field(description="folder made by `kebiolm pack`")
    output: Path = Field(description="folder of this run: checkpoints, metrics, summary")
    deepspeed: Path = Field(description="DeepSpeed JSON: ZeRO and precision only")
    seed: int = Field(0, ge=0)
    model: ModelSection = ModelSection()
    entities: EntitySection = EntitySection()
    masking: MaskingSection = MaskingSection()
    optimization: OptimizationSection = OptimizationSection()
    stability: StabilitySection = StabilitySection()
    evaluation: EvaluationSection = EvaluationSection()
    checkpoints: CheckpointSection = CheckpointSection()
    tracking: TrackingSection = TrackingSection()

    def flat(self) -> dict[str, Any]:
        """Every setting as {"section.key": value}, as MLflow parameters and resume checks want them."""
        return dict(_flatten(self.model_dump(mode="json")))


def load_config(path: Path, overrides: list[str]) -> PretrainConfig:
    """Read a YAML recipe, apply `section.key=value` overrides and check everything.

    Raises:
        UserError: the file cannot be read, or settings are unknown, missing or out of range; all problems are named
            in the one message.
    """
    settings = _read_yaml(path)
    for override in overrides:
        _apply_override(settings, override)
    try:
        return PretrainConfig.model_validate(settings)
    except ValidationError as error:
        problems = "; ".join(_explain(problem) for problem in error.errors())
        raise UserError(
            path, got=problems, expected="settings as in launch/configs/pretrain/", mend="correct the keys named"
        ) from None


def _read_yaml(path: Path) -> dict[str, Any]:
    mend = "give a recipe such as launch/configs/pretrain/debug.yaml"
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(path, got="no such file", expected="a YAML recipe", mend=mend) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(path, got=f"a file that is not YAML ({error})", expected="a YAML recipe", mend=mend) from None
    if not isinstance(settings, dict):
        raise UserError(path, got=type(settings).__name__, expected="a mapping of settings", mend=mend)
    return settings


def _apply_override(settings: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise UserError("override", got=override, expected="section.key=value", mend="write it with an equals sign")
    *sections, name = key.split(".")
    for section in sections:
        settings = settings.setdefault(section, {})
        if not isinstance(settings, dict):
            raise UserError("override", got=override, expected="a section before the dot", mend="check the key")
    try:
        settings[name] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError("override", got=override, expected="a YAML value", mend="quote the value") from None


def _explain(problem: Any) -> str:
    key = ".".join(str(part) for part in problem["loc"]) or "settings"
    if problem["type"] == "extra_forbidden":
        return f"unknown key {key}{_suggest(problem['loc'])}"
    if problem["type"] == "missing":
        return f"missing key {key}"
    return f"{key} = {problem['input']!r} ({problem['msg'].removeprefix('Value error, ')})"


def _suggest(location: tuple[Any, ...]) -> str:
    section: type[BaseModel] = PretrainConfig
    for part in location[:-1]:
        section = section.model_fields[part].annotation  # type: ignore[assignment]
    close = difflib.get_close_matches(str(location[-1]), section.model_fields, n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def _flatten(value: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs = []
    for key, item in value.items():
        pairs += _flatten(item, f"{prefix}{key}.") if isinstance(item, dict) else [(f"{prefix}{key}", item)]
    return pairs
