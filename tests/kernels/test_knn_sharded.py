"""The sharded operator in two processes (gloo) against the unsharded one in float64: results, gradients, bad calls."""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from kebiolm.kernels import knn_entity_attention
from kebiolm.kernels.knn_entity_attention.sharded import shard_rows, sharded_knn_entity_attention
from tests.kernels.test_knn_backends import DIFFERENTIABLE, assert_near

RANKS = 2
SECONDS_FOR_ALL_CASES = 120


@dataclass(frozen=True)
class Case:
    """A call on both ranks; two entries where they differ."""

    mentions: tuple[int, int] = (17, 30)
    entities: int = 133
    size: int = 7
    k: int = 20
    first_row: int = 3
    backend: str = "tiled"
    dtype: torch.dtype = torch.float32
    shards: tuple[int, int] | None = None
    """Rows of each; None: as `shard_rows` splits them."""
    through: tuple[tuple[str, ...], tuple[str, ...]] = (tuple(DIFFERENTIABLE),) * 2
    """Results that gradients come through."""
    frozen: str = ""
    with_gold: tuple[bool, bool] = (True, True)
    change: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None] = lambda h, table, gold: None
    """Changes the inputs of all ranks in place."""

    def inputs(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        """h, table and gold of all ranks, and what the gradients of the results are."""
        generator = torch.Generator().manual_seed(0)
        h = torch.randn(sum(self.mentions), self.size, generator=generator)
        table = torch.randn(self.entities, self.size, generator=generator)
        gold = torch.randint(self.first_row, self.entities, (len(h),), generator=generator)
        gold[::5] = -100
        self.change(h, table, gold)
        for rank, has_gold in enumerate(self.with_gold):
            if not has_gold:
                gold[self.own_mentions(rank)] = -100
        k = min(self.k, self.entities - self.first_row)
        shapes = {"att": (self.size,), "lse": (), "gold_logit": (), "topk_val": (k,)}
        grads = {name: torch.randn(len(h), *shape, generator=generator) for name, shape in shapes.items()}
        return h.to(self.dtype), table.to(self.dtype), gold, grads

    def own_mentions(self, rank: int) -> slice:
        """Which of all mentions are a rank's."""
        return slice(sum(self.mentions[:rank]), sum(self.mentions[: rank + 1]))

    def own_rows(self, rank: int) -> slice:
        """Which rows of the table are a rank's."""
        if self.shards is None:
            rows = shard_rows(self.entities, RANKS, rank)
            return slice(rows.start, rows.stop)
        return slice(sum(self.shards[:rank]), sum(self.shards[: rank + 1]))


def _integers(h: torch.Tensor, table: torch.Tensor, gold: torch.Tensor) -> None:
    # Sums of such numbers are exact, so that equal scores are equal in any order of summation.
    h.mul_(2).round_()
    table.round_()


def _gold_of_others(h: torch.Tensor, table: torch.Tensor, gold: torch.Tensor) -> None:
    gold[:17], gold[17:] = len(table) - 1, 4


def _peaked(h: torch.Tensor, table: torch.Tensor, gold: torch.Tensor) -> None:
    gold.clamp_(min=3)
    h.copy_(table[gold] * 30)


def _infinite(h: torch.Tensor, table: torch.Tensor, gold: torch.Tensor) -> None:
    h[2, 1], h[20, 0] = float("inf"), float("nan")


def _nowhere_near(h: torch.Tensor, table: torch.Tensor, gold: torch.Tensor) -> None:
    # All neighbours of all mentions are in the second shard.
    h.abs_().add_(1)
    table[:67].abs_().neg_()
    table[67:].abs_()


ALONE = {f"through {name}": Case(through=((name,),) * 2) for name in DIFFERENTIABLE}
CASES: dict[str, Case] = {
    "tiled": Case(),
    "cpu": Case(backend="cpu", size=16),
    "reference": Case(backend="reference"),
    "float64": Case(dtype=torch.float64),
    **ALONE,
    "through lse and gold_logit": Case(through=(("lse", "gold_logit"),) * 2),
    "through other results on each rank": Case(through=(("att",), ("lse", "topk_val"))),
    "frozen table": Case(frozen="table"),
    "frozen h": Case(frozen="h"),
    "no mention on a rank": Case(mentions=(0, 9), backend="cpu"),
    "no mention at all": Case(mentions=(0, 0)),
    "no gold": Case(with_gold=(False, False)),
    "gold on one rank": Case(with_gold=(True, False)),
    "gold in the other's shard": Case(change=_gold_of_others),
    "k is more than a shard": Case(entities=31, k=25),
    "k is more than all": Case(entities=31, k=100),
    "k is 1": Case(k=1),
    "one entity": Case(entities=1, first_row=0),
    "unequal shards": Case(shards=(130, 3)),
    "a hidden shard": Case(entities=40, first_row=20),
    "the other hidden": Case(shards=(0, 133)),
    "first row in the second shard": Case(entities=40, first_row=26, backend="cpu"),
    "equal scores": Case(change=_integers, entities=400, k=50),
    "equal scores, cpu": Case(change=_integers, entities=400, k=50, backend="cpu"),
    "all neighbours in one shard": Case(change=_nowhere_near),
    "loss close to 0": Case(change=_peaked, through=(("lse", "gold_logit"),) * 2),
    "not finite": Case(change=_infinite),
}

# What each rank changes in a right call, and what both must say.
BAD_CALLS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "k of 0 on one rank": ({}, {"k": 0}, "k: got 0|rank 1: got arguments that it refuses"),
    "another k": ({}, {"k": 3}, r"k: got 3, not 4 as on rank 0|k: got .* on rank 1"),
    "another first_row": ({"first_row": 1}, {}, "first_row: got .* on rank 1"),
    "negative first_row": ({"first_row": -1}, {"first_row": -1}, r"first_row: got -1; expected a row in \[0, 20\)"),
    "first_row behind the end": ({"first_row": 20}, {"first_row": 20}, r"first_row: got 20; expected a row in \[0, 20"),
    "gold behind the end": ({}, {"gold": torch.tensor([20, 0, 0])}, r"gold: got 20 on rank 1; .* \[0, 20\)"),
    "negative gold": ({"gold": torch.tensor([0, -1, 0])}, {}, r"gold: got -1 on rank 0; .* \[0, 20\)"),
    "another size": ({}, {"h": torch.ones(3, 4), "table_shard": torch.ones(10, 4)}, "size: got 4, not 5 .* on rank 1"),
    "another dtype": ({}, {"h": torch.ones(3, 5).double()}, "dtypes: got others on rank 1"),
    "gradient on one rank": ({"h": torch.ones(3, 5, requires_grad=True)}, {}, "requires_grad: .* ranks 0 and 1"),
    "no table on one rank": ({}, {"table_shard": None}, "NoneType|rank 1: got arguments that it refuses"),
    "h is not a tensor": ({"h": [[1.0] * 5] * 3}, {}, "h: got list|rank 0: got arguments that it refuses"),
    "block": ({"block": 5}, {}, "block: got 5|rank 0: got arguments that it refuses"),
}


class _LargestTensor(TorchDispatchMode):
    """Keeps the size of the largest tensor that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


@dataclass
class Answer:
    """What a rank made of a case."""

    results: dict[str, torch.Tensor] = field(default_factory=dict)
    grad_h: torch.Tensor | None = None
    grad_table: torch.Tensor | None = None
    error: str = ""


def _answer(case: Case, rank: int) -> Answer:
    h, table, gold, grads = case.inputs()
    mentions = case.own_mentions(rank)
    h, table, gold = h[mentions].clone(), table[case.own_rows(rank)].clone(), gold[mentions]
    h.requires_grad_(case.frozen != "h")
    table.requires_grad_(case.frozen != "table")
    out = sharded_knn_entity_attention(
        h, table, gold if case.with_gold[rank] else None, case.k, first_row=case.first_row, backend=case.backend
    )
    sum((getattr(out, name) * grads[name][mentions]).sum() for name in case.through[rank]).backward()
    return Answer({name: part.detach() for name, part in out._asdict().items()}, h.grad, table.grad)


def _error_of_bad_call(changed: dict[str, Any]) -> str:
    right = {"h": torch.ones(3, 5), "table_shard": torch.ones(10, 5), "gold": torch.zeros(3, dtype=torch.int64), "k": 4}
    with pytest.raises(Exception) as caught:
        sharded_knn_entity_attention(**(right | changed))
    return str(caught.value)


def _largest_tensor() -> int:
    """Elements of the largest tensor that a forward and a backward pass make beside their inputs."""
    h, shard = torch.ones(6, 16, requires_grad=True), torch.ones(20_000, 16, requires_grad=True)
    with _LargestTensor() as largest:
        out = sharded_knn_entity_attention(h, shard, torch.zeros(6, dtype=torch.int64), 5, backend="tiled")
        (out.att.sum() + out.lse.sum()).backward()
    return largest.elements


def _run_rank(rank: int, folder: Path) -> None:
    """All cases in one process; what they give goes to a file."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=RANKS, timeout=timedelta(seconds=60)
    )
    answers: dict[str, Any] = {}
    for name, case in CASES.items():
        try:
            answers[name] = _answer(case, rank)
        except Exception:
            # The other rank then waits for this one in vain, so the first failure ends both.
            answers[name] = Answer(error=traceback.format_exc())
            break
    else:
        answers["again"] = _answer(CASES["cpu"], rank)
        answers["bad calls"] = {name: _error_of_bad_call(call[rank]) for name, call in BAD_CALLS.items()}
        answers["largest tensor"] = _largest_tensor()
    torch.save(answers, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each rank made of everything."""
    folder = tmp_path_factory.mktemp("sharded")
    processes = torch.multiprocessing.spawn(_run_rank, (folder,), nprocs=RANKS, join=False)
    try:
        processes.join(timeout=SECONDS_FOR_ALL_CASES)  # returns when one has ended
        assert processes.join(timeout=SECONDS_FOR_ALL_CASES), "a rank did not end"
    finally:
        for process in processes.processes:
            process.kill()
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(RANKS)]


@pytest.mark.parametrize("name", CASES)
def test_results_and_gradients_are_those_of_the_whole_table(answers: list[dict[str, Any]], name: str) -> None:
    case = CASES[name]
    h, table, gold, grads = case.inputs()
    exact_h, exact_table = (tensor.double().requires_grad_() for tensor in (h, table))
    exact = knn_entity_attention(exact_h, exact_table, gold, case.k, first_row=case.first_row, backend="reference")
    losses = [
        (getattr(exact, result)[mentions] * grads[result][mentions]).sum()
        for rank, through in enumerate(case.through)
        for mentions in [case.own_mentions(rank)]
        for result in through
    ]
    # A sum with no gradient, so that it is 0 and not absent where no mention has gold.
    (sum(losses) + 0 * exact.topk_val.sum()).backward()

    finite = exact.lse.isfinite() & exact.att.isfinite().all(dim=1)
    # The reference computes the peaked scores, up to some thousands, in float64.
    tolerance = 1e-10 if case.dtype == torch.float64 else 2e-5
    for rank in range(RANKS):
        answer, mentions, rows = answers[rank].get(name), case.own_mentions(rank), case.own_rows(rank)
        assert answer is not None, "a case before this one failed"
        assert not answer.error, answer.error
        kept = finite[mentions]
        for result in DIFFERENTIABLE:
            found, expected = answer.results[result], getattr(exact, result).detach()[mentions]
            assert found.dtype == case.dtype
            assert_near(found[kept], expected[kept], tolerance)
            assert torch.equal(found[~kept].isnan(), expected[~kept].isnan())
        found = answer.results["topk_idx"]
        if "equal scores" in name:
            assert torch.equal(found, exact.topk_idx[mentions])
        # Ranks of almost equal scores may differ, the scores may not.
        assert_near((h[mentions].double() @ table.double().T).gather(1, found)[kept], exact.topk_val[mentions][kept])
        assert all(len(set(row)) == len(row) for row in found.tolist())
        if case.frozen == "h":
            assert answer.grad_h is None
        else:
            assert_near(answer.grad_h[kept], exact_h.grad[mentions][kept], tolerance)
        if case.frozen == "table":
            assert answer.grad_table is None
        elif finite.all():
            assert_near(answer.grad_table, exact_table.grad[rows], tolerance)
            assert (answer.grad_table[: max(case.first_row - rows.start, 0)] == 0).all()
        else:
            assert torch.equal(answer.grad_table.isnan(), exact_table.grad[rows].isnan())


def test_the_same_bits_each_time(answers: list[dict[str, Any]]) -> None:
    for of_rank in answers:
        first, again = of_rank["cpu"], of_rank["again"]
        assert all(torch.equal(first.results[name], again.results[name]) for name in first.results)
        assert torch.equal(first.grad_h, again.grad_h) and torch.equal(first.grad_table, again.grad_table)


def test_no_rank_holds_more_than_its_shard(answers: list[dict[str, Any]]) -> None:
    # Beside a gradient of 20,000 rows there are the scores of 12 mentions.
    shard = 20_000 * 16
    for of_rank in answers:
        assert shard <= of_rank["largest tensor"] < 1.1 * shard


@pytest.mark.parametrize("name", BAD_CALLS)
def test_a_bad_call_is_refused_on_all_ranks(answers: list[dict[str, Any]], name: str) -> None:
    for of_rank in answers:
        assert "\n" not in of_rank["bad calls"][name]
        assert re.search(BAD_CALLS[name][2], of_rank["bad calls"][name])


def test_without_a_process_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "is_initialized", lambda: False)  # another test of this process may have made one
    with pytest.raises(ValueError, match="init_process_group"):
        sharded_knn_entity_attention(torch.ones(3, 5), torch.ones(10, 5))


@pytest.mark.parametrize("entities", [1, 7, 8, 477_039])
@pytest.mark.parametrize("ranks", [1, 2, 8])
def test_shards_are_even_and_hold_all_rows_in_order(entities: int, ranks: int) -> None:
    shards = [shard_rows(entities, ranks, rank) for rank in range(ranks)]
    assert [row for shard in shards for row in shard] == list(range(entities))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


def test_shards_of_nothing_are_refused() -> None:
    for arguments, words in [((0, 2, 0), "0 entities"), ((5, 0, 0), "world size 0"), ((5, 2, 2), "rank: got 2")]:
        with pytest.raises(ValueError, match=words):
            shard_rows(*arguments)
