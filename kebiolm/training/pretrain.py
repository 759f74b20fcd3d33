"""Start a pretraining run: `kebiolm pretrain CONFIG.yaml [key=value ...]`, or on several processes

deepspeed [--hostfile FILE] --module kebiolm.training.pretrain CONFIG.yaml [key=value ...]
"""

from __future__ import annotations

import argparse
import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from kebiolm.console import console, error_console, exit_on_user_error, progress
from kebiolm.data.collator import PretrainingCollator
from kebiolm.data.entity_vocab import FILE_NAME as ENTITY_VOCAB_FILE
from kebiolm.data.entity_vocab import NIL_ROW
from kebiolm.data.loader import PretrainingLoader, evaluation_batches
from kebiolm.data.masking import MaskingSettings
from kebiolm.data.shard_format import PackedShards, ShardSplit
from kebiolm.errors import UserError
from kebiolm.files import sha256_of_file, sha256_of_json, write_json
from kebiolm.training.checkpoint import resume_step
from kebiolm.training.config import PretrainConfig, load_config
from kebiolm.training.deepspeed_engine import init_distributed, load_deepspeed_settings, make_engine
from kebiolm.training.distributed import run_on_first_process
from kebiolm.training.initial_model import make_initial_model
from kebiolm.training.run_folder import CONFIG_FILE, claim_run_folder
from kebiolm.training.summary import BASELINE, print_summary
from kebiolm.training.tracking import RECORDS, MetricLog, MlflowSender, describe_run, read_records
from kebiolm.training.trainer import Trainer


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the DeepSpeed launcher; a user's mistake is one line from the first process of each node."""
    parser = argparse.ArgumentParser(description="Pretrain KeBioLM.")
    parser.add_argument("config", type=Path, help="YAML recipe")
    parser.add_argument("overrides", nargs="*", help="section.key=value")
    parser.add_argument("--local_rank", type=int, default=0, help="given by the launcher")
    parsed = parser.parse_args(arguments)
    with exit_on_user_error(say=os.environ.get("LOCAL_RANK", "0") == "0"):
        pretrain(load_config(parsed.config, parsed.overrides))


def pretrain(config: PretrainConfig) -> None:
    """Run or resume one pretraining run to its end.

    Raises:
        UserError: settings, shards or checkpoints do not fit together.
    """
    settings = load_deepspeed_settings(config.deepspeed)
    shards = PackedShards.load(config.shards)
    rank, world_size = init_distributed()
    inputs = _inputs(config, shards, settings)
    loader = _make_loader(config, shards, rank, world_size)
    run_on_first_process(partial(claim_run_folder, config, inputs))
    metric_log = run_on_first_process(partial(MetricLog, config.output))
    if rank == 0:
        _warn_about_short_runs(config, loader.steps_total)

    model = make_initial_model(config, shards, say=rank == 0)
    engine = make_engine(model, settings, config.optimization, loader.gradient_accumulation_steps)
    steps_done = resume_step(engine, config.output / "checkpoints")
    trainer = Trainer(
        config=config,
        engine=engine,
        loader=loader,
        make_evaluation_batches=partial(
            evaluation_batches,
            shards.heldout,
            _make_collator(config, shards),
            batch_size=config.evaluation.micro_batch_size,
            rank=rank,
            world_size=world_size,
            max_sequences=config.evaluation.max_sequences,
        ),
        metric_log=metric_log,
        write_model_files=partial(_write_model_files, config, shards, model),
        rank=rank,
        world_size=world_size,
        steps_done=steps_done,
    )
    if metric_log is None:
        trainer.fit(lambda *_, **__: None)
        return
    parameters = config.flat() | {"run.world_size": world_size, "run.steps_total": loader.steps_total}
    parameters |= inputs
    parameters[BASELINE] = _most_frequent_entity_share(shards.heldout)
    sender = _start_sender(config, parameters)
    status = "FAILED"
    try:
        if steps_done:
            console.print(f"resuming after step {steps_done} of {loader.steps_total}")
        with progress("pretraining", loader.steps_total, "steps") as advance:
            advance(steps_done)
            trainer.fit(advance)
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        metric_log.close()
        sender.finish(status)
    print_summary(config.output)


def _make_collator(config: PretrainConfig, shards: PackedShards) -> PretrainingCollator:
    masking = MaskingSettings(probability=config.masking.probability, whole_entity=config.masking.whole_entity)
    return PretrainingCollator.from_shards(shards, seed=config.seed, masking=masking)


def _make_loader(config: PretrainConfig, shards: PackedShards, rank: int, world_size: int) -> PretrainingLoader:
    return PretrainingLoader(
        shards.train,
        _make_collator(config, shards),
        seed=config.seed,
        global_batch_size=config.optimization.global_batch_size,
        micro_batch_size=config.optimization.micro_batch_size,
        rank=rank,
        world_size=world_size,
        epochs=config.optimization.epochs,
        max_steps=config.optimization.max_steps,
    )


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


def _write_model_files(config: PretrainConfig, shards: PackedShards, model: Any, folder: Path) -> None:
    """Configuration, tokenizer, vocabulary and the run's story: what `kebiolm export` puts beside the weights."""
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


def _most_frequent_entity_share(split: ShardSplit) -> float:
    """What a linker would reach that always answers with the same, best entity: the figure to beat."""
    rows = np.concatenate([np.zeros(0, dtype=np.int32), *(sequence.mention_entities for sequence in split)])
    linked = rows[rows != NIL_ROW]
    return float(np.unique(linked, return_counts=True)[1].max() / len(linked)) if len(linked) else 0.0


if __name__ == "__main__":
    main()
