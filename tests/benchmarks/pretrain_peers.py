"""What `bench_pretrain` runs: the trainer's own step, and the two ways of training it is compared with.

Each peer takes the documents of one shards folder in the loader's order, through the same DeepSpeed settings, in one
process; only model and layout of the batch differ. Shape letters: B rows, L positions, H hidden size, V pieces, E
entities, W mentions of the row with most of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import BertConfig, BertForMaskedLM
from transformers.models.bert.modeling_bert import BertEmbeddings, BertLayer, BertOnlyMLMHead

from kebiolm.data.collator import Batch, PretrainingCollator
from kebiolm.data.loader import PretrainingLoader
from kebiolm.data.shard_format import PackedSequence, PackedShards
from kebiolm.model import KeBioLMConfig, KeBioLMForPreTraining
from kebiolm.training.config import OptimizationSection
from kebiolm.training.deepspeed_engine import load_deepspeed_settings, make_engine
from kebiolm.training.train_step import TrainStep, to_device

SETTINGS = Path(__file__).resolve().parents[2] / "deepspeed_configs"
SEED = 0
ENTITY_SIZE, NEIGHBOURS, MAX_MENTIONS = 100, 100, 50
_MANY_STEPS = 1_000_000
_PREPARED_BATCHES = 32


@dataclass(frozen=True)
class Sizes:
    """Of models and batches; equal for all peers."""

    layers: int
    hidden: int
    entities: int
    rows: int
    """Packed sequences of a step, and padded rows of the released way."""
    dtype: str
    """fp32, bf16 or fp16."""
    dropout: float


@dataclass(frozen=True)
class Work:
    """What one step works on."""

    real: int
    """Positions without padding."""
    processed: int
    """Positions with it."""
    squares: int
    """Sum over documents of their squared lengths: what attention inside documents costs."""
    targets: int
    """Masked positions."""
    mentions: int


Step = Callable[[], Work]


def make_packed(shards: PackedShards, sizes: Sizes, *, with_entities: bool = True) -> Step:
    """The trainer as built, on packed sequences; without entities only its encoder and masked-language-model task."""
    config = KeBioLMConfig(
        **_common(shards, sizes),
        num_context_layers=sizes.layers * 2 // 3,
        num_entities=sizes.entities,
        entity_size=ENTITY_SIZE,
        entity_row_size=104,
    )
    model = KeBioLMForPreTraining(config)
    if not with_entities:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(
                not any(part in name for part in ("mention_detector", "entity_", "bert.layer_norm"))
            )
    train_step = TrainStep(_engine(model, sizes), learning_rate=lambda step: 5e-5, seed=SEED, rank=0, world_size=1)
    train_step.engine.train()
    steps = make_loader(shards, sizes.rows).iterate(0, _MANY_STEPS)

    def step() -> Work:
        number, batches = next(steps)
        train_step(number, batches if with_entities else [_without_entities(batch) for batch in batches])
        return _count(batches[0])

    return step


def make_bert(shards: PackedShards, sizes: Sizes) -> Step:
    """Hugging Face's BertForMaskedLM: a document a row, padded to the batch's longest; about as many positions."""
    model = BertForMaskedLM(_bert_config(shards, sizes))
    engine = _engine(model, sizes)
    engine.train()
    rows = round(sizes.rows * shards.max_length / _mean_document(shards))
    batches = _documents(shards, rows)

    def step() -> Work:
        batch = next(batches)
        work, batch = _count(batch), to_device(batch, engine.device)
        loss = engine(
            batch["input_ids"],
            attention_mask=(batch["document_index"] > 0).long(),
            position_ids=batch["position_ids"],
            labels=batch["mlm_labels"],
        ).loss
        engine.backward(loss)
        engine.step()
        return work

    return step


def make_released(shards: PackedShards, sizes: Sizes) -> Step:
    """The released way: a document a row, padded to full length, all logits of pieces and entities at once."""
    model = ReleasedWay(_bert_config(shards, sizes, attention="eager"), sizes)
    engine = _engine(model, sizes)
    engine.train()
    batches = _documents(shards, sizes.rows, pad_to_max=True)

    def step() -> Work:
        batch = next(batches)
        work = _count(batch)
        engine.backward(engine(to_device(batch, engine.device)))
        engine.step()
        return work

    return step


PEERS = {
    "kebiolm": make_packed,
    "kebiolm, text only": lambda shards, sizes: make_packed(shards, sizes, with_entities=False),
    "bert": make_bert,
    "released way": make_released,
}


class ReleasedWay(nn.Module):
    """KeBioLM as its published code computes it: mentions in a Python loop, scores of every piece and every entity.

    The layers are those of Hugging Face with its plain ("eager") attention, as in the version that the code needs.
    """

    def __init__(self, config: BertConfig, sizes: Sizes) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.embeddings = BertEmbeddings(config)
        self.context = nn.ModuleList(BertLayer(config) for _ in range(sizes.layers * 2 // 3))
        self.recontext = nn.ModuleList(BertLayer(config) for _ in range(sizes.layers - sizes.layers * 2 // 3))
        self.mention_detector = nn.Linear(hidden, 3)
        self.projection = nn.Linear(2 * hidden, ENTITY_SIZE)
        self.entity_embeddings = nn.Linear(ENTITY_SIZE, sizes.entities, bias=False)
        self.entity_context_projection = nn.Linear(ENTITY_SIZE, hidden)
        self.layer_norm = nn.LayerNorm(hidden, eps=config.layer_norm_eps)
        self.predictions = BertOnlyMLMHead(config)
        self.predictions.predictions.decoder.weight = self.embeddings.word_embeddings.weight

    def forward(self, batch: Batch) -> Tensor:
        """The sum of the three mean losses."""
        text = batch["document_index"] > 0
        mask = torch.zeros(text.shape, dtype=self.projection.weight.dtype, device=text.device)
        mask = mask.masked_fill(~text, torch.finfo(mask.dtype).min)[:, None, None, :]
        hidden = self.embeddings(batch["input_ids"], position_ids=batch["position_ids"])
        for layer in self.context:
            hidden = _first(layer(hidden, mask))
        bio_logits = self.mention_detector(hidden)
        spans = _spans_by_loop(batch["bio_labels"])
        pooled = torch.stack(
            [
                torch.stack([torch.cat([hidden[row, start], hidden[row, end - 1]]) for start, end in of_row])
                for row, of_row in enumerate(spans)
            ]
        )  # [B, W, 2 H]
        logits = self.entity_embeddings(self.projection(pooled))  # [B, W, E]
        values, rows = logits.topk(NEIGHBOURS)
        found = (values.softmax(-1).unsqueeze(-1) * self.entity_embeddings.weight[rows]).sum(2)
        additions = self.entity_context_projection(found)
        written = torch.zeros_like(hidden)
        for row, of_row in enumerate(spans):
            for number, (start, end) in enumerate(of_row):
                written[row, start : end + 1] = additions[row, number]  # one token too many, as published
        hidden = self.layer_norm(hidden + written)
        for layer in self.recontext:
            hidden = _first(layer(hidden, mask))
        piece_logits = self.predictions(hidden)  # [B, L, V]
        gold = _gold_rows(batch, len(spans), len(spans[0]))
        losses = (
            (piece_logits, batch["mlm_labels"]),
            (bio_logits, batch["bio_labels"]),
            (logits, gold),
        )
        return torch.stack([cross_entropy(of.flatten(0, 1), labels.flatten()) for of, labels in losses]).sum()


def make_loader(shards: PackedShards, rows: int) -> PretrainingLoader:
    """The trainer's loader for one process."""
    collator = PretrainingCollator.from_shards(shards, seed=SEED)
    return PretrainingLoader(
        shards.train, collator, seed=SEED, global_batch_size=rows, micro_batch_size=rows, max_steps=_MANY_STEPS
    )


def _common(shards: PackedShards, sizes: Sizes) -> dict[str, Any]:
    return {
        "vocab_size": shards.manifest["tokenizer"]["vocab_size"],
        "hidden_size": sizes.hidden,
        "intermediate_size": 4 * sizes.hidden,
        "num_attention_heads": sizes.hidden // 64,
        "num_hidden_layers": sizes.layers,
        "max_position_embeddings": shards.max_length,
        "hidden_dropout_prob": sizes.dropout,
        "attention_probs_dropout_prob": sizes.dropout,
    }


def _bert_config(shards: PackedShards, sizes: Sizes, attention: str = "sdpa") -> BertConfig:
    config = BertConfig(**_common(shards, sizes))
    config._attn_implementation = attention
    return config


def _engine(model: nn.Module, sizes: Sizes) -> Any:
    settings = load_deepspeed_settings(SETTINGS / f"zero1_{sizes.dtype}.json")
    optimization = OptimizationSection(global_batch_size=1, micro_batch_size=1, max_steps=1)
    return make_engine(model, settings, optimization, 1)


def _documents(shards: PackedShards, rows: int, *, pad_to_max: bool = False) -> Iterator[Batch]:
    """Batches of documents one by one, in an order drawn once; a few, made before the clock runs, over and over."""
    collator = PretrainingCollator.from_shards(shards, seed=SEED, pad_to_max=pad_to_max)
    alone = [document for sequence in shards.train for document in _segments(sequence)]
    order = np.random.default_rng(SEED).permutation(len(alone))[: rows * _PREPARED_BATCHES]
    of_batches = order[: len(order) // rows * rows].reshape(-1, rows).tolist()
    return itertools.cycle([collator([alone[index] for index in ids], ids, [0] * rows) for ids in of_batches])


def _segments(sequence: PackedSequence) -> Iterator[PackedSequence]:
    """Each document of a packed sequence as a sequence of its own."""
    borders = [*sequence.document_starts.tolist(), len(sequence)]
    for number, (begin, end) in enumerate(itertools.pairwise(borders)):
        inside = (sequence.mention_starts >= begin) & (sequence.mention_starts < end)
        yield PackedSequence(
            input_ids=sequence.input_ids[begin:end],
            word_starts=sequence.word_starts[begin:end],
            bio_labels=sequence.bio_labels[begin:end],
            document_starts=np.zeros(1, dtype=np.int32),
            document_ids=sequence.document_ids[number : number + 1],
            mention_starts=sequence.mention_starts[inside] - begin,
            mention_ends=sequence.mention_ends[inside] - begin,
            mention_entities=sequence.mention_entities[inside],
        )


def _mean_document(shards: PackedShards) -> float:
    return float(np.mean([len(document) for sequence in shards.train for document in _segments(sequence)]))


def _without_entities(batch: Batch) -> Batch:
    """The same text without mentions and labels of entities."""
    none = {"mention_spans": batch["mention_spans"][:0], "entity_labels": batch["entity_labels"][:0]}
    return batch | none | {"bio_labels": torch.full_like(batch["bio_labels"], -100)}


def _count(batch: Batch) -> Work:
    index = batch["document_index"].numpy()
    lengths = np.concatenate([np.unique(row[row > 0], return_counts=True)[1] for row in index])
    return Work(
        real=int(lengths.sum()),
        processed=index.size,
        squares=int((lengths**2).sum()),
        targets=int((batch["mlm_labels"] != -100).sum()),
        mentions=len(batch["mention_spans"]),
    )


def _spans_by_loop(bio_labels: Tensor) -> list[list[tuple[int, int]]]:
    """Start and end of each mention, labels walked one by one on the host; rows filled up with (0, 1)."""
    spans = []
    for labels in bio_labels.cpu().numpy():
        of_row: list[tuple[int, int]] = []
        for position in range(1, len(labels)):
            if labels[position] == 1:
                end = position + 1
                while end < len(labels) and labels[end] == 2:
                    end += 1
                of_row.append((position, end))
        spans.append(of_row[:MAX_MENTIONS])
    width = max(1, *(len(of_row) for of_row in spans))
    return [of_row + [(0, 1)] * (width - len(of_row)) for of_row in spans]


def _gold_rows(batch: Batch, rows: int, width: int) -> Tensor:
    """[B, W] rows of the gold entities, -100 for none."""
    gold = torch.full((rows, width), -100)
    of_row = [0] * rows
    for row, entity in zip(batch["mention_spans"][:, 0].tolist(), batch["entity_labels"].tolist(), strict=True):
        if of_row[row] < width:
            gold[row, of_row[row]] = entity
            of_row[row] += 1
    return gold.to(batch["input_ids"].device)


def _first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output
