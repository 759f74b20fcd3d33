"""The parts of a pretraining run, put together: loader, model, engine, checkpoints, loop."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.markup import escape

from kebiolm.console import as_user_error, error_console
from kebiolm.data.collator import PretrainingCollator
from kebiolm.data.entity_vocab import FILE_NAME as ENTITY_VOCAB_FILE
from kebiolm.data.loader import PretrainingLoader, evaluation_batches
from kebiolm.data.masking import MaskingSettings
from kebiolm.data.shard_format import PackedShards
from kebiolm.data.tokenizer import load_tokenizer
from kebiolm.files import sha256_of_json, write_json
from kebiolm.tracking.metric_log import RECORDS, MetricLog, read_records
from kebiolm.training.checkpoint import save_checkpoint
from kebiolm.training.config import PretrainConfig
from kebiolm.training.deepspeed_engine import make_engine
from kebiolm.training.distributed import decide_on_first_process
from kebiolm.training.elastic import elastic_settings
from kebiolm.training.evaluation import Evaluation, Evaluator
from kebiolm.training.initial_model import make_initial_model
from kebiolm.training.nonfinite import NonfiniteGuard
from kebiolm.training.report.evaluation_files import write_evaluation
from kebiolm.training.report.write import write_report
from kebiolm.training.resume import check_parameters, choose_resume_point, load_checkpoint
from kebiolm.training.sample_log import SampleLog
from kebiolm.training.schedule import learning_rate_at
from kebiolm.training.stop_request import StopRequest
from kebiolm.training.train_step import TrainStep
from kebiolm.training.trainer import Trainer


def make_loader(config: PretrainConfig, shards: PackedShards) -> PretrainingLoader:
    """This process's share of the training sequences.

    Raises:
        UserError: there is no sequence, or the global batch does not divide into processes and micro batches.
    """
    return PretrainingLoader(
        shards.train,
        _make_collator(config, shards),
        seed=config.seed,
        global_batch_size=config.optimization.global_batch_size,
        micro_batch_size=config.optimization.micro_batch_size,
        rank=dist.get_rank(),
        world_size=dist.get_world_size(),
        epochs=config.optimization.epochs,
        max_steps=config.optimization.max_steps,
        pin_memory=torch.cuda.is_available(),
    )


def make_trainer(
    config: PretrainConfig,
    shards: PackedShards,
    settings: dict[str, Any],
    *,
    loader: PretrainingLoader,
    metric_log: MetricLog | None,
    stop_request: StopRequest,
) -> Trainer:
    """Model, engine and loop of a run, resumed from its newest complete checkpoint where there is one.

    Args:
        config: the run's settings.
        shards: what it trains on.
        settings: DeepSpeed's, as `load_deepspeed_settings` returned them.
        loader: made by `make_loader`.
        metric_log: where records go; on global rank 0 only.
        stop_request: asked at every step.

    Raises:
        UserError: start weights, shards or checkpoints do not fit together.
    """
    rank, world_size = dist.get_rank(), dist.get_world_size()
    model = make_initial_model(config, shards, say=rank == 0)
    checkpoints = config.output / "checkpoints"
    if point := choose_resume_point(checkpoints):
        check_parameters(point, model)
        settings = elastic_settings(settings) if point.is_elastic else settings
    engine = make_engine(model, settings, config.optimization, loader.gradient_accumulation_steps)
    if point:
        load_checkpoint(engine, point)
    sample_log = SampleLog.open(config.output)
    logs = [] if metric_log is None else [metric_log, sample_log]
    heldout_batches = partial(
        evaluation_batches,
        shards.heldout,
        _make_collator(config, shards),
        batch_size=config.evaluation.micro_batch_size,
        rank=rank,
        world_size=world_size,
        max_sequences=config.evaluation.max_sequences,
    )
    learning_rate = partial(
        learning_rate_at,
        peak=config.optimization.learning_rate,
        warmup_steps=config.optimization.warmup_steps,
        total_steps=loader.steps_total,
    )
    return Trainer(
        config=config,
        train_step=TrainStep(engine, learning_rate=learning_rate, seed=config.seed, rank=rank, world_size=world_size),
        loader=loader,
        evaluate=Evaluator(engine, heldout_batches),
        guard=NonfiniteGuard(config.stability, config.output, is_fp16=engine.fp16_enabled()),
        stop_request=stop_request,
        save=partial(
            save_checkpoint,
            engine,
            checkpoints,
            keep=config.checkpoints.keep,
            write_model_files=partial(_write_model_files, config, shards, model, logs),
        ),
        report=partial(_report, config.output, shards),
        metric_log=metric_log,
        sample_log=sample_log,
        last_evaluated_step=decide_on_first_process(partial(_last_evaluated_step, config.output)),
        steps_done=point.step if point else 0,
    )


def _last_evaluated_step(output: Path) -> int:
    return max((record["step"] for record in read_records(output / RECORDS) if record["kind"] == "heldout"), default=-1)


def _make_collator(config: PretrainConfig, shards: PackedShards) -> PretrainingCollator:
    masking = MaskingSettings(probability=config.masking.probability, whole_entity=config.masking.whole_entity)
    return PretrainingCollator.from_shards(shards, seed=config.seed, masking=masking)


def _report(output: Path, shards: PackedShards, step: int, evaluation: Evaluation) -> None:
    """Put what an evaluation came to into the run's folder and on its page."""
    try:
        write_evaluation(output, step, evaluation, shards.entity_vocab, load_tokenizer(shards.tokenizer_path))
        write_report(output)
    except OSError as error:
        # The other processes go on. The figures are kept in memory by their log; the page is made again later.
        error_console.print(f"[yellow]{output} has no new page:[/] {escape(str(as_user_error(error)))}")


def _write_model_files(
    config: PretrainConfig, shards: PackedShards, model: Any, logs: list[MetricLog | SampleLog], folder: Path
) -> None:
    """Configuration, tokenizer, vocabulary and the run's story: what `kebiolm export` puts beside the weights."""
    # What the steps before the checkpoint left behind must be on disk before it: they are not repeated.
    for log in logs:
        log.put_on_disk()
    folder.mkdir(parents=True)
    model.config.save_pretrained(folder)
    for file in sorted(shards.tokenizer_path.iterdir()):
        shutil.copyfile(file, folder / file.name)
    shutil.copyfile(shards.path / ENTITY_VOCAB_FILE, folder / ENTITY_VOCAB_FILE)
    records = read_records(config.output / RECORDS)
    write_json(
        folder / "training.json",
        {
            "settings": config.flat(),
            "settings_sha256": sha256_of_json(config.flat()),
            "shards": {"counts": shards.manifest["counts"], "settings": shards.manifest["settings"]},
            "latest_metrics": {record["kind"]: record["metrics"] for record in records},
        },
    )
