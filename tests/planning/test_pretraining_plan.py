"""Steps, hours, warnings, and refusals that say what to change."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kebiolm.cli import app
from kebiolm.data.loader import PretrainingLoader
from kebiolm.errors import UserError
from kebiolm.planning.cards import CARDS
from kebiolm.planning.plan import Plan, make_plan
from kebiolm.training.config import load_config
from tests.planning.compare import REPOSITORY

PAPER = REPOSITORY / "launch" / "configs" / "pretrain" / "paper_v100.yaml"
CONFIGS = REPOSITORY / "deepspeed_configs"
SEQUENCES = 13_200_000


def plan(*settings: str, gpus: int = 8, card: str = "v100-16gb", **options) -> Plan:
    config = load_config(PAPER, [f"deepspeed={CONFIGS / 'zero1_fp16.json'}", *settings])
    return make_plan(config, gpus=gpus, card_name=card, **({"sequences": SEQUENCES} | options))


def refusal(*settings: str, **options) -> UserError:
    with pytest.raises(UserError) as caught:
        plan(*settings, **options)
    return caught.value


def test_the_papers_run_fits_its_cards_and_takes_the_papers_steps():
    made = plan()
    assert made.workload.steps == 51_563  # 2 x 13.2 million sequences in batches of 512
    assert made.workload.micro_batches == 8
    assert made.memory.total < CARDS["v100-16gb"].memory
    assert made.parameters.entities == 477_039 * 104
    assert not made.warnings


def test_operations_agree_with_six_per_weight_and_token():
    made = plan()
    in_layers = 12 * made.parameters.layer
    assert made.flops.layers * 3 == pytest.approx(6 * in_layers * 512, rel=0.01)


def test_hours_fall_with_cards_and_cost_does_not():
    few, many = plan(gpus=8, price_per_gpu_hour=2.0), plan(gpus=64, price_per_gpu_hour=2.0)
    assert few.training.likely == pytest.approx(8 * many.training.likely)
    assert few.training.low < few.training.likely < few.training.high
    assert few.cost.likely == pytest.approx(many.cost.likely)
    assert few.cost.likely == pytest.approx(few.training.likely * 8 * 2.0)


def test_steps_are_those_of_the_loader(sample_shards: Path):
    from kebiolm.data.collator import PretrainingCollator
    from kebiolm.data.shard_format import PackedShards

    shards = PackedShards.load(sample_shards)
    config = load_config(PAPER, [f"shards={sample_shards}", f"deepspeed={CONFIGS / 'zero1_fp16.json'}"])
    optimization = {"global_batch_size": 16, "micro_batch_size": 2}
    for epochs in (0.3, 1.0, 2.5):
        changed = config.optimization.model_copy(update={**optimization, "epochs": epochs})
        made = make_plan(config.model_copy(update={"optimization": changed}), gpus=2, card_name="t4")
        loader = PretrainingLoader(
            shards.train, PretrainingCollator.from_shards(shards, seed=0), seed=0, epochs=epochs, **optimization
        )
        assert made.workload.steps == loader.steps_total
    data, counts = made.workload.data, shards.manifest["counts"]["train"]
    assert data.entities == len(shards.entity_vocab)
    assert data.fill == pytest.approx(counts["fill_rate"], rel=0.02)
    assert data.mentions == pytest.approx(counts["mentions_kept"] / counts["sequences"], rel=0.02)


def test_a_warmup_above_30_percent_warns_with_a_number():
    (warning,) = plan(sequences=3_500_000).warnings
    assert "10,000 of 13,672 steps (73%)" in warning
    assert "4,101" in warning


@pytest.mark.parametrize(
    ("settings", "card"),
    [
        (["optimization.global_batch_size=2048", "optimization.micro_batch_size=256"], "v100-16gb"),
        (["optimization.micro_batch_size=64", "model.intermediate_size=12288", "model.hidden_size=3072"], "t4"),
        (
            [
                "optimization.micro_batch_size=1",
                "optimization.global_batch_size=8",
                "model.hidden_size=7680",
                "model.num_attention_heads=48",
            ],
            "t4",
        ),
    ],
)
def test_a_run_that_cannot_fit_is_refused_with_settings_that_fit(settings: list[str], card: str):
    refused = refusal(*settings, card=card)
    assert refused.mend.startswith("set ")
    named = refused.mend.removeprefix("set ").split(" (")[0].split()
    assert all("=" in setting for setting in named)
    fixed = plan(*settings, *named, card=card)
    assert fixed.memory.total <= CARDS[card].memory
    assert fixed.workload.config.optimization.global_batch_size == int(
        next((s.split("=")[1] for s in settings if "global_batch_size" in s), 512)
    )


def test_a_smaller_micro_batch_is_found_where_all_else_is_set():
    settings = [
        f"deepspeed={CONFIGS / 'zero3_offload_fp16.json'}",
        "optimization.activation_checkpointing=true",
        "optimization.global_batch_size=8192",
        "optimization.micro_batch_size=1024",
    ]
    refused = refusal(*settings, card="t4")
    assert refused.mend.startswith("set optimization.micro_batch_size=256 (")
    assert "GiB of host memory for each process; the same global batch)" in refused.mend
    assert plan(*settings, "optimization.micro_batch_size=256", card="t4").memory.total <= CARDS["t4"].memory


def test_a_run_that_fits_without_room_to_spare_is_warned_of_with_settings_that_leave_room():
    def warnings(micro_batch: int) -> tuple[str, ...]:
        batch = ["optimization.global_batch_size=4096", f"optimization.micro_batch_size={micro_batch}"]
        return plan(*batch, "optimization.warmup_steps=0").warnings

    (warning,) = warnings(64)
    assert warning.startswith("14.3 of 15.8 GiB, more than 85%, leaves little")
    assert "; set optimization.micro_batch_size=32 (" in warning
    assert not warnings(32)


def test_what_is_not_known_or_not_checked_is_said(sample_shards: Path):
    def shown(*settings: str) -> str:
        command = ["plan", str(PAPER), f"deepspeed={CONFIGS / 'zero1_fp16.json'}", *settings]
        return CliRunner().invoke(app, [*command, "--gpus", "8", "--gpu", "t4", "--sequences", "1000000"]).output

    unknown = "without shards the held-out sequences are not known"
    assert unknown in shown()
    with_shards = shown(f"shards={sample_shards}")
    assert "minutes of evaluation" in with_shards and unknown not in with_shards
    (warning,) = plan(f"deepspeed={CONFIGS / 'zero3_offload_fp16.json'}").warnings
    assert "GiB of host memory for each process are not checked" in warning


def test_a_run_that_nothing_makes_fit_says_so():
    refused = refusal("model.hidden_size=12288", "model.intermediate_size=49152", card="t4")
    assert "more memory" in refused.mend


def test_a_smaller_micro_batch_is_the_first_thing_to_change():
    refused = refusal("optimization.global_batch_size=2048", "optimization.micro_batch_size=128")
    assert refused.mend.startswith("set optimization.micro_batch_size=64 (")


def test_refusals_name_the_setting():
    bf16 = refusal(f"deepspeed={CONFIGS / 'zero2_bf16.json'}")
    assert bf16.mend == f"set deepspeed={CONFIGS / 'zero2_fp16.json'}"
    assert "global_batch_size=560" in refusal(gpus=7).mend
    assert "optimization.micro_batch_size=4" in refusal("optimization.micro_batch_size=6", gpus=128).mend
    assert refusal(card="v100-16").mend == "use v100-16gb"
    assert "--sequences" in refusal(sequences=None).mend
    assert refusal("deepspeed=nowhere.json").got == "no such file"
    assert "fp16" in refusal(card="cpu").got


def test_the_command_prints_tables_json_and_one_line_refusals():
    settings = [str(PAPER), f"deepspeed={CONFIGS / 'zero1_fp16.json'}"]
    options = ["--gpus", "8", "--gpu", "v100-16gb", "--sequences", str(SEQUENCES)]
    shown = CliRunner().invoke(app, ["plan", *settings, *options, "--price-per-gpu-hour", "2"])
    assert shown.exit_code == 0, shown.output
    for words in ("AdamW's moments", "51,563", "hours of training", "No GPU was measured", "cost"):
        assert words in shown.output
    figures = json.loads(CliRunner().invoke(app, ["plan", *settings, *options, "--json"]).output)
    assert figures["steps"] == 51_563
    assert figures["memory"]["predicted_bytes"] == sum(figures["memory"]["parts"].values())
