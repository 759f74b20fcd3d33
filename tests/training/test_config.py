"""Recipes, their bases and overrides: every problem is named with the place where it was set, nothing is ignored."""

from __future__ import annotations

from pathlib import Path

import pytest

from kebiolm.errors import UserError
from kebiolm.training.config import load_config
from tests.conftest import REPOSITORY

DEBUG = REPOSITORY / "launch" / "configs" / "pretrain" / "debug.yaml"


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


def test_problem_of_an_override_names_the_override_and_not_the_file() -> None:
    with pytest.raises(UserError) as caught:
        load_config(DEBUG, ["optimization.warmup_steps=3", "optimization.learning_rate=-1"])
    assert str(caught.value).startswith("override optimization.learning_rate=-1: got optimization.learning_rate = -1")
    assert "debug.yaml" not in str(caught.value)


def test_values_that_do_not_fit_together_name_both_places() -> None:
    with pytest.raises(UserError) as caught:
        load_config(DEBUG, ["model.num_context_layers=9"])
    assert str(caught.value).startswith(f"{DEBUG} and override model.num_context_layers=9: got model (num_context_")


def test_recipe_takes_what_it_does_not_name_from_its_base(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "first.yaml").write_text(
        "shards: a\noutput: b\ndeepspeed: c\nmodel: {entity_size: 7, hidden_size: 12}\n"
    )
    (tmp_path / "second.yaml").write_text("base: first.yaml\nmodel: {entity_size: 8}\nentities: {init_from: x}\n")
    third = tmp_path / "below" / "third.yaml"
    third.write_text("base: ../second.yaml\noutput: d\nentities: {init_from: null}\n")
    config = load_config(third, ["seed=5"])
    assert (config.shards, config.output, config.seed) == (Path("a"), Path("d"), 5)
    assert (config.model.entity_size, config.model.hidden_size) == (8, 12)
    assert config.entities.init_from is None


def test_problem_of_a_base_names_the_base(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("shards: a\noutput: b\ndeepspeed: c\nsed: 1\n")
    (tmp_path / "mine.yaml").write_text("base: base.yaml\nseed: 2\n")
    with pytest.raises(UserError, match=r"base\.yaml: got unknown key sed \(did you mean seed\?\)") as caught:
        load_config(tmp_path / "mine.yaml", [])
    assert "mine.yaml" not in str(caught.value)


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("mine.yaml", "leads back to itself"),
        ("other.yaml", "leads back to itself"),
        ("absent.yaml", r"absent\.yaml: got no such file"),
        ("[a]", "expected a path"),
    ],
)
def test_bases_that_cannot_be_read_are_user_errors(base: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(f"base: {base}\n")
    (tmp_path / "other.yaml").write_text("base: mine.yaml\n")
    with pytest.raises(UserError, match=message):
        load_config(tmp_path / "mine.yaml", [])
