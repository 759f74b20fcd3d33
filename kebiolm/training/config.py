"""The settings of a pretraining run: a YAML file plus `key=value` overrides, checked as a whole before the start."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from kebiolm.tracking.tracking_uri import choose_tracking_uri
from kebiolm.yaml_settings import flatten, load_settings


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
    fused: bool = Field(True, description="AdamW in one pass over the memory; false: torch's plain loop, much slower")
    activation_checkpointing: bool = Field(
        False, description="keep only each layer's input for the backward pass and compute the rest again"
    )


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
    tracking_uri: str | None = Field(
        "sqlite:///mlflow.db",
        description="of MLflow; the environment's MLFLOW_TRACKING_URI wins over it; null: figures stay in OUTPUT",
    )
    experiment: str = "kebiolm-pretraining"
    run_name: str | None = None
    system_metrics_seconds: float = Field(
        30.0, ge=0, description="sample the load of the first machine every so many seconds (MLflow on); 0: never"
    )


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
        return dict(flatten(self.model_dump(mode="json")))


def load_config(path: Path, overrides: Sequence[str]) -> PretrainConfig:
    """Read a YAML recipe with its bases, apply `section.key=value` overrides and check everything.

    Raises:
        UserError: a file cannot be read, settings are unknown, missing or out of range (see `load_settings`), or
            MLflow's address has a password in it.
    """
    config = load_settings(path, overrides, PretrainConfig, examples="launch/configs/pretrain/")
    # Not by a validator: the message of one repeats the value.
    choose_tracking_uri(config.tracking.tracking_uri)
    return config
