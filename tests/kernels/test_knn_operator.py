"""The operator inside torch: gradcheck, opcheck, torch.compile, and which backend is chosen."""

from __future__ import annotations

import subprocess
import sys
import warnings

import pytest
import torch

from kebiolm.kernels import knn_entity_attention
from kebiolm.kernels.knn_entity_attention import backends, cpu
from kebiolm.kernels.knn_entity_attention.build_cache import BuildError
from kebiolm.kernels.knn_entity_attention.contract import Options
from kebiolm.kernels.knn_entity_attention.operator import knn_op
from tests.kernels.test_knn_backends import assert_near, make_inputs


def test_gradcheck_of_the_tiled_backend():
    h, table, gold = make_inputs(4, 40, 3, first_row=3)
    h, table = h.double().requires_grad_(), table.double().requires_grad_()

    def results(h, table):
        return tuple(knn_entity_attention(h, table, gold, 4, first_row=3, backend="tiled"))[:4]

    assert torch.autograd.gradcheck(results, (h, table), eps=1e-7)


@pytest.mark.parametrize("backend", ["cpu", "tiled"])
@pytest.mark.parametrize("with_gold", [True, False])
def test_opcheck(backend, with_gold):
    h, table, gold = make_inputs(5, 40, 3, first_row=3)
    options = Options(k=37, first_row=3, block=32, filter_eps=0.0, deterministic=True, want_mean=with_gold)
    arguments = (h.requires_grad_(), table.requires_grad_(), gold if with_gold else None, -100, backend, *options)
    torch.library.opcheck(knn_op, arguments)


@pytest.mark.parametrize("backend", ["cpu", "tiled", "reference"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_into_one_graph(backend, dynamic, monkeypatch):
    monkeypatch.setenv(backends.VARIABLE, backend)

    def loss(h, table, gold):
        out = knn_entity_attention(h, table, gold, 6)
        return (out.lse - out.gold_logit).mean() + out.att.square().sum()

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for mentions in (7, 9):
        h, table, gold = make_inputs(mentions, 60, 4)
        inputs = h.requires_grad_(), table.requires_grad_()
        expected = torch.autograd.grad(loss(*inputs, gold), inputs)
        for grad, other in zip(torch.autograd.grad(compiled(*inputs, gold), inputs), expected, strict=True):
            torch.testing.assert_close(grad, other)


def chosen(requested="auto", *, device="cpu", dtype=torch.float32, fitting=("cpu", "triton", "cuda")):
    return backends._choose(requested, torch.device(device), (dtype, dtype), fitting)


def test_choice_of_the_backend(monkeypatch):
    monkeypatch.delenv(backends.VARIABLE, raising=False)
    assert chosen() == "cpu"
    assert chosen(dtype=torch.bfloat16) == chosen(fitting=()) == chosen(device="meta") == "tiled"
    monkeypatch.setenv(backends.VARIABLE, "reference")
    assert chosen() == "reference"
    assert chosen("tiled") == "tiled"
    monkeypatch.setenv(backends.VARIABLE, "fast")
    with pytest.raises(
        ValueError, match="KEBIOLM_KNN_BACKEND: got 'fast'; expected one of cpu, triton, cuda, tiled, reference"
    ):
        chosen()


def test_a_forced_backend_that_cannot_do_it_is_said_once():
    backends._warn_once.cache_clear()
    with pytest.warns(RuntimeWarning, match="tiled is used"):
        assert chosen("cpu", dtype=torch.bfloat16) == "tiled"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert chosen("cpu", dtype=torch.bfloat16) == "tiled"


@pytest.mark.parametrize(
    ("capability", "dtype", "expected", "reason"),
    [
        ((9, 0), torch.float16, "triton", None),
        ((8, 0), torch.float32, "triton", None),
        ((8, 0), torch.float64, "tiled", "fp64"),
        ((7, 0), torch.float16, "cuda", None),
        ((7, 0), torch.float32, "tiled", "fp16"),
    ],
)
def test_choice_on_gpus(monkeypatch, capability, dtype, expected, reason):
    # Which GPU is there is made up; what each backend takes is not.
    monkeypatch.delenv(backends.VARIABLE, raising=False)
    monkeypatch.setattr(torch.version, "cuda", "12.6")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    monkeypatch.setattr(backends.triton_backend, "available", lambda device: None)
    monkeypatch.setattr(backends.cuda, "available", lambda device: None)
    backends._warn_once.cache_clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert chosen(device="cuda:0", dtype=dtype) == expected
        assert chosen(device="cuda:0", dtype=dtype) == expected
    assert len(caught) == (reason is not None)
    if reason:
        assert reason in str(caught[0].message)


def test_sizes_that_do_not_fit(monkeypatch):
    asked = []
    monkeypatch.setattr(backends, "_choose", lambda *arguments: asked.append(arguments[-1]))
    h = torch.empty(2, 200, device="meta")
    backends.choose_backend("auto", h, torch.empty(5, 200, device="meta"))
    backends.choose_backend("auto", h, torch.empty(2**31, 200, device="meta"))
    backends.choose_backend("auto", h[:, :128], torch.empty(5, 128, device="meta"))
    assert asked == [("cpu", "triton"), (), ("cpu", "triton", "cuda")]
    monkeypatch.undo()
    backends._warn_once.cache_clear()
    with pytest.warns(RuntimeWarning, match="of at most 128 dimensions"):
        assert chosen("cuda", device="cuda", dtype=torch.float16, fitting=("cpu", "triton")) == "tiled"


def test_without_the_kernel_tiled_is_used_and_said_once(monkeypatch):
    def fail():
        raise BuildError("no C++ compiler found")

    monkeypatch.delenv(backends.VARIABLE, raising=False)
    monkeypatch.setattr(cpu, "build", fail)
    cpu.library.cache_clear()
    try:
        with pytest.warns(RuntimeWarning, match="no C\\+\\+ compiler found") as caught:
            assert chosen() == chosen() == "tiled"
            h, table, gold = make_inputs(5, 40, 3)
            out = knn_entity_attention(h, table, gold, 4)
        assert len(caught) == 1
        assert_near(out.lse, knn_entity_attention(h.double(), table.double(), gold, 4, backend="reference").lse)
    finally:
        cpu.library.cache_clear()


def test_the_kernel_works_after_a_fork():
    # Data loaders fork; an OpenMP pool of the parent must not be waited for in the child.
    code = (
        "import os, torch; from kebiolm.kernels import knn_entity_attention as f; torch.set_num_threads(2)\n"
        "h, t = torch.randn(30, 8), torch.randn(500, 8); a = f(h, t, None, 5, backend='cpu')\n"
        "if (child := os.fork()) == 0: torch.set_num_threads(1); f(h, t, None, 5, backend='cpu'); os._exit(7)\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
