"""The command `kebiolm transe`: knowledge base and shards in, start vectors of the entity table out."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from rich.table import Table

from kebiolm.console import console
from kebiolm.data.entity_vocab import NUM_SPECIAL_ROWS, EntityVocab
from kebiolm.data.knowledge_base import KnowledgeBase
from kebiolm.data.shard_format import PackedShards
from kebiolm.errors import UserError
from kebiolm.transe.evaluate import evaluate
from kebiolm.transe.start_vectors import (
    Missing,
    StartVectors,
    align,
    read_text_vectors,
    save_transe,
    write_text_vectors,
)
from kebiolm.transe.train import TransESettings, train
from kebiolm.transe.triples import IndexedTriples, index_triples, split_heldout

Scope = Literal["kb", "shards"]


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What is trained on, measured and written. None of these is given by the paper.

    Attributes:
        training: see `TransESettings`.
        entities: "kb": all triples of the knowledge base are trained on, and the shards' entities are picked from the
            result; two entities of the corpus that meet only through one outside it still come to lie together.
            "shards": only triples between entities of the shards; a smaller model, but fewer entities have a triple.
        missing: how entities without triples start, "zero" or "gaussian".
        heldout: share of the triples that is kept out of the training and ranked afterwards, in [0, 1).
    """

    training: TransESettings = field(default_factory=TransESettings)
    entities: Scope = "kb"
    missing: Missing = "zero"
    heldout: float = 0.01

    def __post_init__(self) -> None:
        """Raise a UserError for a value out of range."""
        for option, got, choices in (
            ("--entities", self.entities, ("kb", "shards")),
            ("--missing", self.missing, ("zero", "gaussian")),
        ):
            if got not in choices:
                raise UserError(option, got=got, expected=" or ".join(choices), mend="choose one of these")
        if not 0 <= self.heldout < 1:
            raise UserError("--heldout", got=self.heldout, expected="a share in [0, 1)", mend="give 0.01, for example")


def run(
    kb: Path,
    shards: Path,
    out: Path,
    *,
    settings: RunSettings,
    text: Path | None = None,
    device: str = "cpu",
    overwrite: bool = False,
) -> StartVectors:
    """Train TransE on a knowledge base, write the start vectors of the shards' entities, print a table.

    Args:
        kb: folder made by `kebiolm kb build`.
        shards: folder made by `kebiolm pack`.
        out: the file to write; see `kebiolm.transe.start_vectors`.
        settings: see `RunSettings`.
        text: also write the vectors in the authors' text layout to this file.
        device: "cpu" or "cuda".
        overwrite: replace files that exist.

    Raises:
        UserError: an input is not what it should be, there are no triples, or an output cannot be written.
    """
    _check_device(device)
    for path in filter(None, (out, text)):
        _check_output(path, overwrite=overwrite)
    knowledge_base, vocab = KnowledgeBase.load(kb), PackedShards.load(shards).entity_vocab
    indexed = _triples(knowledge_base, vocab, settings.entities)
    sizes = {"num_entities": len(indexed.entities), "num_relations": len(indexed.relations)}
    seed = settings.training.seed
    used, heldout = split_heldout(indexed.triples, **sizes, fraction=settings.heldout, seed=seed)
    result = train(used, **sizes, settings=settings.training, device=device)

    entity_embeddings, has_triples = align(
        result.model.entities.cpu(), indexed.entities, vocab, missing=settings.missing, seed=seed
    )
    info: dict[str, Any] = {
        "settings": asdict(settings),
        "kb_fingerprint": knowledge_base.fingerprint,
        "counts": {
            "triples_used": len(used),
            "triples_heldout": len(heldout),
            "relations": len(indexed.relations),
            "entities_trained": len(indexed.entities),
            "entities_with_triples": int(has_triples.sum()),
            "entities_without_triples": len(vocab) - NUM_SPECIAL_ROWS - int(has_triples.sum()),
        },
        "metrics": {"loss_first_epoch": result.epoch_losses[0], "loss_last_epoch": result.epoch_losses[-1]},
    }
    if len(heldout):
        info["metrics"] |= asdict(evaluate(result.model, heldout, indexed.triples))
    vectors = StartVectors(
        entity_embeddings=entity_embeddings,
        has_triples=has_triples,
        relation_embeddings=result.model.relations.cpu(),
        relations=indexed.relations,
        info=info,
    )
    _write(vectors, vocab, out, text)
    _print_table(info, out, missing=settings.missing, triples_per_second=result.triples_per_second)
    return vectors


def run_from_text(
    source: Path, shards: Path, out: Path, *, missing: Missing = "zero", seed: int = 0, overwrite: bool = False
) -> StartVectors:
    """Bring vectors in the authors' text layout into the order of the shards' entities; nothing is trained.

    CUIs of the file that the shards do not have are left out.

    Raises:
        UserError: an input is not what it should be, or `out` cannot be written.
    """
    _check_output(out, overwrite=overwrite)
    RunSettings(missing=missing)
    vocab = PackedShards.load(shards).entity_vocab
    cuis, source_vectors = read_text_vectors(source)
    entity_embeddings, has_triples = align(source_vectors, cuis, vocab, missing=missing, seed=seed)
    taken = int(has_triples.sum())
    vectors = StartVectors(
        entity_embeddings=entity_embeddings,
        has_triples=has_triples,
        relation_embeddings=torch.zeros(0, source_vectors.shape[1]),
        relations=[],
        info={"settings": {"missing": missing, "seed": seed}, "counts": {"vectors_in_text_file": len(cuis)}},
    )
    _write(vectors, vocab, out, None)
    absent = len(vocab) - NUM_SPECIAL_ROWS - taken
    console.print(f"{out}: {taken} entities from {source}, {len(cuis) - taken} of its CUIs are not in the shards;")
    console.print(f"{absent} entities of the shards have no vector there and start {missing}")
    return vectors


def _triples(knowledge_base: KnowledgeBase, vocab: EntityVocab, scope: Scope) -> IndexedTriples:
    cuis = [vocab.cui(row) for row in range(NUM_SPECIAL_ROWS, len(vocab))]
    indexed = index_triples(knowledge_base.triples(), among=cuis if scope == "shards" else None)
    if len(indexed.triples) == 0:
        between = "two of its concepts" if scope == "kb" else "two entities of the shards"
        mend = "give --entities kb" if scope == "shards" else "build it from a META folder whose MRREL has RELA values"
        raise UserError(knowledge_base.path, got=f"no triple between {between}", expected="triples", mend=mend)
    return indexed


def _write(vectors: StartVectors, vocab: EntityVocab, out: Path, text: Path | None) -> None:
    save_transe(out, vectors, vocab)
    if text is not None:
        write_text_vectors(text, vectors, vocab)


def _print_table(info: dict[str, Any], out: Path, *, missing: Missing, triples_per_second: float) -> None:
    counts, metrics = info["counts"], info["metrics"]
    table = Table("TransE", str(out), title_justify="left")
    table.add_row("triples used / held out", f"{counts['triples_used']:,} / {counts['triples_heldout']:,}")
    table.add_row("relations", f"{counts['relations']:,}")
    table.add_row("entities trained", f"{counts['entities_trained']:,}")
    table.add_row("entities of the shards with triples", f"{counts['entities_with_triples']:,}")
    table.add_row(f"entities without triples (start {missing})", f"{counts['entities_without_triples']:,}")
    table.add_row("loss, first / last epoch", f"{metrics['loss_first_epoch']:.4f} / {metrics['loss_last_epoch']:.4f}")
    if "mrr" in metrics:
        table.add_row("held-out MRR (filtered)", f"{metrics['mrr']:.4f}")
        table.add_row("held-out Hits@1 / Hits@10", f"{metrics['hits_at_1']:.4f} / {metrics['hits_at_10']:.4f}")
    else:
        table.add_row("held-out MRR", "not measured: no triple held out")
    table.add_row("triples / s", f"{triples_per_second:,.0f}")
    console.print(table)


def _check_device(device: str) -> None:
    if device not in ("cpu", "cuda"):
        raise UserError("--device", got=device, expected="cpu or cuda", mend="choose one of these")
    if device == "cuda" and not torch.cuda.is_available():
        expected = "a CUDA device that this torch can use"
        raise UserError("--device", got="cuda, but torch finds none", expected=expected, mend="give --device cpu")


def _check_output(path: Path, *, overwrite: bool) -> None:
    """Refuse an output before the work, not after it."""
    if path.exists() and (path.is_dir() or not overwrite):
        got = "a folder" if path.is_dir() else "a file that exists"
        raise UserError(path, got=got, expected="a new file", mend="choose another file or give --overwrite")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        mend = "choose a file in a folder that you may write to"
        raise UserError(path, got=error, expected="a file that can be written", mend=mend) from None
