"""What `bench_knn_entity_attention` runs: inputs, and every peer on them.

A peer that does a part of the work only says so in `PEERS`, and is given no more than that part to do.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from kebiolm.kernels import KnnEntityAttentionOutput, knn_entity_attention

ENTITIES, SIZE, K = 477_039, 100, 100
NAIVE_AT_ONCE = 800
"""Mentions on a CPU; 3,200 at once would hold more than 20 GB, so they are done in pieces."""
MENTIONS_AT_ONCE = 200
"""Of the peers that work in chunks."""
FORWARD, BOTH = "forward", "forward + backward"
OURS = ("tiled", "cpu", "triton", "cuda")

PEERS = {
    "naive": "plain PyTorch, autograd: all scores, logsumexp, topk, softmax, weighted sum (on a CPU in pieces of 800)",
    "matmul": "only h @ table.T; backward: also its two gradients. Does a part of the work, and allocates M x E",
    "faiss": "faiss IndexFlatIP.search, only the nearest: no log-sum-exp, no weighted sum, no gradients",
    "linear_cross_entropy + topk": "F.linear_cross_entropy and topk, both in chunks of 200 mentions (automatic chunks "
    "would have one mention here): loss, gradients and nearest, but no attention and no gradient through it",
    "torch.compile": "the naive code under torch.compile",
    "Liger + topk": "Liger's fused linear cross entropy, and topk over chunks of mentions: no attention",
    "CCE + topk": "cut-cross-entropy without its gradient filter, and topk over chunks of mentions: no attention",
    "tiled": "this operator, PyTorch tiles",
    "cpu": "this operator, compiled for the CPU",
    "triton": "this operator, Triton kernels",
    "cuda": "this operator, CUDA kernels for V100 (fp16)",
}


@dataclass(frozen=True)
class Inputs:
    """h [M, d], table [E, d], gold [M], and the gradient of att."""

    h: Tensor
    table: Tensor
    gold: Tensor
    grad_att: Tensor


def make_table(device: str, dtype: torch.dtype, entities: int = ENTITIES) -> Tensor:
    """Entities with standard normal values, divided by the root of the entity size."""
    table = torch.randn(entities, SIZE, generator=torch.Generator().manual_seed(0)) / SIZE**0.5
    return table.to(device, dtype)


def make_inputs(table: Tensor, mentions: int, kind: str, seed: int = 0) -> Inputs:
    """`usual`: scores with a standard deviation of 3; `flat`: 0.01; `peaked`: the gold entity has almost all of P."""
    generator = torch.Generator().manual_seed(mentions + 10_000 * seed)
    gold = torch.randint(0, len(table), (mentions,), generator=generator)
    noise = torch.randn(mentions, SIZE, generator=generator)
    near_gold = table[gold.to(table.device)].float().cpu() * 25
    h = {"usual": noise * 3, "flat": noise * 0.01, "peaked": near_gold + noise}[kind]
    grad_att = torch.randn(mentions, SIZE, generator=generator)
    on_device = [tensor.to(table.device, table.dtype) for tensor in (h, grad_att)]
    return Inputs(on_device[0], table, gold.to(table.device), on_device[1])


def naive(h: Tensor, table: Tensor, gold: Tensor, k: int = K) -> KnnEntityAttentionOutput:
    """Equation 3 and the terms of equation 10, as one would write them; softmax and log-sum-exp in fp32."""
    logits = h @ table.T
    topk_val, topk_idx = logits.topk(k, dim=1)
    weights = topk_val.float().softmax(dim=1).to(table.dtype)
    att = (weights.unsqueeze(1) @ F.embedding(topk_idx, table)).squeeze(1)
    gold_logit = logits.gather(1, gold.unsqueeze(1)).squeeze(1).float()
    return KnnEntityAttentionOutput(att, logits.float().logsumexp(dim=1), gold_logit, topk_val, topk_idx)


def both(operator: Callable, at_once: int, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Forward and backward of the linking loss and of something that reads att; returns the two gradients."""
    h, table = inputs.h.detach().requires_grad_(), inputs.table.detach().requires_grad_()
    pieces = (h.split(at_once), inputs.gold.split(at_once), inputs.grad_att.split(at_once))
    for h_part, gold, grad_att in zip(*pieces, strict=True):
        out = operator(h_part, table, gold)
        loss = (out.lse - out.gold_logit).sum() + (out.att * grad_att).sum().float()
        (loss / len(h)).backward()
    return h.grad, table.grad


def find_peers(table: Tensor) -> dict[str, dict[str, Callable[[Inputs], object]]]:
    """Part of the work -> peer -> function, for what is installed and can run where the table lies."""
    forward: dict[str, Callable] = {"naive": _naive_forward, "matmul": lambda inputs: inputs.h @ inputs.table.T}
    backward: dict[str, Callable] = {"naive": partial(both, naive, NAIVE_AT_ONCE), "matmul": _matmul_both}
    if table.is_cuda:
        backward["naive"] = partial(both, naive, 1 << 30)
        _add_gpu_peers(forward, backward)
        ours = ["tiled", "triton", *(["cuda"] if table.dtype == torch.float16 else [])]
    else:
        ours = ["tiled", "cpu"] if table.dtype == torch.float32 else ["tiled"]
        if table.dtype == torch.float32 and importlib.util.find_spec("faiss"):
            forward["faiss"] = _faiss_search(table)
    if hasattr(torch.nn, "LinearCrossEntropyOptions"):
        backward["linear_cross_entropy + topk"] = _torch_linear_cross_entropy
    for backend in ours:
        operator = partial(knn_entity_attention, k=K, backend=backend)
        forward[backend] = lambda inputs, operator=operator: operator(inputs.h, inputs.table, inputs.gold)
        backward[backend] = partial(both, operator, 1 << 30)
    return {FORWARD: forward, BOTH: backward}


def with_wide_rows(inputs: Inputs) -> Inputs:
    """The same numbers with zeros behind them, as training stores them for GPUs: rows of a multiple of 16 bytes."""
    wide = [F.pad(tensor, (0, -SIZE % 8)) for tensor in (inputs.h, inputs.table, inputs.grad_att)]
    return Inputs(wide[0], wide[1], inputs.gold, wide[2])


def exact(work: str, inputs: Inputs) -> dict[str, Tensor]:
    """What the results should be: naive in fp32 whatever the dtype of the inputs, a few mentions at a time."""
    inputs = Inputs(inputs.h.float(), inputs.table.float(), inputs.gold, inputs.grad_att.float())
    if work == BOTH:
        return dict(zip(("grad_h", "grad_table"), both(naive, MENTIONS_AT_ONCE, inputs), strict=True))
    found = _naive_forward(inputs)
    return {name: getattr(found, name) for name in ("att", "lse", "gold_logit", "topk_val")}


def _naive_forward(inputs: Inputs) -> KnnEntityAttentionOutput:
    at_once = 1 << 30 if inputs.h.is_cuda else NAIVE_AT_ONCE
    pieces = zip(inputs.h.split(at_once), inputs.gold.split(at_once), strict=True)
    parts = zip(*(naive(h, inputs.table, gold) for h, gold in pieces), strict=True)
    return KnnEntityAttentionOutput(*(torch.cat(part) for part in parts))


def _matmul_both(inputs: Inputs) -> None:
    logits = inputs.h @ inputs.table.T
    logits @ inputs.table
    logits.T @ inputs.h


def _faiss_search(table: Tensor) -> Callable[[Inputs], object]:
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatIP(SIZE)
    index.add(table.numpy())
    return lambda inputs: index.search(inputs.h.numpy(), K)


def _topk_in_chunks(inputs: Inputs) -> None:
    with torch.no_grad():
        for h in inputs.h.split(MENTIONS_AT_ONCE):
            (h @ inputs.table.T).topk(K, dim=1)


def _loss_and_topk(loss: Callable[[Tensor, Tensor, Tensor], Tensor], inputs: Inputs) -> tuple[Tensor, Tensor]:
    h, table = inputs.h.detach().requires_grad_(), inputs.table.detach().requires_grad_()
    loss(h, table, inputs.gold).backward()
    _topk_in_chunks(inputs)
    return h.grad, table.grad


def _forward_and_topk(loss: Callable[[Tensor, Tensor, Tensor], Tensor], inputs: Inputs) -> None:
    with torch.no_grad():
        loss(inputs.h, inputs.table, inputs.gold)
    _topk_in_chunks(inputs)


def _torch_linear_cross_entropy(inputs: Inputs) -> tuple[Tensor, Tensor]:
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=MENTIONS_AT_ONCE)
    return _loss_and_topk(lambda h, table, gold: F.linear_cross_entropy(h, table, gold, options=options), inputs)


def _add_gpu_peers(forward: dict[str, Callable], backward: dict[str, Callable]) -> None:
    # One for each number of mentions, with and without gradients; at its limit torch would go on without compiling.
    torch._dynamo.config.recompile_limit = 64
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    compiled = torch.compile(naive, dynamic=False)
    forward["torch.compile"] = lambda inputs: compiled(inputs.h, inputs.table, inputs.gold)
    backward["torch.compile"] = partial(both, compiled, 1 << 30)
    if importlib.util.find_spec("liger_kernel"):
        from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction as Liger

        backward["Liger + topk"] = partial(_loss_and_topk, lambda h, table, gold: Liger.apply(h, table, gold)[0])
        forward["Liger + topk"] = lambda inputs: _forward_and_topk(lambda *of: Liger.apply(*of)[0], inputs)
    if importlib.util.find_spec("cut_cross_entropy"):
        from cut_cross_entropy import linear_cross_entropy

        loss = partial(linear_cross_entropy, filter_eps=None)
        backward["CCE + topk"] = partial(_loss_and_topk, loss)
        forward["CCE + topk"] = partial(_forward_and_topk, loss)
