"""The plan's arithmetic against hand-made samples, and one real measurement."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from io import StringIO
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from kebiolm.errors import UserError
from preprocessing.annotation.link_stage import TEXTS_PER_BUCKET
from preprocessing.watch.plan import plan_annotation
from preprocessing.watch.plan_arithmetic import (
    FILL_RATE,
    RAY_NODE_BYTES,
    RAY_WORKER_BYTES,
    Growth,
    fit_growth,
    make_plan,
    node_bytes,
    seconds_per_document,
)
from preprocessing.watch.plan_measure import SampleCosts, growth_curve

COSTS = SampleCosts(
    documents=1000,
    characters=1_500_000,
    mentions=20_000,
    texts=5_000,
    pieces=300_000,
    start_s=10.0,
    read_s=1.0,
    find_s=(5.0, 5.0, 5.0, 5.0),
    slice_documents=(250, 250, 250, 250),
    link_s=2.0,
    join_s=1.0,
    driver_s=0.5,
    units=25,
    worker_bytes=500_000_000,
    index_bytes=2_000_000_000,
    slice_bytes=600_000,
    mention_bytes=100_000,
    text_bytes=300_000,
    slice_texts=6_000,
    part_bytes=800_000,
    curve=tuple((n, 5_000 * (n / 20_000) ** 0.6) for n in np.geomspace(100, 20_000, 20)),
    names=100_000,
)


def test_growth_is_fitted_and_goes_on_from_the_sample() -> None:
    growth = fit_growth(COSTS.curve)
    assert growth is not None and growth.exponent == pytest.approx(0.6)
    later = growth.texts_at(2_000_000)
    assert later.likely == pytest.approx(5_000 * 100**0.6)
    assert later.low == pytest.approx(5_000 * 100**0.45) and later.high == pytest.approx(5_000 * 100**0.65)


def test_a_curve_that_bends_is_doubted_more() -> None:
    bent = tuple(
        (n, min(n, 5_000 * (n / 20_000) ** (0.9 if n < 6_000 else 0.5))) for n in np.geomspace(100, 20_000, 20)
    )
    growth = fit_growth(bent)
    assert growth is not None and growth.doubt_above > 0.1


def test_there_are_never_more_texts_than_mentions() -> None:
    growth = Growth(mentions=100, texts=90, exponent=0.99, doubt_below=0.2, doubt_above=0.2)
    texts = growth.texts_at(1_000_000)
    assert texts.low <= texts.likely <= texts.high <= 1_000_000
    back = growth.texts_at(10)
    assert back.low <= back.likely <= back.high <= 10


def test_no_growth_is_read_from_next_to_nothing() -> None:
    assert fit_growth(()) is None and fit_growth(((1.0, 1.0),)) is None


def test_a_growth_curve_counts_distinct_texts() -> None:
    random = np.random.default_rng(7)
    documents = np.sort(random.integers(0, 300, 5_000))
    keys = random.zipf(1.5, 5_000).astype(np.uint64)
    curve = growth_curve(keys, documents)
    assert curve[-1] == (5_000.0, float(len(np.unique(keys))))
    assert all(before[0] < after[0] and before[1] <= after[1] for before, after in pairwise(curve))
    assert curve == growth_curve(keys, documents)
    assert growth_curve(np.arange(1_000), documents[:1_000])[-1] == (1_000.0, 1_000.0)
    assert growth_curve(keys[:0], documents[:0]) == ()


def test_speed_has_the_spread_of_the_slices() -> None:
    steady = seconds_per_document(COSTS)
    assert (steady.low, steady.likely, steady.high) == pytest.approx((0.018, 0.02, 0.022))
    seconds = seconds_per_document(replace(COSTS, find_s=(4.0, 6.0, 4.0, 6.0)))
    spread = 2 * np.std([0.016, 0.024, 0.016, 0.024], ddof=1) / 2
    assert seconds.likely == pytest.approx(0.02)
    assert (seconds.low, seconds.high) == pytest.approx((0.02 - spread, 0.02 + spread))
    alone = seconds_per_document(replace(COSTS, find_s=(20.0,), slice_documents=(1000,)))
    assert (alone.low, alone.high) == pytest.approx((0.01, 0.03))


def test_a_corpus_as_large_as_the_sample_costs_what_the_sample_cost() -> None:
    plan = make_plan(COSTS, docs=1000, workers=1, per_node=(1,))
    assert plan.core_hours.likely * 3600 == pytest.approx(20 + 2 + 2)
    assert plan.wall_hours.likely * 3600 == pytest.approx(24 + 0.02 * (2 + 16) + 10)
    assert plan.mentions == 20_000 and plan.texts.likely == pytest.approx(5_000)
    assert plan.annotated_bytes == 800_000
    assert plan.sequences == pytest.approx((300_000 + 2_000) / (512 * FILL_RATE))


def test_a_large_corpus() -> None:
    plan = make_plan(COSTS, docs=3_500_000, workers=100, per_node=(16,))
    # 1,750 slices of 40,000 mentions each.
    buckets = math.ceil(1750 * 5_000 * 2**0.6 / TEXTS_PER_BUCKET)
    texts = 5_000 * 3500**0.6
    assert plan.texts.likely == pytest.approx(texts)
    assert plan.link_core_hours.likely * 3600 == pytest.approx(texts * 2 / 5_000)
    core_seconds = 3500 * (20 + 2) + texts * 2 / 5_000
    assert plan.core_hours.likely * 3600 == pytest.approx(core_seconds)
    assert plan.wall_hours.likely * 3600 == pytest.approx(core_seconds / 100 + 0.02 * (2 * 1750 + buckets) + 10)
    assert plan.core_hours.low < plan.core_hours.likely < plan.core_hours.high
    # 1,750 slices of 2,000 documents: six work files and, in the end, three files each.
    assert plan.annotated_files == 1750 * 3 + 3 and plan.work_files > 1750 * 6
    assert plan.work_bytes.low > 3500 * 700_000


def test_workers_of_a_node_share_one_index() -> None:
    one, two = node_bytes(COSTS, 1), node_bytes(COSTS, 2)
    assert two - one == COSTS.worker_bytes + RAY_WORKER_BYTES
    assert one == COSTS.index_bytes + COSTS.worker_bytes + RAY_WORKER_BYTES + RAY_NODE_BYTES


def test_word_pieces_are_guessed_where_there_is_no_tokenizer() -> None:
    plan = make_plan(replace(COSTS, pieces=None), docs=1000, workers=1, per_node=(1,))
    assert 250_000 < plan.sequences * 512 * FILL_RATE < 350_000


def test_a_sample_without_mentions_can_be_planned() -> None:
    nothing = replace(COSTS, mentions=0, texts=0, slice_texts=0, text_bytes=0, link_s=0.0, curve=())
    plan = make_plan(nothing, docs=10_000, workers=2, per_node=(2,))
    assert plan.texts.likely == 0 and plan.core_hours.likely * 3600 == pytest.approx(220)


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    names = ("Aspirin", "Glycerol", "heart attack", "Hypertension")
    records = [{"id": str(n), "text": f"{names[n % 4]} and {names[n % 3]} number {n}. " * 5} for n in range(60)]
    path = tmp_path / "sample.jsonl"
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records), encoding="utf-8")
    return path


def test_a_real_measurement(sample: Path, small_kb: Path) -> None:
    out = StringIO()
    console = Console(file=out, width=120)
    figures = plan_annotation(60_000, [sample], small_kb, "dictionary", workers=4, console=console)
    measured, predicted = figures["measured"], figures["predicted"]
    assert measured["documents"] == 60 and measured["mentions"] == 600 and measured["texts"] == 4
    assert len(measured["find_s"]) == len(measured["slice_documents"]) == 8
    assert sum(measured["slice_documents"]) == 60
    assert predicted["mentions"] == 600_000 and predicted["texts"]["high"] < 600_000
    assert measured["worker_bytes"] > 10e6 and measured["index_bytes"] > 0 and measured["start_s"] > 0
    assert "Predicted: 60,000 abstracts, 4 workers" in out.getvalue()
    assert set(predicted["node_bytes"]) >= {4, 8}


def test_mistakes(sample: Path, small_kb: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--docs"):
        plan_annotation(0, [sample], small_kb, "dictionary")
    few = tmp_path / "few.jsonl"
    few.write_text('{"id": "1", "text": "Aspirin."}\n', encoding="utf-8")
    with pytest.raises(UserError, match="--sample: got 1 documents"):
        plan_annotation(10, [few], small_kb, "dictionary")
