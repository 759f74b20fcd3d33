"""Start a pretraining run: `kebiolm pretrain CONFIG.yaml [key=value ...]`, or on several processes

deepspeed --num_gpus N --module kebiolm.training.pretrain CONFIG.yaml [key=value ...]

With several hosts launch/pretrain.sh and launch/pretrain.slurm start this; the former compares the hosts first.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist

from kebiolm.console import console, error_console, exit_on_user_error, progress, say_user_error
from kebiolm.data.shard_format import PackedShards
from kebiolm.errors import UserError
from kebiolm.files import sha256_of_file, sha256_of_json
from kebiolm.model.from_bert import weight_files
from kebiolm.tracking.metric_log import MetricLog
from kebiolm.tracking.mlflow_sender import MlflowSender, NoSender
from kebiolm.tracking.run_description import FAILED, FINISHED, KILLED
from kebiolm.tracking.summary import print_summary
from kebiolm.training.assemble import make_loader, make_trainer
from kebiolm.training.config import PretrainConfig, load_config
from kebiolm.training.deepspeed_engine import init_distributed, leave_distributed, load_deepspeed_settings
from kebiolm.training.distributed import decide_on_first_process, run_on_first_process
from kebiolm.training.leave_together import first_process_leaves_first
from kebiolm.training.lost_contact import exit_on_lost_contact
from kebiolm.training.report.write import write_report
from kebiolm.training.run_folder import claim_run_folder
from kebiolm.training.schedule import WARMUP_LIMIT
from kebiolm.training.stop_request import EXIT_STATUS, StopRequest
from kebiolm.training.track_run import count_nodes, start_tracking
from kebiolm.training.trainer import Trainer


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the DeepSpeed launcher; a user's mistake is one line from the first process of each node."""
    parser = argparse.ArgumentParser(description="Pretrain KeBioLM.")
    parser.add_argument("config", type=Path, help="YAML recipe")
    parser.add_argument("overrides", nargs="*", help="section.key=value")
    parser.add_argument("--local_rank", type=int, default=0, help="given by the launcher")
    parsed = parser.parse_args(arguments)
    with exit_on_user_error(say=os.environ.get("LOCAL_RANK", "0") == "0"), exit_on_lost_contact():
        is_finished = pretrain(load_config(parsed.config, parsed.overrides))
        leave_distributed()
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
    rank, _ = init_distributed()
    nodes = count_nodes()
    # Before anything that takes long: a signal that comes while the job is set up ends it as a later one would.
    with StopRequest().listening() as stop_request:
        inputs = decide_on_first_process(partial(_inputs, config, shards, settings))
        loader = make_loader(config, shards)
        lock = run_on_first_process(partial(claim_run_folder, config, inputs))
        with lock or nullcontext():
            if lock is not None:
                stop_request.watch(config.output, lock.job.name)
            metric_log = run_on_first_process(partial(MetricLog, config.output))
            if rank == 0:
                _warn_about_short_runs(config, loader.steps_total)
            trainer = make_trainer(
                config, shards, settings, loader=loader, metric_log=metric_log, stop_request=stop_request
            )
            sender = run_on_first_process(
                partial(start_tracking, config, shards, settings, inputs, steps_total=loader.steps_total, nodes=nodes)
            )
            with first_process_leaves_first():
                is_finished = _fit_and_track(trainer, sender) if sender else trainer.fit(lambda *_, **__: None)
            # A launcher ends all processes as soon as one is gone; the first one may still be talking to MLflow.
            dist.barrier()
            stop_request.forget()
    return is_finished


def _fit_and_track(trainer: Trainer, sender: MlflowSender | NoSender) -> bool:
    """Train on rank 0, which shows progress and tells MLflow's sender how the run ended."""
    config, total = trainer.config, trainer.loader.steps_total
    status = FAILED
    try:
        _say_start(trainer)
        with _progress_from(trainer.steps_done, total) as advance:

            def advance_and_look(steps: int, note: str) -> None:
                advance(steps, note=note)
                sender.look_after()

            is_finished = trainer.fit(advance_and_look)
        status = FINISHED if is_finished else KILLED
    except KeyboardInterrupt:
        status = KILLED
        raise
    except UserError as error:
        # Now: MLflow may take its time, and somebody may end the job meanwhile.
        say_user_error(error)
        raise
    finally:
        try:
            trainer.metric_log.close()
            write_report(config.output)
        finally:
            sender.finish(status)
    if is_finished:
        print_summary(config.output)
    else:
        done = trainer.steps_done
        saved = f"what was done until step {done} of {total} is saved:" if done else "before the first step:"
        error_console.print(
            f"[yellow]stopped by {trainer.stop_request.reason or 'another process'}; {saved}[/] "
            f"start the same command again to go on (status {EXIT_STATUS})"
        )
    return is_finished


@contextmanager
def _progress_from(steps_done: int, total: int) -> Iterator[Callable[..., None]]:
    if steps_done == total:
        yield lambda count=1, note="": None
        return
    with progress("pretraining", total, "steps") as advance:
        advance(steps_done)
        yield advance


def _say_start(trainer: Trainer) -> None:
    """One line for the log: what is trained how, and from where."""
    config, engine, loader = trainer.config, trainer.train_step.engine, trainer.loader
    # Under ZeRO-3 a parameter's own size is that of this process's share.
    parameters = sum(getattr(weight, "ds_numel", weight.numel()) for weight in engine.module.parameters())
    precision = "fp16" if engine.fp16_enabled() else "bf16" if engine.bfloat16_enabled() else "fp32"
    batch = config.optimization
    console.print(
        f"{config.output}: {loader.steps_total} steps of {batch.global_batch_size} sequences ({dist.get_world_size()} "
        f"processes x {batch.micro_batch_size} x {loader.gradient_accumulation_steps} accumulated), "
        f"{parameters / 1e6:.1f} million parameters, {precision}, ZeRO-{engine.zero_optimization_stage()}",
        soft_wrap=True,
    )
    if trainer.steps_done == loader.steps_total:
        console.print(f"already finished: {trainer.steps_done} of {loader.steps_total} steps; nothing to train")
    elif trainer.steps_done:
        console.print(f"resuming after step {trainer.steps_done} of {loader.steps_total}")


def _inputs(config: PretrainConfig, shards: PackedShards, settings: dict[str, Any]) -> dict[str, Any]:
    """What lies at the paths of the recipe, for telling whether a folder's run is the same one."""
    starts = {}
    if config.entities.init_from:
        starts["entities.init_from"] = [config.entities.init_from]
    if config.model.init_from:
        starts["model.init_from"] = [config.model.init_from / "config.json", *weight_files(config.model.init_from)]
    for key, paths in starts.items():
        for path in paths:
            if not path.is_file():
                raise UserError(path, got="no such file", expected=f"what {key} names", mend=f"correct {key}")
    # Of the files' contents in order, not of their names: they may be moved.
    hashes = {f"{key}.sha256": sha256_of_json(list(map(sha256_of_file, paths))) for key, paths in starts.items()}
    return {"shards.fingerprint": shards.fingerprint, "deepspeed.settings": settings} | hashes


def _warn_about_short_runs(config: PretrainConfig, steps_total: int) -> None:
    warmup = config.optimization.warmup_steps
    if warmup > WARMUP_LIMIT * steps_total:
        error_console.print(
            f"[yellow]warm-up is {warmup} of {steps_total} steps ({warmup / steps_total:.0%}):[/] the learning rate "
            "reaches its peak late or never; lower optimization.warmup_steps for a run this short"
        )


if __name__ == "__main__":
    main()
