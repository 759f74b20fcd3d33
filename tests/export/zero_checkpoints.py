"""Real checkpoints of every ZeRO stage, made by one job of two processes.

Run as a program, this is one process of the job: python -m tests.export.zero_checkpoints OUT TOKENIZER, with RANK and
WORLD_SIZE set. `make_zero_checkpoints` starts both.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from kebiolm.data.entity_vocab import FILE_NAME, EntityVocab
from kebiolm.errors import UserError
from kebiolm.files import write_json
from kebiolm.model import KeBioLMConfig, KeBioLMForPreTraining
from kebiolm.training.checkpoint import save_checkpoint
from kebiolm.training.config import OptimizationSection
from kebiolm.training.deepspeed_engine import init_distributed, make_engine
from tests.full_disk import room_for

REPOSITORY = Path(__file__).resolve().parents[2]
CASES = {
    "stage1": (1, "fp32", False),
    "stage1-bf16-frozen": (1, "bf16", True),
    "stage2-frozen": (2, "fp32", True),
    "stage2-bf16-frozen": (2, "bf16", True),
    "stage3": (3, "fp32", False),
    "stage3-frozen": (3, "fp32", True),
}
"""Name of a case: (ZeRO stage, precision, entity table frozen)."""
EXPECTED = "expected.safetensors"
REFUSED = "refused"
"""Folder in OUT: what each process, by its rank, said when process 1 had no room for its files."""
_CASE_REFUSED_FIRST = "stage3"
STEP = 3
# Odd sizes, so that the shards of most weights need padding.
SIZES = {
    "hidden_size": 10,
    "num_hidden_layers": 3,
    "num_context_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 13,
    "max_position_embeddings": 15,
    "entity_size": 7,
    "entity_row_size": 8,
}
_SECONDS = 180


def make_zero_checkpoints(out: Path, tokenizer: Path) -> Path:
    """Write OUT/CASE/checkpoints/step-.../ and OUT/CASE/expected.safetensors for every case; returns OUT."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    environment = os.environ | {
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(REPOSITORY),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    command = [sys.executable, "-m", "tests.export.zero_checkpoints", str(out), str(tokenizer)]
    jobs = [
        subprocess.Popen(
            command,
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=REPOSITORY,
        )
        for rank in range(2)
    ]
    try:
        outputs = [job.communicate(timeout=_SECONDS)[0] for job in jobs]
    finally:
        for job in jobs:
            job.kill()
    assert all(job.returncode == 0 for job in jobs), "\n".join(outputs)
    return out


def main(out: Path, tokenizer: Path) -> None:
    """One process: train a step of each case and save it, with the weights as the engine itself gives them.

    The save of one case comes to a full disk on process 1 first.
    """
    rank, _ = init_distributed()
    vocabulary = EntityVocab.build({f"C{number:07d}": number for number in range(1, 11)})
    for name, (stage, _, _) in CASES.items():
        torch.manual_seed(stage)
        vocab_size = len((tokenizer / "vocab.txt").read_text(encoding="utf-8").split())
        engine = make_case(name, vocab_size, len(vocabulary))
        _train_one_step(engine, rank, vocab_size)
        write = partial(_write_model_files, engine.module.config, vocabulary, tokenizer)
        save = partial(save_checkpoint, engine, out / name / "checkpoints", STEP, keep=1, write_model_files=write)
        if name == _CASE_REFUSED_FIRST:
            (out / REFUSED).mkdir(exist_ok=True)
            with room_for(2000) if rank == 1 else nullcontext():
                try:
                    save()
                except UserError as error:
                    refusal = str(error)
            (out / REFUSED / str(rank)).write_text(refusal, encoding="utf-8")
        save()
        _save_expected(engine, out / name / EXPECTED, rank)


def make_case(name: str, vocab_size: int, num_entities: int, **more_settings: Any) -> Any:
    """A DeepSpeed engine as a case of `CASES` wants it, with fresh weights."""
    stage, precision, frozen = CASES[name]
    config = KeBioLMConfig(**SIZES, vocab_size=vocab_size, num_entities=num_entities, freeze_entity_embeddings=frozen)
    settings: dict[str, Any] = {"zero_optimization": {"stage": stage}} | more_settings
    if precision == "bf16":
        settings["bf16"] = {"enabled": True}
    optimization = OptimizationSection(micro_batch_size=2, learning_rate=0.01)
    return make_engine(KeBioLMForPreTraining(config), settings, optimization, 1)


def _train_one_step(engine: Any, rank: int, vocab_size: int) -> None:
    ids = torch.randint(5, vocab_size, (2, 15), generator=torch.Generator().manual_seed(rank))
    output = engine(
        input_ids=ids,
        mlm_labels=ids,
        bio_labels=torch.ones_like(ids),
        mention_spans=torch.tensor([[0, 2, 4], [1, 1, 2]]),
        entity_labels=torch.tensor([4, 5]),
    )
    engine.backward(output.loss)
    engine.step()


def _write_model_files(config: KeBioLMConfig, vocabulary: EntityVocab, tokenizer: Path, folder: Path) -> None:
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    shutil.copyfile(tokenizer / "vocab.txt", folder / "vocab.txt")
    vocabulary.save(folder / FILE_NAME)
    training = {
        "settings": {"seed": 0, "model.init_from": "/secret/folder/bert", "optimization.learning_rate": 0.01},
        "shards": {
            "counts": {"heldout": {"sequences": 2}, "train": {"sequences": 2000}},
            "settings": {"max_length": 15},
        },
        "latest_metrics": {"heldout": {"loss": 1.5, "linking_accuracy_at_1": 0.25}},
    }
    write_json(folder / "training.json", training)


def _save_expected(engine: Any, path: Path, rank: int) -> None:
    """Weights in full precision through DeepSpeed's own access to one weight at a time; every process takes part."""
    from deepspeed.runtime.zero import GatheredParameters
    from deepspeed.utils import safe_get_full_fp32_param

    weights = {}
    for name, parameter in engine.module.named_parameters():
        if parameter.requires_grad:
            full = safe_get_full_fp32_param(parameter)
        else:
            with GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id")):
                full = parameter.detach().clone()
        weights[name] = full.float().clone().contiguous()
    if rank == 0:
        save_file(weights, path)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
