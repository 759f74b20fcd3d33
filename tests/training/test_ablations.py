"""launch/configs/pretrain/ablations/: each changes its one setting of the paper's run, and that does what it says.

The recipes themselves are loaded, with a 12-layer model of width 32 started from a BERT and from entity vectors as the
paper's is.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from kebiolm.data.masking import IGNORE
from kebiolm.data.shard_format import INSIDE, PackedShards
from kebiolm.data.tokenizer import load_tokenizer
from kebiolm.training.config import load_config
from kebiolm.transe.start_vectors import StartVectors, save_transe
from tests.conftest import REPOSITORY
from tests.training.one_process import OneProcess, make_one_process

PAPER = REPOSITORY / "launch" / "configs" / "pretrain" / "paper_v100.yaml"
FOLDER = PAPER.parent / "ablations"
SWITCHES = {
    "without_wem": ("masking.whole_entity", False),
    "random_entities": ("entities.init_from", None),
    "frozen_entities": ("entities.freeze", True),
    "layers_4_8": ("model.num_context_layers", 4),
    "layers_12_0": ("model.num_context_layers", 12),
}
TABLE = "bert.entity_linker.entity_embeddings.weight"
FRESH_IN_EVERY_RUN = (
    "mention_detector",
    "mention_to_entity_projection",
    "entity_context_projection",
    "bert.layer_norm",
)

Make = Callable[[str | None], OneProcess]


@pytest.fixture(scope="module")
def make(sample_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """`make(ablation)`: its run in small; None: the paper's run."""
    folder = tmp_path_factory.mktemp("ablations")
    shards = PackedShards.load(sample_shards)
    torch.manual_seed(1)
    load_tokenizer(shards.tokenizer_path).save_pretrained(folder / "bert")
    sizes = {"hidden_size": 32, "num_hidden_layers": 12, "num_attention_heads": 2, "intermediate_size": 64}
    positions = {"max_position_embeddings": shards.max_length}
    vocab_size = shards.manifest["tokenizer"]["vocab_size"]
    BertForMaskedLM(BertConfig(**sizes, **positions, vocab_size=vocab_size)).save_pretrained(folder / "bert")
    rows = len(shards.entity_vocab)
    vectors = StartVectors(
        entity_embeddings=torch.randn(rows, 100),
        has_triples=torch.ones(rows, dtype=torch.bool),
        relation_embeddings=torch.zeros(0, 100),
        relations=[],
    )
    save_transe(folder / "transe.safetensors", vectors, shards.entity_vocab)

    def make(ablation: str | None) -> OneProcess:
        recipe = FOLDER / f"{ablation}.yaml" if ablation else PAPER
        settings = [
            f"model.init_from={folder / 'bert'}",
            "optimization.global_batch_size=4",
            "optimization.micro_batch_size=2",
            "optimization.max_steps=3",
            "optimization.warmup_steps=0",
        ]
        if ablation != "random_entities":
            settings.append(f"entities.init_from={folder / 'transe.safetensors'}")
        return make_one_process(sample_shards, *settings, recipe=recipe)

    return make


@pytest.fixture(scope="module")
def start(make: Make) -> dict[str, torch.Tensor]:
    """The start weights of the paper's run."""
    return weights(make(None))


def weights(run: OneProcess) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in run.model.state_dict().items()}


def differing(some: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> set[str]:
    assert some.keys() == others.keys()
    return {name for name in some if not torch.equal(some[name], others[name])}


def encoder_layers(state: dict[str, torch.Tensor], split: int) -> dict[str, torch.Tensor]:
    """The weights of layers by their number in the whole stack."""
    layers = {}
    for name, tensor in state.items():
        stack, _, rest = name.partition(".layer.")
        if rest:
            number, _, part = rest.partition(".")
            layers[f"{int(number) + (split if stack == 'bert.recontext_encoder' else 0)}.{part}"] = tensor
    return layers


def test_there_is_one_recipe_for_each_ablation_of_section_4_5() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == set(SWITCHES)


@pytest.mark.parametrize("name", SWITCHES)
def test_recipe_differs_from_the_paper_run_in_its_switch_alone(name: str) -> None:
    paper, ablation = load_config(PAPER, []).flat(), load_config(FOLDER / f"{name}.yaml", []).flat()
    assert paper.keys() == ablation.keys()
    changed = {key: value for key, value in ablation.items() if paper[key] != value}
    key, value = SWITCHES[name]
    assert changed == {"output": f"runs/ablations/{name}", key: value}


def test_without_wem_masks_words_of_an_entity_apart_and_as_many_pieces(
    make: Make, start: dict[str, torch.Tensor]
) -> None:
    shares, torn = {}, {}
    for name in (None, "without_wem"):
        run = make(name)
        assert not differing(weights(run), start)
        chosen = pieces = torn[name] = 0
        for _, batches in run.loader.iterate(0, 40):
            for batch in batches:
                is_chosen = batch["mlm_labels"] != IGNORE
                chosen += int(is_chosen.sum())
                pieces += int((batch["bio_labels"] != IGNORE).sum())
                # Two pieces of one entity, one of them to be predicted and the other not.
                is_inside = batch["bio_labels"][:, 1:] == INSIDE
                torn[name] += int((is_inside & (is_chosen[:, 1:] != is_chosen[:, :-1])).sum())
        shares[name] = chosen / pieces
    assert shares["without_wem"] == pytest.approx(shares[None], rel=0.02)
    assert torn[None] == 0
    assert torn["without_wem"] > 100


def test_random_entities_starts_with_another_table_and_nothing_else(make: Make, start: dict[str, torch.Tensor]) -> None:
    random = weights(make("random_entities"))
    assert differing(random, start) == {TABLE}
    entity_size = 100
    assert float(random[TABLE][:, :entity_size].std()) == pytest.approx(0.02, rel=0.05)  # BERT's initializer_range
    assert not random[TABLE][:, entity_size:].any()


def test_frozen_entities_keep_the_rows_of_the_start_and_train_all_else(
    make: Make, start: dict[str, torch.Tensor]
) -> None:
    run = make("frozen_entities")
    assert not differing(weights(run), start)
    assert all(result.was_applied for result in run.train(0, 3))
    constant = {"bert.embeddings.position_ids"}
    assert differing(weights(run), start) == start.keys() - constant - {TABLE}
    # The same steps of the paper's run do change the table.
    paper = make(None)
    paper.train(0, 3)
    assert differing(weights(paper), start) == start.keys() - constant


def test_layers_4_8_puts_the_memory_after_the_fourth_layer(make: Make, start: dict[str, torch.Tensor]) -> None:
    run = make("layers_4_8")
    assert (len(run.model.bert.context_encoder.layer), len(run.model.bert.recontext_encoder.layer)) == (4, 8)
    assert run.model.config.fuses_entities
    assert not differing(encoder_layers(weights(run), 4), encoder_layers(start, 8))
    _same_but_fresh(weights(run), start)


def test_layers_12_0_leaves_out_the_fusion_and_keeps_the_three_losses(
    make: Make, start: dict[str, torch.Tensor]
) -> None:
    run = make("layers_12_0")
    state = weights(run)
    assert len(run.model.bert.recontext_encoder.layer) == 0
    assert not differing(encoder_layers(state, 12), encoder_layers(start, 8))
    gone = {name for name in start.keys() - state.keys() if ".layer." not in name}
    assert {name.split(".")[1] for name in gone} == {"entity_context_projection", "layer_norm"}
    _same_but_fresh(state, start)
    results = run.train(0, 3)
    assert all(result.was_applied and (result.loss_sums > 0).all() for result in results)
    # Detection and linking still teach their weights and the layers below.
    trained = {name for name in state if not torch.equal(state[name], weights(run)[name])}
    assert {TABLE, "bert.mention_detector.weight", "bert.entity_linker.mention_to_entity_projection.weight"} <= trained


def _same_but_fresh(some: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> None:
    """All weights outside of the layers agree, but for those that no start knows: their random numbers come later."""
    shared = {name for name in some.keys() & others.keys() if ".layer." not in name}
    changed = {name for name in shared if not torch.equal(some[name], others[name])}
    assert all(any(part in name for part in FRESH_IN_EVERY_RUN) for name in changed), changed
    assert TABLE in shared - changed
