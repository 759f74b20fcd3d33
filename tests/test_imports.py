"""Each kind of node needs only its own packages."""

from __future__ import annotations

import pkgutil
import subprocess
import sys

import pytest

import kebiolm
import preprocessing

TRAINING_PACKAGES = ("torch", "deepspeed", "mlflow", "safetensors")
PREPROCESSING_PACKAGES = ("ray", "spacy", "scispacy", "sklearn", "numba")

# SciPy looks into a torch that stands in sys.modules, transformers believes what the packages' metadata say of sklearn:
# so the one is hidden from the import system, and the others raise when they are imported.
HIDE_TORCH = """
import sys
from importlib.machinery import PathFinder
class Hide:
    @staticmethod
    def find_spec(name, path=None, target=None):
        return None if name.partition(".")[0] == "torch" else PathFinder.find_spec(name, path, target)
sys.meta_path[sys.meta_path.index(PathFinder)] = Hide
"""


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
    block = "".join(f"sys.modules[{name!r}] = None\n" for name in absent if name != "torch")
    load = f"import importlib; [importlib.import_module(name) for name in {modules!r}]"
    code = f"{HIDE_TORCH if 'torch' in absent else 'import sys'}\n{block}{load}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
