"""What is to be planned: sizes of model and data from the recipe, the shards' manifest and DeepSpeed's settings."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from kebiolm.data.shard_format import HELDOUT, TRAIN, PackedShards, ShardSplit
from kebiolm.errors import UserError
from kebiolm.training.config import ModelSection, PretrainConfig

ROW_MULTIPLE = 8
"""Rows of the entity table begin at multiples of so many numbers, as `kebiolm.training.initial_model` stores them."""
_LENGTH_MULTIPLE = 8  # of a batch's padded length, as the collator makes it
_SAMPLED_SEQUENCES = 512


@dataclass(frozen=True, kw_only=True)
class Data:
    """What the planner knows of the shards."""

    sequences: int
    heldout: int | None
    """None: not known."""
    length: int
    """L: positions of a sequence."""
    fill: float
    """Share of the positions that hold a piece."""
    mentions: float
    """Linked mentions of a sequence."""
    squared_segments: float
    """Sum over a sequence's segments of their length squared: what attention within segments computes."""
    pieces: int
    """V: size of the vocabulary."""
    entities: int
    """E: rows of the entity table."""
    source: str


@dataclass(frozen=True, kw_only=True)
class Model:
    """Sizes of the network."""

    hidden: int
    layers: int
    context_layers: int
    heads: int
    intermediate: int
    positions: int
    entity_size: int
    fusion_layer_norm: bool
    hidden_dropout: float
    attention_dropout: float

    @property
    def entity_columns(self) -> int:
        """Numbers of a stored row of the entity table."""
        return -(-self.entity_size // ROW_MULTIPLE) * ROW_MULTIPLE


@dataclass(frozen=True, kw_only=True)
class Zero:
    """What DeepSpeed's settings say of memory."""

    stage: int
    precision: str
    """"fp32", "fp16" or "bf16"."""
    accumulates_fp32: bool
    """Gradients of micro batches are added up in fp32 whatever the precision."""
    communicates_fp32: bool
    """Gradients are sent in fp32 whatever the precision."""
    bucket: int
    """Gradients that are sent at a time."""
    overlaps: bool
    """Two buckets in turns."""
    offloads_optimizer: bool
    offloads_weights: bool

    @property
    def bytes(self) -> int:
        """Of a weight."""
        return 4 if self.precision == "fp32" else 2


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One run on so many processes."""

    config: PretrainConfig
    processes: int
    model: Model
    data: Data
    zero: Zero

    @property
    def micro_batches(self) -> int:
        """Micro batches of one process in one optimizer step."""
        return self.config.optimization.global_batch_size // (
            self.config.optimization.micro_batch_size * self.processes
        )

    @property
    def steps(self) -> int:
        """Optimizer steps of the run, counted as the loader does."""
        optimization = self.config.optimization
        samples = Fraction(str(optimization.epochs)) * self.data.sequences
        return optimization.max_steps or math.ceil(samples / optimization.global_batch_size)


# For a recipe whose shards are not there yet: the vocabularies of section 4.1; fill, mentions and segments as measured
# on 500 packed PubMed abstracts (two knowledge bases: fill 0.98 and 0.99, 31 and 37 mentions, 153,000 both times).
PAPER_LENGTH, PAPER_FILL, PAPER_MENTIONS, PAPER_PIECES, PAPER_ENTITIES = 512, 0.988, 35.0, 28_895, 477_039
PAPER_SQUARED_SEGMENTS = 153_000.0


def make_workload(config: PretrainConfig, processes: int, sequences: int | None) -> Workload:
    """Put together what a recipe, its shards and DeepSpeed's settings say.

    Args:
        config: the recipe.
        processes: number of GPUs.
        sequences: training sequences; None: those of the shards.

    Raises:
        UserError: the shards are not there and no number is given, a file is wrong, or the batch does not divide.
    """
    check_division(config, processes)
    zero = read_zero(config.deepspeed)
    data = read_data(config, sequences)
    return Workload(config=config, processes=processes, model=_model(config.model, data), data=data, zero=zero)


def check_division(config: PretrainConfig, processes: int) -> None:
    """Refuse a global batch that processes and micro batches do not divide, naming one that they do.

    Raises:
        UserError: with the numbers that would fit.
    """
    batch, micro = config.optimization.global_batch_size, config.optimization.micro_batch_size
    if batch % (micro * processes) == 0:
        return
    mend = f"set optimization.global_batch_size={math.ceil(batch / (micro * processes)) * micro * processes}"
    if batch % processes == 0:
        of_process = batch // processes
        fitting = max(size for size in range(1, micro + 1) if of_process % size == 0)
        mend += f" or optimization.micro_batch_size={fitting}"
    raise UserError(
        "optimization.global_batch_size",
        got=f"{batch} with micro_batch_size {micro} on {processes} GPUs",
        expected=f"a multiple of {micro} x {processes} = {micro * processes}",
        mend=mend,
    )


def read_data(config: PretrainConfig, sequences: int | None) -> Data:
    """Sizes of the shards, or of the paper's where there are none."""
    if config.shards.is_dir():
        return _data_of(PackedShards.load(config.shards), sequences)
    if sequences is None:
        raise UserError(
            config.shards,
            got="no such folder",
            expected="shards, or their number of sequences",
            mend="set shards=DIR, or give --sequences N to plan with the sizes of the paper",
        )
    return Data(
        sequences=sequences,
        heldout=None,
        length=PAPER_LENGTH,
        fill=PAPER_FILL,
        mentions=PAPER_MENTIONS,
        squared_segments=PAPER_SQUARED_SEGMENTS,
        pieces=PAPER_PIECES,
        entities=PAPER_ENTITIES,
        source=f"{config.shards} is not there: sizes of the paper (section 4.1), fill and mentions of real abstracts",
    )


def read_zero(path: Path) -> Zero:
    """DeepSpeed's settings, with its defaults.

    Raises:
        UserError: the file cannot be read, or has no ZeRO stage 1 to 3.
    """
    mend = "give one of deepspeed_configs/*.json"
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        zero = settings.get("zero_optimization", {})
        stage = zero.get("stage", 0)
    except FileNotFoundError:
        raise UserError(path, got="no such file", expected="a DeepSpeed JSON", mend=mend) from None
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(path, got=f"no settings ({error})", expected="a DeepSpeed JSON", mend=mend) from None
    if stage not in (1, 2, 3):
        raise UserError(path, got=f"ZeRO stage {stage}", expected="1, 2 or 3", mend=mend)
    enabled = [precision for precision in ("fp16", "bf16") if settings.get(precision, {}).get("enabled")]
    precision = enabled[0] if enabled else "fp32"
    return Zero(
        stage=stage,
        precision=precision,
        accumulates_fp32=settings.get("data_types", {}).get("grad_accum_dtype") == "fp32" and precision != "fp32",
        communicates_fp32=settings.get("communication_data_type") == "fp32" and precision != "fp32",
        bucket=int(zero.get("reduce_bucket_size", 5e8)),
        overlaps=bool(zero.get("overlap_comm", stage == 3)),
        offloads_optimizer=_device(zero, "offload_optimizer") == "cpu",
        offloads_weights=_device(zero, "offload_param") == "cpu",
    )


def _device(zero: dict[str, Any], key: str) -> str:
    return (zero.get(key) or {}).get("device", "none")


def _data_of(shards: PackedShards, sequences: int | None) -> Data:
    fill, mentions, squared_segments = _look_at(shards.train, shards.max_length)
    return Data(
        sequences=len(shards.train) if sequences is None else sequences,
        heldout=len(shards.heldout),
        length=-(-shards.max_length // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE,
        fill=fill,
        mentions=mentions,
        squared_segments=squared_segments,
        pieces=shards.manifest["tokenizer"]["vocab_size"],
        entities=len(shards.entity_vocab),
        source=f"{shards.path}: {TRAIN} {len(shards.train):,}, {HELDOUT} {len(shards.heldout):,} sequences",
    )


def _look_at(split: ShardSplit, length: int) -> tuple[float, float, float]:
    """Fill, mentions and squared segments of a sequence, means over evenly spaced ones."""
    count = min(len(split), _SAMPLED_SEQUENCES)
    if not count:
        raise UserError("shards", got="no training sequence", expected="at least one", mend="pack more documents")
    fill = mentions = squared = 0.0
    for number in range(count):
        sequence = split[number * len(split) // count]
        ends = [*sequence.document_starts.tolist()[1:], len(sequence)]
        padding = length - len(sequence)
        segments = [end - start for start, end in zip(sequence.document_starts.tolist(), ends, strict=True)]
        fill += len(sequence) / length
        mentions += len(sequence.mention_starts)
        squared += sum(size**2 for size in (*segments, padding))
    return fill / count, mentions / count, squared / count


def _model(section: ModelSection, data: Data) -> Model:
    sizes = {
        "hidden": section.hidden_size,
        "layers": section.num_hidden_layers,
        "heads": section.num_attention_heads,
        "intermediate": section.intermediate_size,
        "positions": data.length,
    }
    if section.init_from is not None:
        sizes |= _sizes_of_checkpoint(section.init_from)
    return Model(
        **sizes,
        context_layers=section.num_context_layers,
        entity_size=section.entity_size,
        fusion_layer_norm=section.fusion_layer_norm,
        hidden_dropout=section.hidden_dropout_prob,
        attention_dropout=section.attention_probs_dropout_prob,
    )


def _sizes_of_checkpoint(folder: Path) -> dict[str, int]:
    """Sizes that the start checkpoint decides; BERT-base where it is not there yet (the recipe's own default)."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return {
            "hidden": config["hidden_size"],
            "layers": config["num_hidden_layers"],
            "heads": config["num_attention_heads"],
            "intermediate": config["intermediate_size"],
            "positions": config["max_position_embeddings"],
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            folder, got=f"no usable config.json ({error})", expected="a BERT checkpoint", mend="set model.init_from"
        ) from None
