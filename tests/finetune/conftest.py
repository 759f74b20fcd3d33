"""What the tests of fine-tuning data share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kebiolm.finetune.counted_warnings import CountedWarnings


@pytest.fixture
def warnings() -> CountedWarnings:
    return CountedWarnings()


@pytest.fixture
def data_file(tmp_path: Path) -> Callable[[str | bytes], Path]:
    """Writes a file's content as it is, line ends included; returns its path."""

    def write(content: str | bytes) -> Path:
        path = tmp_path / "train.tsv"
        path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        return path

    return write
