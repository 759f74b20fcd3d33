"""`kebiolm index`: an entity index is built, written, and measured against the exact search."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import Tensor

from kebiolm.console import console, progress
from kebiolm.errors import UserError
from kebiolm.linking.api import KeBioLM
from kebiolm.linking.command import read_texts, refuse_existing
from kebiolm.linking.entity_index import KINDS, EntityIndex, IndexSettings, import_faiss
from kebiolm.model.entity_memory import EntityTable

# Enough for two digits of recall; the exact search takes seconds for so many in a table of millions.
_MENTIONS_MEASURED = 1000
_GOOD_RECALL = 0.95
_NOISE = 0.5
"""Length of what is added to an entity's vector to stand for a mention of it, relative to the vector's own."""


def build_index(
    model: Path, out: Path, settings: IndexSettings, *, queries: Path | None = None, overwrite: bool = False
) -> None:
    """Build and write an index of a model's entity table; print its recall and its time beside the exact search's.

    Args:
        model: folder made by `kebiolm export`.
        out: file to write, and beside it `out`.json.
        settings: what to build.
        queries: texts, one per line, whose mentions are searched for the figures; None: entity vectors with noise.
        overwrite: replace `out` if it exists.

    Raises:
        UserError: faiss is not installed, an input is not what it should be, or `out` may not be replaced.
    """
    refuse_existing(out, overwrite=overwrite)
    import_faiss()
    texts = None if queries is None else read_texts(None, queries, command="index")
    loaded = KeBioLM.from_pretrained(model)
    table = loaded.model.entity_linker.entity_embeddings
    if texts is None:
        vectors, source = _noisy_entities(table), "entity vectors with noise of half their length added"
    else:
        vectors, source = _mention_vectors(loaded, texts, queries), f"mentions of {queries.name}"

    started = time.perf_counter()
    hidden, rows = table.num_hidden_rows, table.vectors.detach()
    with progress("indexing", len(rows) - hidden, "entities") as advance:
        index = EntityIndex.build(rows, settings, first_row=hidden, advance=advance)
    seconds = time.perf_counter() - started
    index.save(out)

    exact_scores, exact_seconds = _search(table, vectors)
    table.index = index
    index_scores, index_seconds = _search(table, vectors)
    # By scores: of equal ones at the border either is right.
    tolerance = 1e-5 * exact_scores.abs().amax(dim=1, keepdim=True)
    recall = (index_scores >= exact_scores[:, -1:] - tolerance).float().mean().item()
    numbers = ", ".join(f"{name} {value}" for name in KINDS[settings.kind] for value in [getattr(index.settings, name)])
    size = out.stat().st_size / 1e6
    console.print(
        f"index         {out} ({settings.kind}{', ' if numbers else ''}{numbers}; {size:,.1f} MB)", markup=False
    )
    console.print(f"entities      {len(rows) - hidden:,} in {seconds:.1f} s")
    console.print(f"recall@{exact_scores.shape[1]:<7}{recall:.3f} on {len(vectors):,} {source}", markup=False)
    for name, taken in (("exact search", exact_seconds), ("index", index_seconds)):
        console.print(f"{name:14}{taken * 1000 / len(vectors):.3f} s per 1,000 mentions")
    if recall < _GOOD_RECALL and settings.kind != "flat":
        more = {"ivf": "--nprobe", "hnsw": "--ef-search or --ef-construction"}[settings.kind]
        console.print(f"more is found, in more time, with a larger {more}")


def _mention_vectors(model: KeBioLM, texts: list[str], file: Path) -> Tensor:
    vectors = torch.cat([torch.from_numpy(part) for part in model.encode_mentions(texts)])[:_MENTIONS_MEASURED]
    if not len(vectors):
        got, mend = "texts in which the model finds no mention", "give other texts, or leave --queries out"
        raise UserError(file, got=got, expected="texts with mentions", mend=mend)
    return vectors.to(model.model.device)


def _noisy_entities(table: EntityTable) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    entities = table.vectors.detach()[table.num_hidden_rows :]
    # All entities are equally near to a vector of zeros, which some have before they are trained.
    known = entities.float().norm(dim=1).nonzero().squeeze(1)
    chosen = known[torch.randint(len(known), (_MENTIONS_MEASURED,), generator=generator).to(known.device)]
    vectors = entities[chosen].float()
    noise = torch.randn(vectors.shape, generator=generator).to(vectors.device)
    lengths = vectors.norm(dim=1, keepdim=True) / noise.norm(dim=1, keepdim=True)
    return vectors + _NOISE * lengths * noise


@torch.inference_mode()
def _search(table: EntityTable, vectors: Tensor) -> tuple[Tensor, float]:
    """Scores [M, k] of what the table finds for vectors [M, d], -inf for nothing, and the seconds it takes."""
    table(vectors[:1], None)  # what is prepared once is not measured
    started = time.perf_counter()
    scores = table(vectors, None).topk_val.cpu()
    return scores, time.perf_counter() - started
