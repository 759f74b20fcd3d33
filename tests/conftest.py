"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real abstracts, a real knowledge base and a mention model (KEBIOLM_TEST_DATA); skips where absent."""
    folder = Path(os.environ.get("KEBIOLM_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "kb" / "openkb").is_dir():
        pytest.skip(f"real data is not at {folder} (set KEBIOLM_TEST_DATA)")
    return folder
