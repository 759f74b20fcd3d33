"""launch/configs/pretrain/: each file is valid, and the paper's runs have the paper's numbers on every machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from kebiolm.training.config import PretrainConfig, load_config
from tests.conftest import REPOSITORY

FOLDER = REPOSITORY / "launch" / "configs" / "pretrain"
RECIPES = sorted(FOLDER.rglob("*.yaml"))
PAPER = {"paper_v100": (8, 8), "paper_v100_64gpus": (64, 1), "paper_h100": (8, 1)}
"""GPUs that a recipe names, and micro batches that each of them then accumulates."""


def read(name: str) -> PretrainConfig:
    return load_config(FOLDER / f"{name}.yaml", [])


def differences(one: PretrainConfig, other: PretrainConfig) -> set[str]:
    some, others = one.flat(), other.flat()
    return {key for key in some if some[key] != others[key]}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(FOLDER)))
def test_shipped_recipes_are_valid(path: Path) -> None:
    config = load_config(path, [])
    assert (REPOSITORY / config.deepspeed).is_file()
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert head
    assert path.read_text().startswith("#"), "a recipe says what it is, its hardware and time first"


def test_no_two_recipes_share_an_output_folder() -> None:
    outputs = [load_config(path, []).output for path in RECIPES]
    assert len(set(outputs)) == len(outputs)


@pytest.mark.parametrize("name", PAPER)
def test_paper_recipes_have_the_numbers_of_section_4_1(name: str) -> None:
    config = read(name)
    optimization = config.optimization
    assert (optimization.global_batch_size, optimization.epochs, optimization.max_steps) == (512, 2, None)
    assert (optimization.learning_rate, optimization.warmup_steps) == (5e-5, 10_000)
    assert (config.model.num_hidden_layers, config.model.num_context_layers) == (12, 8)
    assert (config.model.max_candidate_entities, config.model.entity_size) == (100, 100)
    assert (config.masking.probability, config.masking.whole_entity) == (0.15, True)
    assert config.entities.init_from is not None
    assert not config.entities.freeze


@pytest.mark.parametrize("name", PAPER)
def test_paper_recipes_name_the_script_that_compares_the_hosts(name: str) -> None:
    head = (FOLDER / f"{name}.yaml").read_text().split("base:")[0].split("shards:")[0]
    assert "#   launch/pretrain.sh" in head and f"launch/configs/pretrain/{name}.yaml" in head
    assert "deepspeed --" not in head


@pytest.mark.parametrize("name", PAPER)
def test_paper_recipes_fill_the_batch_on_the_gpus_that_they_name(name: str) -> None:
    gpus, accumulated = PAPER[name]
    optimization = read(name).optimization
    assert gpus * optimization.micro_batch_size * accumulated == optimization.global_batch_size
    assert f"{gpus} " in (FOLDER / f"{name}.yaml").read_text().split("shards:")[0].split("base:")[0]


def test_machines_change_nothing_but_precision_and_micro_batch() -> None:
    v100 = read("paper_v100")
    assert differences(v100, read("paper_v100_64gpus")) == {"output"}
    assert differences(v100, read("paper_h100")) == {"output", "deepspeed", "optimization.micro_batch_size"}
    assert v100.deepspeed.stem.endswith("fp16"), "a V100 has no bf16"
    assert read("paper_h100").deepspeed.stem.endswith("bf16")
