"""The file of start vectors for the entity table, aligned with one entity vocabulary; and the authors' text layout."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from kebiolm.data.entity_vocab import EntityVocab
from kebiolm.errors import UserError
from kebiolm.files import atomic_path

FORMAT = "kebiolm-transe"
VERSION = 1
_MEND = "run `kebiolm transe` again with these shards"

Missing = Literal["zero", "gaussian"]


@dataclass(frozen=True, kw_only=True)
class StartVectors:
    """Start values of an entity table.

    Attributes:
        entity_embeddings: [rows, dim] float32, one row per row of the entity vocabulary.
        has_triples: [rows] bool: the row was trained; the others start as `missing` said.
        relation_embeddings: [relations, dim] float32; no rows where the vectors came from a text file.
        relations: names of these relations.
        info: what is known about the training: settings, counts, metrics (JSON values).
    """

    entity_embeddings: torch.Tensor
    has_triples: torch.Tensor
    relation_embeddings: torch.Tensor
    relations: list[str]
    info: dict[str, Any] = field(default_factory=dict)


def align(
    vectors: torch.Tensor, cuis: Sequence[str], vocab: EntityVocab, *, missing: Missing, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Bring vectors of CUIs into the order of a vocabulary's rows.

    Args:
        vectors: [n, dim] float32.
        cuis: CUI of each vector; those outside the vocabulary are left out.
        vocab: the entity vocabulary.
        missing: how the rows without a vector start, the special rows included: "zero" (so the authors' files end
            up), or "gaussian" with standard deviation 1 / sqrt(dim), which gives about the length 1 of trained rows.
        seed: of the Gaussian rows.

    Returns:
        entity_embeddings [rows, dim] float32 and has_triples [rows] bool.
    """
    table = torch.zeros(len(vocab), vectors.shape[1])
    if missing == "gaussian":
        table.normal_(std=vectors.shape[1] ** -0.5, generator=torch.Generator().manual_seed(seed))
    known = [(vocab.row(cui), number) for number, cui in enumerate(cuis) if cui in vocab]
    rows, numbers = torch.tensor(known, dtype=torch.int64).reshape(-1, 2).unbind(1)
    table[rows] = vectors[numbers]
    has_triples = torch.zeros(len(vocab), dtype=torch.bool)
    has_triples[rows] = True
    return table, has_triples


def save_transe(path: Path, vectors: StartVectors, vocab: EntityVocab) -> None:
    """Write start vectors atomically as safetensors; equal vectors and information are equal bytes."""
    description = {
        "format": FORMAT,
        "version": VERSION,
        "entity_vocab_sha256": vocab.sha256,
        "relations": vectors.relations,
        "info": vectors.info,
    }
    tensors = {
        "entity_embeddings": vectors.entity_embeddings.contiguous(),
        "has_triples": vectors.has_triples.to(torch.uint8),
        "relation_embeddings": vectors.relation_embeddings.contiguous(),
    }
    # One metadata field: safetensors promises no order of several.
    metadata = {FORMAT: json.dumps(description, sort_keys=True, ensure_ascii=False)}
    with atomic_path(path) as temporary:
        # Not `save_file`, which makes files that only their owner can read.
        temporary.write_bytes(save(tensors, metadata=metadata))


def load_transe(path: Path | str, vocab: EntityVocab) -> StartVectors:
    """Read the start vectors of a vocabulary.

    Args:
        path: a file made by `kebiolm transe`.
        vocab: the entity vocabulary of the shards to train on.

    Raises:
        UserError: the file is missing, is something else, or was made for another vocabulary.
    """
    path = Path(path)
    expected = "a file made by `kebiolm transe`"
    if not path.is_file():
        raise UserError(path, got="no such file", expected=expected, mend=_MEND)
    try:
        with safe_open(path, framework="pt") as file:
            description = json.loads((file.metadata() or {}).get(FORMAT, "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(path, got=f"an unreadable file ({error})", expected=expected, mend=_MEND) from None
    found = (description.get("format"), description.get("version"))
    if found != (FORMAT, VERSION):
        got = f"a safetensors file of format {found[0]} version {found[1]}"
        raise UserError(path, got=got, expected=f"{FORMAT} version {VERSION}", mend=_MEND)
    if description["entity_vocab_sha256"] != vocab.sha256:
        got = f"vectors for the entity vocabulary {description['entity_vocab_sha256'][:12]}..."
        expected = f"vectors for the shards' vocabulary {vocab.sha256[:12]}... ({len(vocab)} rows)"
        raise UserError(path, got=got, expected=expected, mend=_MEND)
    return StartVectors(
        entity_embeddings=tensors["entity_embeddings"],
        has_triples=tensors["has_triples"].to(torch.bool),
        relation_embeddings=tensors["relation_embeddings"],
        relations=description["relations"],
        info=description["info"],
    )


def write_text_vectors(path: Path, vectors: StartVectors, vocab: EntityVocab) -> None:
    """Write the rows with triples in the layout of the authors' release: "count dim", then "CUI v1 ... vdim" lines.

    Nine digits give back the same 32-bit numbers.
    """
    rows = vectors.has_triples.nonzero().squeeze(1).tolist()
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write(f"{len(rows)} {vectors.entity_embeddings.shape[1]}\n")
        for row in rows:
            numbers = " ".join(f"{value:.9g}" for value in vectors.entity_embeddings[row].tolist())
            file.write(f"{vocab.cui(row)} {numbers}\n")


def read_text_vectors(path: Path) -> tuple[list[str], torch.Tensor]:
    """Read the authors' text layout.

    Returns:
        the CUIs, and their vectors [count, dim] float32.

    Raises:
        UserError: the file is missing or cut short, or a line is not a CUI with dim finite numbers.
    """
    mend = "give a text file of TransE vectors as `kebiolm transe --text` writes it"
    cuis: list[str] = []
    try:
        with open(path, encoding="utf-8") as file:
            header = file.readline().split()
            if len(header) != 2 or not all(number.isdecimal() for number in header):
                raise UserError(f"{path}:1", got=" ".join(header)[:80], expected='"count dim"', mend=mend)
            count, dim = map(int, header)
            vectors = np.zeros((count, dim), dtype=np.float32)
            for line_number, line in enumerate(file, start=2):
                cui, *numbers = line.split() or [""]
                values = _numbers(numbers)
                if len(cuis) == count or values is None or len(values) != dim:
                    expected = f"{count} lines of a CUI and {dim} finite numbers"
                    raise UserError(f"{path}:{line_number}", got=line[:60].strip(), expected=expected, mend=mend)
                vectors[len(cuis)] = values
                cuis.append(cui)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(path, got=error, expected="a text file of vectors", mend=mend) from None
    if len(cuis) != count:
        raise UserError(path, got=f"{len(cuis)} vectors", expected=f"{count}, as line 1 says", mend=mend)
    return cuis, torch.from_numpy(vectors)


def _numbers(texts: list[str]) -> list[float] | None:
    """The texts as finite numbers, None where one is not."""
    try:
        values = [float(text) for text in texts]
    except ValueError:
        return None
    return values if all(np.isfinite(values)) else None
