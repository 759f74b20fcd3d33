"""What MLflow and the run's page are told of a pretraining run."""

from __future__ import annotations

import platform
import socket
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from kebiolm.data.entity_vocab import NIL_ROW, NUM_SPECIAL_ROWS
from kebiolm.data.shard_format import PackedShards, ShardSplit
from kebiolm.tracking.environment import describe_environment
from kebiolm.tracking.mlflow_sender import MlflowSender, NoSender
from kebiolm.tracking.run_description import RunDescription, describe_run
from kebiolm.tracking.summary import BASELINE
from kebiolm.training.config import PretrainConfig
from kebiolm.training.report.write import REPORT_FILES
from kebiolm.training.run_folder import CONFIG_FILE


def start_tracking(
    config: PretrainConfig,
    shards: PackedShards,
    settings: dict[str, Any],
    inputs: dict[str, Any],
    *,
    steps_total: int,
    nodes: int,
) -> MlflowSender | NoSender:
    """Write the run's description and start the sender, if MLflow is on; on global rank 0 only.

    Args:
        config: the run's settings.
        shards: what it trains on.
        settings: DeepSpeed's.
        inputs: fingerprints of what lies at the recipe's paths.
        steps_total: optimizer steps of the whole run.
        nodes: machines of the run, as `count_nodes` says.

    Raises:
        UserError: MLFLOW_TRACKING_URI holds a password, or the folder's description of the run is broken.
    """
    parameters = config.flat() | inputs | _describe_shards(shards) | _describe_deepspeed(settings)
    parameters |= describe_environment(device=_device_name(), world_size=dist.get_world_size(), nodes=nodes)
    parameters["run.steps_total"] = steps_total
    description = RunDescription(
        tracking_uri=config.tracking.tracking_uri,
        experiment=config.tracking.experiment,
        run_name=config.tracking.run_name or config.output.name,
        parameters=parameters,
        artifacts=(CONFIG_FILE, *REPORT_FILES),
        dataset={"name": shards.path.name, "digest": shards.fingerprint, "source": str(shards.path.resolve())},
    )
    start = describe_run(config.output, description)
    if description.tracking_uri is None:
        return NoSender(config.output)
    return MlflowSender(config.output, start, system_metrics_seconds=config.tracking.system_metrics_seconds)


def count_nodes() -> int:
    """Machines that the processes run on; all processes must call this."""
    names: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(names, socket.gethostname())
    return len(set(names))


def _describe_shards(shards: PackedShards) -> dict[str, Any]:
    counts = shards.manifest["counts"]
    return {
        "shards.train_sequences": len(shards.train),
        "shards.heldout_sequences": len(shards.heldout),
        "shards.train_pieces": counts["train"].get("pieces"),
        "shards.entities": len(shards.entity_vocab) - NUM_SPECIAL_ROWS,
        "shards.entity_vocab_sha256": shards.entity_vocab.sha256,
        BASELINE: _most_frequent_entity_share(shards.heldout),
    }


def _describe_deepspeed(settings: dict[str, Any]) -> dict[str, Any]:
    zero = settings.get("zero_optimization", {})
    precisions = [name for name in ("fp16", "bf16") if settings.get(name, {}).get("enabled")]
    return {
        "deepspeed.zero_stage": zero.get("stage", 0),
        "deepspeed.precision": precisions[0] if precisions else "fp32",
        "deepspeed.offload": zero.get("offload_optimizer", {}).get("device", "none"),
    }


def _device_name() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU {platform.machine()}"


def _most_frequent_entity_share(split: ShardSplit) -> float:
    """What a linker would reach that always answers with the same, best entity: the figure to beat."""
    rows = np.concatenate([np.zeros(0, dtype=np.int32), *(sequence.mention_entities for sequence in split)])
    linked = rows[rows != NIL_ROW]
    return float(np.unique(linked, return_counts=True)[1].max() / len(linked)) if len(linked) else 0.0
