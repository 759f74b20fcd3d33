"""The Triton backend: its cases (`knn_triton_cases`) in a process of their own, settings, and when it is left alone."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from kebiolm.kernels.knn_entity_attention import triton_backend, triton_common, triton_settings
from kebiolm.kernels.knn_entity_attention.triton_backend import available, unsupported
from kebiolm.kernels.knn_entity_attention.triton_settings import Kind, Settings, choose_settings, default_settings

CASES = Path(__file__).with_name("knn_triton_cases.py")


@pytest.mark.parametrize("where", ["interpreter", pytest.param("gpu", marks=pytest.mark.gpu)])
def test_cases(where):
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    if where == "gpu":
        if not torch.cuda.is_available():
            pytest.skip("there is no CUDA device")
        if reason := available(torch.device("cuda")):
            pytest.skip(reason)
        environment = dict(os.environ)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(CASES)]
    root = CASES.parents[2]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2000:]


def test_what_is_left_to_other_backends():
    half, full = torch.float16, torch.float32
    assert unsupported((half, half)) is None
    assert unsupported((full, half)) is None
    assert "float64" in unsupported((torch.float64, half))


def test_reasons_why_it_cannot_be_used(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(triton_backend.importlib.util, "find_spec", lambda _: object())
    monkeypatch.setattr(torch.version, "cuda", "12.6")
    gpu = torch.device("cuda")
    assert available(torch.device("cpu")) == "no CUDA device: the tensors are on cpu"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    assert "7.0" in available(gpu)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert available(gpu) is None
    monkeypatch.setattr(triton_backend.importlib.metadata, "version", lambda _: "3.2.0")
    assert available(gpu) == "triton 3.2 is installed, and 3.3 is the oldest"
    monkeypatch.setattr(triton_backend.importlib.util, "find_spec", lambda _: None)
    assert "not installed" in available(gpu)


def test_the_backend_can_be_imported_without_triton():
    # As where triton is not installed.
    code = """
import sys
sys.modules["triton"] = None
from kebiolm.kernels.knn_entity_attention import triton_backend
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.fixture
def tf32_allowed() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


def test_precision():
    half, brain, full = (torch.zeros(2, 8, dtype=dtype) for dtype in (torch.float16, torch.bfloat16, torch.float32))
    names = [triton_common.arithmetic_of(*pair).name for pair in [(half, half), (brain, brain), (half, brain)]]
    assert names == ["fp16", "bf16", "ieee"]
    assert triton_common.arithmetic_of(half, full).name == "ieee"


def test_precision_where_tf32_is_allowed(tf32_allowed):
    half, full = (torch.zeros(2, 8, dtype=dtype) for dtype in (torch.float16, torch.float32))
    assert triton_common.arithmetic_of(half, full).name == "tf32"
    assert triton_common.arithmetic_of(half, half).name == "fp16"


def test_there_are_settings_for_every_kind():
    kernels, archs, precisions = ("search", "mean", "table"), (80, 90), ("half", "tf32", "ieee")
    widths = (16, 32, 64, 128, 256)
    for kind in itertools.product(kernels, archs, precisions, widths, (True, False)):
        settings = default_settings(Kind(*kind))
        assert settings.mentions >= 16
        assert settings.entities >= 32


def test_the_fastest_settings_are_taken_where_asked_for(monkeypatch):
    kind, device = Kind("search", 90, "half", 128, aligned=True), torch.device("cuda")
    monkeypatch.setattr(triton_settings, "_tuned", {})
    timed = []

    def milliseconds(launch, settings):
        launch(settings)
        return abs(settings.entities - 64) + settings.warps

    monkeypatch.setattr(triton_settings, "_milliseconds", milliseconds)
    assert choose_settings(kind, device, timed.append) == default_settings(kind)
    monkeypatch.setenv(triton_settings.VARIABLE, "1")
    assert choose_settings(kind, torch.device("cpu"), timed.append) == default_settings(kind)
    assert timed == []
    assert choose_settings(kind, device, timed.append) == Settings(128, 64, 4, 3)
    assert timed == [Settings(*numbers) for numbers in triton_settings.CANDIDATES["search"]]
    assert choose_settings(kind, device, pytest.fail) == Settings(128, 64, 4, 3)
