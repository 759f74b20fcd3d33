"""scispaCy's own candidate search over our knowledge base, as the benchmarks run it."""

from __future__ import annotations

from pathlib import Path


def load_candidate_generator(index: Path, kb: Path):
    raise NotImplementedError
