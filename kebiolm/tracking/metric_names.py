"""Names of figures at MLflow, whose page makes one section for each word before the slash, sorted by name."""

from __future__ import annotations

TRAIN, HELDOUT, SYSTEM = "train", "heldout", "system"
"""Kinds of records that have sections of their own; a record of another kind is one section."""

_LOSSES = {"loss": "total", "loss_mlm": "mlm", "loss_detection": "detection", "loss_linking": "linking"}
_SPEED = ("tokens_per_second", "step_seconds", "peak_memory_mib")


def mlflow_name(kind: str, name: str) -> str:
    """The key of a figure at MLflow.

    Args:
        kind: of the record, such as "train".
        name: of the figure in it, such as "loss_mlm".

    Returns:
        Such as "loss_train/mlm", "accuracy_heldout/detection_f1", "speed/tokens_per_second" or
        "system/cpu_utilization_percentage" (a name that MLflow shows on its page of system metrics).
    """
    if kind not in (TRAIN, HELDOUT):
        return f"{kind}/{name}"
    if name in _LOSSES:
        return f"loss_{kind}/{_LOSSES[name]}"
    if kind == HELDOUT:
        return f"accuracy_heldout/{name}"
    return f"speed/{name}" if name in _SPEED else f"optimization/{name}"
