from __future__ import annotations

import numpy as np
import pytest
import torch

from kebiolm.kernels import knn_entity_attention


@pytest.fixture(autouse=True, params=["cpu", "tiled", "reference"])
def forced_backend(request, monkeypatch):
    monkeypatch.setenv("KEBIOLM_KNN_BACKEND", request.param)


def inputs(
    num_mentions: int = 6, num_entities: int = 17, size: int = 5, dtype: torch.dtype = torch.float32, seed: int = 0
):
    generator = torch.Generator().manual_seed(seed)
    h = torch.randn(num_mentions, size, generator=generator).to(dtype).requires_grad_()
    table = torch.randn(num_entities, size, generator=generator).to(dtype).requires_grad_()
    gold = torch.randint(0, num_entities, (num_mentions,), generator=generator)
    return h, table, gold


@pytest.mark.parametrize("k", [1, 4, 17, 100])
def test_against_float64_loops(k):
    h, table, gold = inputs()
    gold[2] = -100
    out = knn_entity_attention(h, table, gold, k)
    for m in range(len(h)):
        scores = table.double() @ h[m].double()
        order = scores.argsort(descending=True)[: min(k, 17)]
        assert out.topk_idx[m].tolist() == order.tolist()
        torch.testing.assert_close(out.topk_val[m].double(), scores[order], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(out.lse[m].double(), scores.exp().sum().log(), atol=1e-5, rtol=1e-5)
        expected = scores[order].softmax(0) @ table[order].double()
        torch.testing.assert_close(out.att[m].double(), expected, atol=1e-5, rtol=1e-5)
        expected_gold = 0.0 if m == 2 else scores[gold[m]].item()
        assert out.gold_logit[m].item() == pytest.approx(expected_gold, abs=1e-5)


def test_gradients_against_finite_differences():
    # With this seed no step below changes which entities are nearest: there the output jumps.
    h, table, gold = inputs(num_mentions=3, num_entities=7, size=2, seed=6)
    gold[0] = -100
    weights = torch.randn(3, 2, generator=torch.Generator().manual_seed(1))

    def scalar(h: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        out = knn_entity_attention(h, table, gold, 3)
        return (out.att * weights).sum() + out.lse.sum() - 2 * out.gold_logit.sum()

    gradients = torch.autograd.grad(scalar(h, table), (h, table))
    step = 1e-2
    for which, gradient in enumerate(gradients):
        for place in torch.cartesian_prod(*(torch.arange(n) for n in gradient.shape)).tolist():
            values = []
            for sign in (1, -1):
                moved = [h.detach().clone(), table.detach().clone()]
                moved[which][tuple(place)] += sign * step
                values.append(scalar(*moved).item())
            assert (values[0] - values[1]) / (2 * step) == pytest.approx(gradient[tuple(place)].item(), abs=2e-3)


def test_no_mentions_still_has_a_graph():
    h, table, gold = inputs(num_mentions=0)
    out = knn_entity_attention(h, table, gold, 4)
    assert [tuple(t.shape) for t in out] == [(0, 5), (0,), (0,), (0, 4), (0, 4)]
    (out.att.sum() + out.lse.sum() + out.gold_logit.sum()).backward()
    assert h.grad.shape == (0, 5)
    assert table.grad.abs().sum() == 0


def test_whole_numbers_of_numpy_are_taken():
    h, table, gold = inputs()
    expected = knn_entity_attention(h, table, gold, 4, first_row=0)
    found = knn_entity_attention(h, table, gold, np.int64(4), first_row=np.int32(0), block=np.int64(32))
    assert torch.equal(found.att, expected.att)


def test_no_gold():
    h, table, _ = inputs()
    assert knn_entity_attention(h, table).gold_logit.tolist() == [0.0] * 6


@pytest.mark.filterwarnings("ignore:knn_entity_attention. backend cpu cannot be used")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_inputs_are_summed_in_fp32(dtype):
    h, table, gold = inputs(dtype=dtype)
    out = knn_entity_attention(h, table, gold, 4)
    exact = knn_entity_attention(h.float(), table.float(), gold, 4)
    assert out.att.dtype == dtype
    assert out.lse.dtype == out.topk_val.dtype == torch.float32
    torch.testing.assert_close(out.lse, exact.lse)
    assert out.topk_idx.tolist() == exact.topk_idx.tolist()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(knn_entity_attention(h.float(), table.float(), gold, 4).lse, exact.lse)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"h": torch.zeros(2, 3)}, "table: got rows of size 5; expected 3"),
        ({"h": torch.zeros(5)}, r"h: got shape \(5,\); expected two dimensions"),
        ({"h": torch.zeros(6, 5, dtype=torch.long)}, "h: got dtype torch.int64; expected a floating-point one"),
        ({"table": torch.zeros(5)}, r"table: got shape \(5,\); expected two dimensions"),
        ({"table": torch.zeros(0, 5)}, "table: got no row; expected at least one entity"),
        ({"table": torch.zeros(4, 5, dtype=torch.long)}, "table: got dtype torch.int64"),
        ({"table": torch.zeros(17, 5, device="meta")}, "table: got device meta; expected cpu"),
        ({"k": 0}, "k: got 0; expected a whole number of at least 1"),
        ({"k": 2.5}, r"k: got 2\.5; expected a whole number"),
        ({"ignore_index": None}, "ignore_index: got None; expected a whole number"),
        ({"k": "5"}, "k: got '5'; expected a whole number"),
        ({"k": None}, "k: got None"),
        ({"first_row": 1.5}, r"first_row: got 1\.5; expected a row"),
        ({"block": 32.0}, r"block: got 32\.0; expected one of 16, 32, 64"),
        ({"filter_eps": "x"}, "filter_eps: got 'x'; expected a probability"),
        ({"gold": [0] * 6}, "gold: got list; expected a dense torch.Tensor"),
        ({"h": torch.zeros(6, 5).numpy()}, "h: got ndarray; expected a dense torch.Tensor"),
        ({"h": torch.zeros(6, 5).to_sparse()}, "h: got a torch.sparse_coo tensor; expected a dense"),
        ({"block": 24}, "block: got 24; expected one of 16, 32, 64"),
        ({"filter_eps": -0.1}, r"filter_eps: got -0\.1; expected a probability in \[0, 1\)"),
        ({"filter_eps": float("nan")}, "filter_eps: got nan"),
        ({"first_row": 17}, r"first_row: got 17; expected a row in \[0, 17\)"),
        ({"first_row": -1}, "first_row: got -1"),
        ({"gold": torch.zeros(6)}, "gold: got dtype torch.float32; expected torch.int64"),
        ({"gold": torch.zeros(5, dtype=torch.long)}, r"gold: got shape \(5,\); expected \[6\]"),
        ({"gold": torch.zeros(6, dtype=torch.long, device="meta")}, "gold: got device meta; expected cpu"),
        ({"gold": torch.tensor([0, 1, 17, 0, 0, 0])}, r"gold\[2\]: got 17; expected a row in \[0, 17\), or -100"),
        ({"gold": torch.tensor([0, -1, 1, 0, 0, 0])}, r"gold\[1\]: got -1"),
        ({"gold": torch.full((6,), 2), "first_row": 3}, r"gold\[0\]: got 2; expected a row in \[3, 17\)"),
        ({"backend": "gpu"}, "backend: got 'gpu'; expected one of cpu, triton, cuda, tiled, reference, auto"),
    ],
)
def test_wrong_arguments_are_refused(change, message):
    h, table, gold = inputs()
    with pytest.raises(ValueError, match=message):
        knn_entity_attention(**{"h": h, "table": table, "gold": gold, "k": 3} | change)
