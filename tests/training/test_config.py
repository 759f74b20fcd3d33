"""Recipes: every problem is named, nothing is ignored, and the shipped files are right."""

from __future__ import annotations

from pathlib import Path

import pytest

from kebiolm.errors import UserError
from kebiolm.training.config import load_config
from kebiolm.training.deepspeed_engine import load_deepspeed_settings
from tests.conftest import REPOSITORY

RECIPES = sorted((REPOSITORY / "launch" / "configs" / "pretrain").glob("*.yaml"))
DEEPSPEED_FILES = sorted((REPOSITORY / "deepspeed_configs").glob("*.json"))
DEBUG = REPOSITORY / "launch" / "configs" / "pretrain" / "debug.yaml"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_are_valid(path: Path) -> None:
    config = load_config(path, [])
    assert (REPOSITORY / config.deepspeed).is_file()
    assert path.read_text().startswith("#"), "a recipe says its hardware and time first"


@pytest.mark.parametrize("path", DEEPSPEED_FILES, ids=lambda path: path.stem)
def test_shipped_deepspeed_settings_load_through_deepspeed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from deepspeed.runtime.config import DeepSpeedConfig

    monkeypatch.setattr("kebiolm.training.deepspeed_engine._device_name", lambda: "cuda")
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: (9, 0))
    settings = load_deepspeed_settings(path)
    config = DeepSpeedConfig(settings | {"train_batch_size": 1})
    stage, precision = path.stem.removeprefix("zero").split("_")
    assert config.zero_optimization_stage == int(stage)
    assert config.float16_config.enabled == (precision == "fp16")
    assert config.bfloat16_config.enabled == (precision == "bf16")


def test_paper_recipe_has_the_numbers_of_section_4_1() -> None:
    config = load_config(REPOSITORY / "launch" / "configs" / "pretrain" / "paper_v100.yaml", [])
    optimization = config.optimization
    assert (optimization.global_batch_size, optimization.epochs) == (512, 2)
    assert (optimization.learning_rate, optimization.warmup_steps) == (5e-5, 10_000)
    assert (config.model.num_hidden_layers, config.model.num_context_layers) == (12, 8)
    assert (config.model.max_candidate_entities, config.model.entity_size) == (100, 100)
    assert config.masking.probability == 0.15


def test_overrides_reach_nested_settings() -> None:
    config = load_config(DEBUG, ["optimization.learning_rate=0.5", "entities.freeze=true", "output=elsewhere"])
    assert config.optimization.learning_rate == 0.5
    assert config.entities.freeze is True
    assert config.output == Path("elsewhere")
    assert config.flat()["optimization.learning_rate"] == 0.5


def test_all_problems_are_named_at_once() -> None:
    with pytest.raises(UserError) as caught:
        load_config(DEBUG, ["optimization.learning_rat=1", "seed=-1", "model.hidden_size=33"])
    text = str(caught.value)
    assert "unknown key optimization.learning_rat (did you mean learning_rate?)" in text
    assert "seed = -1" in text
    assert "hidden_size 33 is not a multiple" in text
    assert "\n" not in text


@pytest.mark.parametrize("override", ["optimization.epochs=.inf", "optimization.learning_rate=.nan"])
def test_numbers_that_are_not_finite_are_refused(override: str) -> None:
    with pytest.raises(UserError, match="finite"):
        load_config(DEBUG, [override])


@pytest.mark.parametrize("override", ["no-equals-sign", "=3", "seed.x=1", "a=[1"])
def test_broken_overrides_are_user_errors(override: str) -> None:
    with pytest.raises(UserError):
        load_config(DEBUG, [override])


@pytest.mark.parametrize("content", [None, b"a: [1", b"- 1", b"\xff\xfe\x00"])
def test_unreadable_recipes_are_user_errors(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"recipe\.yaml"):
        load_config(path, [])


def test_missing_key_is_named(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("seed: 1\n")
    with pytest.raises(UserError, match="missing key shards"):
        load_config(path, [])


def test_fp16_on_a_cpu_is_refused() -> None:
    with pytest.raises(UserError, match="fp16 on a CPU") as caught:
        load_deepspeed_settings(REPOSITORY / "deepspeed_configs" / "zero2_fp16.json")
    assert "zero2_fp32" in str(caught.value)


def test_bf16_on_an_old_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kebiolm.training.deepspeed_engine._device_name", lambda: "cuda")
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: (7, 0))
    with pytest.raises(UserError, match=r"compute capability 7\.0"):
        load_deepspeed_settings(REPOSITORY / "deepspeed_configs" / "zero2_bf16.json")
    load_deepspeed_settings(REPOSITORY / "deepspeed_configs" / "zero2_fp16.json")


def test_deepspeed_file_must_not_repeat_the_recipe(tmp_path: Path) -> None:
    path = tmp_path / "zero.json"
    path.write_text('{"train_batch_size": 8}')
    with pytest.raises(UserError, match="train_batch_size"):
        load_deepspeed_settings(path)
    path.write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        load_deepspeed_settings(path)
    for structure in ("[]", '{"fp16": null}'):
        path.write_text(structure)
        with pytest.raises(UserError, match="another structure"):
            load_deepspeed_settings(path)
    with pytest.raises(UserError, match="no such file"):
        load_deepspeed_settings(tmp_path / "absent.json")
