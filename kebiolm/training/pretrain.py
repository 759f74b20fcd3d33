"""Start a pretraining run: `kebiolm pretrain CONFIG.yaml [key=value ...]`, or on several processes

deepspeed [--hostfile FILE] --module kebiolm.training.pretrain CONFIG.yaml [key=value ...]
"""

from __future__ import annotations

import argparse
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist

from kebiolm.console import console, error_console, exit_on_user_error, progress
from kebiolm.data.entity_vocab import NIL_ROW
from kebiolm.data.shard_format import PackedShards, ShardSplit
from kebiolm.errors import UserError
from kebiolm.files import sha256_of_file
from kebiolm.training.assemble import make_loader, make_trainer
from kebiolm.training.config import PretrainConfig, load_config
from kebiolm.training.deepspeed_engine import init_distributed, load_deepspeed_settings
from kebiolm.training.distributed import run_on_first_process
from kebiolm.training.run_folder import CONFIG_FILE, claim_run_folder
from kebiolm.training.stop_request import EXIT_STATUS, StopRequest
from kebiolm.training.summary import BASELINE, print_summary
from kebiolm.training.tracking import MetricLog, MlflowSender, describe_run
from kebiolm.training.trainer import Trainer


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the DeepSpeed launcher; a user's mistake is one line from the first process of each node."""
    parser = argparse.ArgumentParser(description="Pretrain KeBioLM.")
    parser.add_argument("config", type=Path, help="YAML recipe")
    parser.add_argument("overrides", nargs="*", help="section.key=value")
    parser.add_argument("--local_rank", type=int, default=0, help="given by the launcher")
    parsed = parser.parse_args(arguments)
    with exit_on_user_error(say=os.environ.get("LOCAL_RANK", "0") == "0"):
        is_finished = pretrain(load_config(parsed.config, parsed.overrides))
    if not is_finished:
        sys.exit(EXIT_STATUS)


def pretrain(config: PretrainConfig) -> bool:
    """Run or resume one pretraining run.

    Returns:
        Whether it came to its end; false after a request to stop, with a checkpoint at the place where it stopped.

    Raises:
        UserError: settings, shards or checkpoints do not fit together, or the run diverged.
    """
    settings = load_deepspeed_settings(config.deepspeed)
    shards = PackedShards.load(config.shards)
    rank, world_size = init_distributed()
    inputs = _inputs(config, shards, settings)
    loader = make_loader(config, shards)
    run_on_first_process(partial(claim_run_folder, config, inputs))
    metric_log = run_on_first_process(partial(MetricLog, config.output))
    if rank == 0:
        _warn_about_short_runs(config, loader.steps_total)

    with StopRequest(config.output if rank == 0 else None).listening() as stop_request:
        stop_request.forget()
        trainer = make_trainer(
            config, shards, settings, loader=loader, metric_log=metric_log, stop_request=stop_request
        )
        if metric_log is None:
            is_finished = trainer.fit(lambda *_, **__: None)
        else:
            parameters = config.flat() | {"run.world_size": world_size, "run.steps_total": loader.steps_total} | inputs
            parameters[BASELINE] = _most_frequent_entity_share(shards.heldout)
            is_finished = _fit_and_track(trainer, parameters)
        # A launcher ends all processes as soon as one is gone; the first one may still be talking to MLflow.
        dist.barrier()
        stop_request.forget()
    return is_finished


def _fit_and_track(trainer: Trainer, parameters: dict[str, Any]) -> bool:
    """Train on rank 0, which shows progress and talks to MLflow."""
    config, total = trainer.config, trainer.loader.steps_total
    sender = _start_sender(config, parameters)
    status = "FAILED"
    try:
        if trainer.steps_done:
            console.print(f"resuming after step {trainer.steps_done} of {total}")
        with progress("pretraining", total, "steps") as advance:
            advance(trainer.steps_done)
            is_finished = trainer.fit(advance)
        status = "FINISHED" if is_finished else "KILLED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        trainer.metric_log.close()
        sender.finish(status)
    if is_finished:
        print_summary(config.output)
    else:
        error_console.print(
            f"[yellow]stopped by {trainer.stop_request.reason or 'another process'} after step {trainer.steps_done} of "
            f"{total}, which is saved:[/] start the same command again to go on (status {EXIT_STATUS})"
        )
    return is_finished


def _inputs(config: PretrainConfig, shards: PackedShards, settings: dict[str, Any]) -> dict[str, Any]:
    """What lies at the paths of the recipe, for telling whether a folder's run is the same one."""
    starts = {"entities.init_from": config.entities.init_from}
    if config.model.init_from:
        starts["model.init_from"] = config.model.init_from / "config.json"
    for key, path in starts.items():
        if path and not path.is_file():
            raise UserError(path, got="no such file", expected=f"what {key} names", mend=f"correct {key}")
    hashes = {f"{key}.sha256": sha256_of_file(path) for key, path in starts.items() if path}
    return {"shards.fingerprint": shards.fingerprint, "deepspeed.settings": settings} | hashes


def _warn_about_short_runs(config: PretrainConfig, steps_total: int) -> None:
    warmup = config.optimization.warmup_steps
    if warmup > 0.3 * steps_total:
        error_console.print(
            f"[yellow]warm-up is {warmup} of {steps_total} steps ({warmup / steps_total:.0%}):[/] the learning rate "
            "reaches its peak late or never; lower optimization.warmup_steps for a run this short"
        )


def _start_sender(config: PretrainConfig, parameters: dict[str, Any]) -> MlflowSender:
    tracking = config.tracking
    describe_run(
        config.output,
        tracking_uri=tracking.tracking_uri,
        experiment=tracking.experiment,
        run_name=tracking.run_name or config.output.name,
        parameters=parameters,
        artifacts=[config.output / CONFIG_FILE],
    )
    sender = MlflowSender(config.output)
    sender.start()
    return sender


def _most_frequent_entity_share(split: ShardSplit) -> float:
    """What a linker would reach that always answers with the same, best entity: the figure to beat."""
    rows = np.concatenate([np.zeros(0, dtype=np.int32), *(sequence.mention_entities for sequence in split)])
    linked = rows[rows != NIL_ROW]
    return float(np.unique(linked, return_counts=True)[1].max() / len(linked)) if len(linked) else 0.0


if __name__ == "__main__":
    main()
