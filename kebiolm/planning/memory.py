"""Memory of one process: what DeepSpeed keeps, and the moments of a step that need most beside it.

A step has few moments at which memory can be highest: the begin of the backward pass (all activations and the head's
scores), the last layer's and the entity search's backward passes, the end of the backward pass (all gradients in bucket
and partition), the optimizer's update, and evaluation. Each is a sum of parts; the largest sum is the prediction. What
ZeRO keeps follows DeepSpeed 0.19.8 (`runtime/zero/stage_1_and_2.py`, `stage3.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

from kebiolm.planning.activations import Activations, count_activations
from kebiolm.planning.cards import Card
from kebiolm.planning.parameters import Parameters, count_parameters
from kebiolm.planning.workload import Workload

MIB = 2**20
WEIGHTS, MASTER, ADAM = "weights", "fp32 master weights", "AdamW's moments"
GRADIENTS, BUCKETS = "gradients", "gradient buckets"
ACTIVATIONS, ATTENTION, HEAD = "activations", "attention weights", "language-model head"
SEARCH, RUNTIME, RESERVE = "entity search", "libraries", "allocator"
PARTS = (
    WEIGHTS,
    MASTER,
    ADAM,
    GRADIENTS,
    BUCKETS,
    ACTIVATIONS,
    ATTENTION,
    HEAD,
    SEARCH,
    RUNTIME,
    RESERVE,
)

_CUDA_CONTEXT = 600 * MIB  # assumed: context, cuBLAS, kernels
_NCCL = 400 * MIB  # assumed: buffers of several processes
_CPU_RUNTIME = 60 * MIB  # measured: libraries and their work space, beyond what is there before the model is made
_FRAGMENTATION = 0.10  # assumed, of what comes and goes on a GPU

Parts = dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Predicted memory of one process, in bytes."""

    moment: str
    """When it is highest."""
    parts: Parts
    """What is held at that moment, in the order of `PARTS`."""
    host: int
    """Held in the host's memory by offloading."""
    entity_table: int
    """Of `parts` and `host`: the entity table's weights, master weights, moments and gradient."""
    moments: dict[str, int]
    """Total at every moment."""

    @property
    def total(self) -> int:
        """Bytes of the card."""
        return sum(self.parts.values())


def predict_memory(workload: Workload, card: Card) -> Memory:
    """Predict the highest memory of one process."""
    parameters = count_parameters(workload.model, workload.data)
    activations = count_activations(workload, card)
    kept = _kept(workload, parameters)
    offloaded = _offloaded(workload, parameters)
    host = sum(offloaded.values())
    if card.is_cpu:  # the host's memory is the card's
        kept, host = _add(kept, offloaded), 0
    kept[RUNTIME] = _runtime(workload, card)
    moments = _moments(workload, card, parameters, activations)
    totals = {}
    for name, beside in moments.items():
        parts = moments[name] = _add(kept, beside)
        if not card.is_cpu:
            comes_and_goes = sum(parts.get(part, 0) for part in (GRADIENTS, ACTIVATIONS, ATTENTION, HEAD, SEARCH))
            parts[RESERVE] = int(_FRAGMENTATION * comes_and_goes)
        totals[name] = sum(parts.values())
    highest = max(totals, key=lambda name: totals[name])
    return Memory(
        moment=highest,
        parts={part: moments[highest][part] for part in PARTS if moments[highest].get(part)},
        host=host,
        entity_table=_entity_table(workload, parameters),
        moments=totals,
    )


def _kept(workload: Workload, parameters: Parameters) -> Parts:
    """What stays on the card from step to step."""
    zero, processes = workload.zero, workload.processes
    trained = parameters.trained(freeze_entities=workload.config.entities.freeze)
    share = -(-trained // processes)
    kept = {WEIGHTS: parameters.total * zero.bytes}
    if not zero.offloads_optimizer:
        kept |= {MASTER: share * 4, ADAM: share * 8}
    if zero.stage == 3:
        kept[WEIGHTS] = 0 if zero.offloads_weights else -(-parameters.total // processes) * zero.bytes
        if not zero.offloads_optimizer:
            kept[GRADIENTS] = share * _accumulator_bytes(workload)
        kept[BUCKETS] = 0  # allocated once; `_buckets` says when how much of it is used
    return kept


def _offloaded(workload: Workload, parameters: Parameters) -> Parts:
    """What stays in the host's memory."""
    zero, processes = workload.zero, workload.processes
    share = -(-parameters.trained(freeze_entities=workload.config.entities.freeze) // processes)
    offloaded: Parts = {}
    if zero.offloads_optimizer:
        # Gradients as the optimizer takes them, and as they are added up.
        offloaded = {MASTER: share * 4, ADAM: share * 8, GRADIENTS: share * (4 + _accumulator_bytes(workload))}
    if zero.offloads_weights:
        offloaded[WEIGHTS] = -(-parameters.total // processes) * zero.bytes
    return offloaded


def _accumulator_bytes(workload: Workload) -> int:
    return 4 if workload.zero.accumulates_fp32 else workload.zero.bytes


def _moments(workload: Workload, card: Card, parameters: Parameters, activations: Activations) -> dict[str, Parts]:
    """What is held beside `_kept` at the moments of the last micro batch of a step."""
    zero, model = workload.zero, workload.model
    is_frozen = workload.config.entities.freeze
    trained = parameters.trained(freeze_entities=is_frozen)
    share = -(-trained // workload.processes)
    words = parameters.words * zero.bytes
    entities = 0 if is_frozen else parameters.entities * zero.bytes
    before = _gradients_before(workload, trained, share)
    gathered = _gathered_weights(workload, parameters)
    all_layers = _saved(activations, model.layers, workload)
    lower_layers = _saved(activations, model.context_layers, workload)
    started = _buckets(workload, card, trained=0)
    full = _buckets(workload, card, trained=trained)
    first = full if zero.stage == 3 and not card.is_cpu else {}  # stage 3 has its bucket from the start
    moments = {
        "begin of the backward pass": _add(all_layers, gathered, first, {GRADIENTS: before, HEAD: activations.head}),
        "last layer's backward pass": _add(
            all_layers, gathered, started, {GRADIENTS: before + words, ACTIVATIONS: activations.layer_backward}
        ),
        "entity search's backward pass": _add(
            lower_layers,
            gathered,
            started,
            {GRADIENTS: before + words + entities, SEARCH: activations.search},
        ),
        "end of the backward pass": _add(full, {GRADIENTS: _gradients_at_end(workload, card, trained, share)}),
        "optimizer's update": _update(workload, parameters, share),
        "evaluation": _add(gathered, first, {ACTIVATIONS: activations.evaluation}),
    }
    at_end = moments["end of the backward pass"]
    if zero.stage != 3:
        # The table's gradient lives until the end; with accumulation so does the words' newest one.
        at_end[GRADIENTS] += entities + (words if zero.stage == 1 and workload.micro_batches > 1 else 0)
    return moments


def _gradients_before(workload: Workload, trained: int, share: int) -> int:
    """Gradients of the step's earlier micro batches."""
    zero = workload.zero
    if workload.micro_batches == 1 or zero.stage == 3 or zero.offloads_optimizer:
        return 0
    if zero.stage == 1:
        return trained * _accumulator_bytes(workload)
    return share * _accumulator_bytes(workload)


def _gradients_at_end(workload: Workload, card: Card, trained: int, share: int) -> int:
    """Gradients outside of the buckets when the last one has come."""
    zero = workload.zero
    reduced = min(zero.bucket, trained)
    if zero.stage == 3:
        # What is sent, laid together; a CPU's library copies it once more.
        sent = reduced * (4 if zero.communicates_fp32 else zero.bytes)
        return sent * (2 if card.is_cpu else 1)
    in_partition = share * _accumulator_bytes(workload)
    if zero.stage == 2 and workload.micro_batches > 1 and not zero.accumulates_fp32:
        in_partition *= 2  # those so far, and this micro batch's
    if zero.communicates_fp32:
        # Sent as a copy in fp32, before the partition is filled unless that is made beforehand.
        return reduced * 4 + (in_partition if zero.accumulates_fp32 else 0)
    return in_partition


def _buckets(workload: Workload, card: Card, *, trained: int) -> Parts:
    """Gradient buckets; a GPU holds them whole, a CPU the pages of it that were written.

    Args:
        workload: the run.
        card: where.
        trained: gradients that were put into them so far, over all buckets.
    """
    zero = workload.zero
    size = 4 if zero.communicates_fp32 and zero.stage == 3 else zero.bytes
    elements = zero.bucket * (2 if zero.overlaps and zero.stage != 3 else 1)
    return {BUCKETS: (min(elements, trained) if card.is_cpu else elements) * size}


def _gathered_weights(workload: Workload, parameters: Parameters) -> Parts:
    """Stage 3 collects all weights for the forward pass: DeepSpeed's limit of live ones is larger than this model."""
    if workload.zero.stage != 3 or workload.processes == 1:
        return {}
    return {WEIGHTS: parameters.total * workload.zero.bytes}


def _saved(activations: Activations, layers: int, workload: Workload) -> Parts:
    """Activations of so many layers."""
    attention = 0 if workload.config.optimization.activation_checkpointing else activations.attention * layers
    states = activations.kept_of_layer * layers - attention
    return {ACTIVATIONS: states + activations.outside, ATTENTION: attention}


def _update(workload: Workload, parameters: Parameters, share: int) -> Parts:
    """The optimizer takes one group after the other: its gradients as one piece of fp32."""
    zero = workload.zero
    if zero.offloads_optimizer or zero.stage == 3:
        return {}
    largest = parameters.largest_group(freeze_entities=workload.config.entities.freeze)
    of_group = -(-largest // workload.processes)
    copies = 4 if _accumulator_bytes(workload) == 4 else 4 + zero.bytes
    temporaries = 0 if workload.config.optimization.fused else 8
    return {GRADIENTS: share * _accumulator_bytes(workload) + of_group * (copies + temporaries)}


def _entity_table(workload: Workload, parameters: Parameters) -> int:
    """Everything that exists once for each number of the table."""
    zero, processes = workload.zero, workload.processes
    weights = parameters.entities * zero.bytes // (processes if zero.stage == 3 else 1)
    if workload.config.entities.freeze:
        return weights
    return weights + parameters.entities * 12 // processes + parameters.entities * zero.bytes


def _runtime(workload: Workload, card: Card) -> int:
    if card.is_cpu:
        return _CPU_RUNTIME
    return _CUDA_CONTEXT + (_NCCL if workload.processes > 1 else 0)


def _add(*many: Parts) -> Parts:
    total: Parts = {}
    for parts in many:
        for name, size in parts.items():
            total[name] = total.get(name, 0) + size
    return total
