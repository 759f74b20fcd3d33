"""Each kind of node needs only its own packages."""

from __future__ import annotations

import pkgutil
import subprocess
import sys

import pytest

import kebiolm
import preprocessing

TRAINING_PACKAGES = ("torch", "deepspeed", "mlflow", "safetensors")
PREPROCESSING_PACKAGES = ("ray", "spacy", "scispacy", "sklearn", "defusedxml")


def modules_of(package: object, *excluded: str) -> list[str]:
    """Names of all modules of a package."""
    found = pkgutil.walk_packages(package.__path__, f"{package.__name__}.")  # type: ignore[attr-defined]
    return [module.name for module in found if not module.name.startswith(excluded)]


FORMATS = [
    "kebiolm.cli",
    "kebiolm.data.entity_vocab",
    "kebiolm.data.knowledge_base",
    "kebiolm.data.masking",
    "kebiolm.data.shard_format",
    "kebiolm.data.tokenizer",
]


@pytest.mark.parametrize(
    ("modules", "absent"),
    [
        ([*FORMATS, *modules_of(preprocessing)], TRAINING_PACKAGES),
        (modules_of(kebiolm), PREPROCESSING_PACKAGES),
    ],
    ids=["preprocessing node without torch", "training node without spaCy"],
)
def test_modules_import_without_the_other_nodes_packages(modules: list[str], absent: tuple[str, ...]) -> None:
    assert len(modules) > 10
    block = f"import sys; sys.modules.update(dict.fromkeys({absent!r}))"
    load = f"import importlib; [importlib.import_module(name) for name in {modules!r}]"
    done = subprocess.run([sys.executable, "-c", f"{block}; {load}"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
