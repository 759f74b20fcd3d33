"""The settings of a fine-tuning run: defaults are the paper's (section 4.3)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from kebiolm.errors import UserError
from kebiolm.finetune.tasks import NerTask, RelationTask, complete_task
from kebiolm.yaml_settings import load_settings


class _Section(BaseModel):
    """A group of settings; an unknown key is an error, never ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class OptimizationSection(_Section):
    """AdamW with linear warm-up and linear decay; weight decay, betas and clipping are not given in the paper."""

    epochs: int = Field(60, gt=0, description="passes over the train split; each ends with an evaluation on dev")
    batch_size: int = Field(16, gt=0, description="inputs for each optimizer step")
    learning_rates: tuple[Annotated[float, Field(gt=0)], ...] = Field((1e-5, 3e-5, 5e-5), min_length=1)
    warmup_share: float = Field(0.1, ge=0, lt=1, description="share of the steps in which the learning rate rises")
    weight_decay: float = Field(0.01, ge=0)
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.999, ge=0, lt=1)
    max_grad_norm: float = Field(1.0, gt=0)


class FineTuneConfig(_Section):
    """Everything that a fine-tuning run, or a sweep over learning rates and seeds, depends on."""

    task: NerTask | RelationTask = Field(
        discriminator="kind", description="name of a BLURB set, changes to one, or a description of another set"
    )
    data: Path = Field(description="folder with the task's files")
    model: Path = Field(description="folder of an exported KeBioLM or of any BERT in the Hugging Face layout")
    output: Path
    optimization: OptimizationSection = OptimizationSection()
    seeds: tuple[int, ...] = Field((1, 2, 3, 4, 5), min_length=1, description="one run each; the mean is reported")

    @field_validator("task", mode="before")
    @classmethod
    def _complete_task(cls, task: Any) -> Any:
        try:
            return complete_task(task)
        except UserError as error:
            # Pydantic says what was got and where, once.
            raise ValueError(f"expected {error.expected}; {error.mend}") from None


def load_config(path: Path, overrides: Sequence[str] = ()) -> FineTuneConfig:
    """Read a YAML recipe with its bases, apply `section.key=value` overrides and check everything.

    Raises:
        UserError: as `load_settings`.
    """
    return load_settings(path, overrides, FineTuneConfig, examples="launch/configs/finetune/")
