"""The planner's arithmetic against the real model and against measured runs."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kebiolm.data.shard_format import PackedShards
from kebiolm.planning.cards import CARDS
from kebiolm.planning.memory import predict_memory
from kebiolm.planning.parameters import count_parameters
from kebiolm.planning.workload import make_workload
from kebiolm.training.config import load_config
from kebiolm.training.initial_model import make_initial_model
from tests.planning.compare import RECIPE, REPOSITORY, Comparison, compare
from tests.planning.synthetic_shards import write_synthetic_shards

LARGE = {
    "model.hidden_size": 256,
    "model.num_hidden_layers": 4,
    "model.num_attention_heads": 4,
    "model.intermediate_size": 1024,
    "model.entity_size": 100,
    "model.max_candidate_entities": 100,
    "optimization.global_batch_size": 4,
    "optimization.micro_batch_size": 2,
}
"""Large enough that what the libraries take is the smaller part."""


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Full sequences of 512 pieces, 100,000 entities."""
    return write_synthetic_shards(
        tmp_path_factory.mktemp("planning") / "shards", length=512, pieces=20_000, entities=100_000
    )


@pytest.mark.timeout(600)  # two launches; busy machines
def test_predicted_memory_is_within_15_percent_of_measured(tmp_path: Path, shards: Path):
    def run(deepspeed: str) -> Comparison:
        folder = tmp_path / deepspeed
        folder.mkdir()
        return compare(folder, shards, f"{deepspeed}.json", LARGE)

    names = ["zero2_fp32", "zero3_bf16"]
    with ThreadPoolExecutor() as pool:  # each is a process of its own
        found = dict(zip(names, pool.map(run, names), strict=True))
    for name, compared in found.items():
        figures = name, compared.predicted.total / 2**20, compared.measured / 2**20, compared.predicted.parts
        assert compared.measured > 300 * 2**20, figures
        assert abs(compared.error) <= 0.15, figures


@pytest.mark.parametrize("context_layers", [2, 3])
@pytest.mark.parametrize("layer_norm", [True, False])
def test_parameters_are_those_of_the_real_model(shards: Path, context_layers: int, layer_norm: bool):
    settings = {
        "model.num_context_layers": context_layers,
        "model.num_hidden_layers": 3,
        "model.fusion_layer_norm": layer_norm,
    }
    workload = workload_of(shards, settings)
    model = make_initial_model(workload.config, PackedShards.load(shards), say=False)
    counted = count_parameters(workload.model, workload.data)
    assert counted.total == sum(parameter.numel() for parameter in model.parameters())
    assert counted.layer == sum(parameter.numel() for parameter in model.bert.context_encoder.layer[0].parameters())


def test_a_frozen_table_has_no_gradient_master_or_moments(shards: Path):
    free, frozen = (
        predict_memory(workload_of(shards, {"entities.freeze": is_frozen}), CARDS["v100-16gb"])
        for is_frozen in (False, True)
    )
    numbers = 100_000 * 16
    assert free.parts["AdamW's moments"] - frozen.parts["AdamW's moments"] == 8 * numbers
    assert free.parts["fp32 master weights"] - frozen.parts["fp32 master weights"] == 4 * numbers
    assert free.parts["weights"] == frozen.parts["weights"]


def test_more_processes_divide_what_zero_divides(shards: Path):
    for stage, divided in (("zero1", "AdamW's moments"), ("zero3", "AdamW's moments")):
        settings = {**LARGE, "deepspeed": REPOSITORY / "deepspeed_configs" / f"{stage}_fp16.json"}
        settings["optimization.global_batch_size"] = 16
        one, eight = (predict_memory(workload_of(shards, settings, number), CARDS["h100"]) for number in (1, 8))
        assert one.parts[divided] == pytest.approx(8 * eight.parts[divided], abs=64)


def test_offloading_moves_the_optimizer_to_the_host(shards: Path):
    folder = REPOSITORY / "deepspeed_configs"
    near, far = (
        predict_memory(workload_of(shards, {**LARGE, "deepspeed": folder / name}), CARDS["v100-16gb"])
        for name in ("zero3_fp16.json", "zero3_offload_fp16.json")
    )
    assert near.host == 0
    assert far.host > near.parts["AdamW's moments"]
    assert "AdamW's moments" not in far.parts
    assert far.total < near.total


def test_activation_checkpointing_and_micro_batch_change_activations_only(shards: Path):
    def parts(**settings: object) -> dict[str, int]:
        batch = {"optimization.global_batch_size": 64, "optimization.micro_batch_size": 64}
        return predict_memory(workload_of(shards, LARGE | batch | settings), CARDS["v100-16gb"]).parts

    plain, smaller = parts(), parts(**{"optimization.micro_batch_size": 32})
    assert smaller["activations"] == pytest.approx(plain["activations"] / 2, rel=0.01)
    checkpointed = parts(**{"optimization.activation_checkpointing": True})
    assert checkpointed["activations"] < plain["activations"]
    for other in (smaller, checkpointed):
        assert other["weights"] == plain["weights"]
        assert other["AdamW's moments"] == plain["AdamW's moments"]


def overrides(shards: Path, settings: dict[str, object]) -> list[str]:
    fixed = {"shards": shards, "deepspeed": REPOSITORY / "deepspeed_configs" / "zero2_fp16.json"}
    return [f"{key}={value}" for key, value in (fixed | settings).items()]


def workload_of(shards: Path, settings: dict[str, object], processes: int = 1):
    return make_workload(load_config(RECIPE, overrides(shards, settings)), processes, None)
