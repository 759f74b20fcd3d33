from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field

from kebiolm.errors import UserError
from kebiolm.yaml_settings import load_settings


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid")
    steps: int = 1
    rates: tuple[float, ...] = ()


class Cat(BaseModel):
    model_config = ConfigDict(extra="forbid")
    kind: Literal["cat"]
    whiskers: int = 0


class Dog(BaseModel):
    model_config = ConfigDict(extra="forbid")
    kind: Literal["dog"]
    bones: int = 0


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str
    section: Section = Section()
    animal: Cat | Dog | None = Field(None, discriminator="kind")


def load(path: Path, *overrides: str) -> Settings:
    return load_settings(path, overrides, Settings, examples="examples/")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "base.yaml").write_text("name: base\nsection: {steps: 5, rates: [1.0, 2.0]}\n")
    path = tmp_path / "recipe.yaml"
    path.write_text("base: base.yaml\nname: mine\nsection: {steps: 7}\n")
    return path


def test_a_recipe_changes_its_base_and_overrides_change_both(recipe: Path) -> None:
    settings = load(recipe, "section.rates=[3]")
    assert (settings.name, settings.section.steps, settings.section.rates) == ("mine", 7, (3.0,))
    assert load(recipe).section.rates == (1.0, 2.0)


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("section.stepss=3", r"unknown key section.stepss \(did you mean steps\?\)"),
        ("section.steps=many", "section.steps = 'many'"),
        ("animal={kind: dog, bonse: 3}", r"unknown key animal.bonse \(did you mean bones\?\)"),
        ("animal={kind: dog, whiskers: 3}", "unknown key animal.whiskers"),
        ("section=3", "section = 3"),
    ],
)
def test_a_problem_is_said_with_the_override_it_comes_from(recipe: Path, override: str, named: str) -> None:
    with pytest.raises(UserError, match=named) as caught:
        load(recipe, override)
    assert caught.value.where == f"override {override}"


def test_problems_of_several_files_are_said_together(recipe: Path) -> None:
    (recipe.parent / "base.yaml").write_text("colour: red\n")
    recipe.write_text("base: base.yaml\nsection: {steps: x}\n")
    with pytest.raises(UserError, match=r"missing key name; section.steps = 'x'.*; unknown key colour") as caught:
        load(recipe)
    assert "recipe.yaml" in caught.value.where
    assert "base.yaml" in caught.value.where


def test_bases_that_go_in_a_circle_are_refused(recipe: Path) -> None:
    (recipe.parent / "base.yaml").write_text("base: recipe.yaml\n")
    with pytest.raises(UserError, match="a base that leads back to itself"):
        load(recipe)


@pytest.mark.parametrize(
    ("content", "named"), [("a: [", "not YAML"), ("- 1", "got list"), ("base: 3", "got 3; expected a path")]
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, content: str, named: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=named):
        load(path)
    with pytest.raises(UserError, match="no such file"):
        load(tmp_path / "absent.yaml")


@pytest.mark.parametrize("override", ["section.steps", "=3", "section.steps=[1"])
def test_an_override_that_is_none_is_refused(recipe: Path, override: str) -> None:
    with pytest.raises(UserError, match="override: got"):
        load(recipe, override)
