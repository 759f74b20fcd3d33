"""A command's settings: a YAML recipe and `key=value` overrides, checked as a whole by a pydantic model.

A recipe may begin from another one, `base: other.yaml` (seen from its own folder), and then names only what differs.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from kebiolm.errors import UserError

_Settings = TypeVar("_Settings", bound=BaseModel)


def load_settings(path: Path, overrides: Sequence[str], model: type[_Settings], *, examples: str) -> _Settings:
    """Read a recipe with its bases, apply overrides and check everything.

    Args:
        path: the recipe.
        overrides: such as "optimization.epochs=3"; values are YAML.
        model: what the settings must fit; a key that it does not know is an error if it forbids such.
        examples: a folder or file that shows how, for error messages.

    Raises:
        UserError: a file cannot be read, bases go in a circle, or settings are unknown, missing or out of range; all
            problems are named in the one message, with the files and overrides that they come from.
    """
    settings: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for source, layer in [*_read_recipes(path, examples), *map(_read_override, overrides)]:
        settings = _merge(settings, layer)
        sources |= {key: source for key, _ in flatten(layer)}
    try:
        return model.model_validate(settings)
    except ValidationError as error:
        problems = error.errors()
    remaining = dict(flatten(settings))
    sources = {key: source for key, source in sources.items() if key in remaining}
    located = [_locate(problem["loc"], model) for problem in problems]
    where = dict.fromkeys(source for key, _ in located for source in _sources_of(key, sources) or [str(path)])
    raise UserError(
        " and ".join(where),
        got="; ".join(_explain(problem, *place) for problem, place in zip(problems, located, strict=True)),
        expected=f"settings as in {examples}",
        mend="correct the keys named",
    )


def flatten(value: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested settings as pairs of "section.key" and value."""
    pairs = []
    for key, item in value.items():
        pairs += flatten(item, f"{prefix}{key}.") if isinstance(item, dict) else [(f"{prefix}{key}", item)]
    return pairs


def _read_recipes(path: Path, examples: str) -> list[tuple[str, dict[str, Any]]]:
    """The recipe and those it begins from, the first of all first, each with its path."""
    recipes: list[tuple[str, dict[str, Any]]] = []
    seen: list[Path] = []
    while True:
        if path.resolve() in seen:
            raise UserError(path, got="a base that leads back to itself", expected="no circle", mend="remove one base")
        seen.append(path.resolve())
        settings = _read_yaml(path, examples)
        base = settings.pop("base", None)
        recipes.insert(0, (str(path), settings))
        if base is None:
            return recipes
        if not isinstance(base, str):
            raise UserError(f"{path} (base)", got=base, expected="a path", mend="name another recipe, or remove base")
        path = path.parent / base


def _read_yaml(path: Path, examples: str) -> dict[str, Any]:
    mend = f"give a recipe as in {examples}"
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(path, got="no such file", expected="a YAML recipe", mend=mend) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(path, got=f"a file that is not YAML ({error})", expected="a YAML recipe", mend=mend) from None
    if not isinstance(settings, dict):
        raise UserError(path, got=type(settings).__name__, expected="a mapping of settings", mend=mend)
    return settings


def _read_override(override: str) -> tuple[str, dict[str, Any]]:
    """`section.key=value` as {section: {key: value}}, with what to call it in an error."""
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise UserError("override", got=override, expected="section.key=value", mend="write it with an equals sign")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError("override", got=override, expected="a YAML value", mend="quote the value") from None
    for part in reversed(key.split(".")):
        value = {part: value}
    return f"override {override}", value


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """`above` over `below`, section by section."""
    merged = dict(below)
    for key, value in above.items():
        both_are_sections = isinstance(value, dict) and isinstance(below.get(key), dict)
        merged[key] = _merge(below[key], value) if both_are_sections else value
    return merged


def _sources_of(key: str, sources: dict[str, str]) -> list[str]:
    """Where the value of a key was set, or the values of a section that do not fit together."""
    return [source for name, source in sources.items() if name == key or name.startswith(f"{key}.")]


def _explain(problem: Any, key: str, names_there: Sequence[str]) -> str:
    if problem["type"] == "extra_forbidden":
        close = difflib.get_close_matches(key.rpartition(".")[2], names_there, n=1)
        return f"unknown key {key}{f' (did you mean {close[0]}?)' if close else ''}"
    if problem["type"] == "missing":
        return f"missing key {key}"
    value = "" if isinstance(problem["input"], dict) else f" = {problem['input']!r}"
    return f"{key}{value} ({problem['msg'].removeprefix('Value error, ')})"


def _locate(location: tuple[Any, ...], model: type[BaseModel]) -> tuple[str, list[str]]:
    """The key as a user writes it, "settings" for all of them; and the names that its last part could have had."""
    parts: list[str] = []
    names: list[str] = []
    sections: list[type[BaseModel]] = [model]
    for part in location:
        fields = {name: field for section in sections for name, field in section.model_fields.items()}
        # Where one of several models applies, pydantic also names the one it chose, which no user wrote.
        if len(sections) > 1 and part not in fields:
            chosen = [section for section in sections if _is_tagged(section, part)]
            if chosen:
                sections = chosen
                continue
        parts.append(str(part))
        names = list(fields)
        sections = _models_in(fields[part].annotation) if part in fields else []
    return ".".join(parts) or "settings", names


def _is_tagged(section: type[BaseModel], tag: Any) -> bool:
    """Whether a field of the section says which of several models it is by `Literal[tag]`."""
    return any(tag in get_args(field.annotation) for field in section.model_fields.values())


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]
