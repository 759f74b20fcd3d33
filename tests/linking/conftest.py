from __future__ import annotations

from pathlib import Path

import pytest

from kebiolm.linking import KeBioLM
from tests.linking.hand_made_model import write_model_folder


@pytest.fixture(scope="session")
def model_folder(tiny_tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exported folder of `tests.linking.hand_made_model`. Read only."""
    folder = tmp_path_factory.mktemp("linking") / "model"
    write_model_folder(folder, tiny_tokenizer_folder)
    return folder


@pytest.fixture(scope="session")
def kebiolm(model_folder: Path) -> KeBioLM:
    return KeBioLM.from_pretrained(model_folder, device="cpu")
