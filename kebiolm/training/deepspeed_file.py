"""A DeepSpeed JSON of a run: ZeRO and precision, and nothing that the recipe says. Read without DeepSpeed or torch."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any

from kebiolm.errors import UserError

# Written by the trainer from the run's settings, so that no number has two sources.
_KEYS_OF_THE_TRAINER = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
    "optimizer",
    "scheduler",
)
# DeepSpeed itself passes over a key that it does not know: a misspelt "bf16" would train in fp32 without a word.
_KNOWN_KEYS = (
    "zero_optimization",
    "zero_force_ds_cpu_optimizer",
    "zero_allow_untested_optimizer",
    "fp16",
    "bf16",
    "data_types",
    "communication_data_type",
    "prescale_gradients",
    "gradient_predivide_factor",
    "aio",
    "checkpoint",
    "comms_logger",
    "dump_state",
    "flops_profiler",
    "memory_breakdown",
    "wall_clock_breakdown",
)
_MEND = "give one of deepspeed_configs/*.json"


def read_deepspeed_file(path: Path) -> dict[str, Any]:
    """The settings in a DeepSpeed JSON; what stands inside its sections is checked by DeepSpeed.

    Raises:
        UserError: the file is missing, is not JSON, has a key that is unknown or belongs into the recipe.
    """
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        mend = f"{_MEND}; such paths count from the folder you start in ({Path.cwd()})"
        raise UserError(path, got="no such file", expected="a DeepSpeed JSON", mend=mend) from None
    except (OSError, ValueError) as error:
        raise UserError(
            path, got=f"a file that is not JSON ({error})", expected="a DeepSpeed JSON", mend=_MEND
        ) from None
    sections = ("fp16", "bf16", "zero_optimization", "data_types")
    if not isinstance(settings, dict) or not all(isinstance(settings.get(key, {}), dict) for key in sections):
        raise UserError(path, got="another structure", expected="a mapping of DeepSpeed's settings", mend=_MEND)
    if doubled := sorted(set(settings) & set(_KEYS_OF_THE_TRAINER)):
        raise UserError(
            path, got=f"{', '.join(doubled)}", expected="ZeRO and precision only", mend="set these in the YAML recipe"
        )
    if unknown := sorted(set(settings) - set(_KNOWN_KEYS)):
        close = difflib.get_close_matches(unknown[0], _KNOWN_KEYS, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        known = ", ".join(_KNOWN_KEYS)
        raise UserError(path, got=", ".join(unknown) + hint, expected=f"some of {known}", mend="correct the key")
    return settings
