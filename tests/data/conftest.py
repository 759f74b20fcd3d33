"""A shards folder for the tests of reading, masking and batching."""

from __future__ import annotations

import pytest
from random_sequences import make_sequences, write_shards

from kebiolm.data.shard_format import PackedShards


@pytest.fixture(scope="session")
def tiny_shards(tmp_path_factory: pytest.TempPathFactory) -> PackedShards:
    """30 training and 11 held-out sequences of at most 64 pieces, in files of 7."""
    folder = tmp_path_factory.mktemp("shards") / "shards"
    return write_shards(folder, make_sequences(30), make_sequences(11, seed=1))
