from __future__ import annotations

from pathlib import Path

import pytest

from kebiolm.errors import UserError
from kebiolm.finetune.config import OptimizationSection, load_config
from kebiolm.finetune.tasks import BLURB_TASKS, blurb_task
from tests.conftest import REPOSITORY

RECIPES = REPOSITORY / "launch" / "configs" / "finetune"
BLURB_RECIPES = sorted(path for path in RECIPES.glob("*.yaml") if path.stem != "paper" and "own" not in path.stem)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe that names only a BLURB set and folders."""
    path = tmp_path / "recipe.yaml"
    path.write_text("task: gad\ndata: data\nmodel: model\noutput: runs\n")
    return path


def test_each_blurb_set_has_a_recipe_with_the_numbers_of_section_4_3() -> None:
    configs = [load_config(path) for path in BLURB_RECIPES]
    assert sorted(config.task.name for config in configs) == sorted(BLURB_TASKS)
    lengths = {"ChemProt": 256, "DDI": 256, "GAD": 128}
    for config in configs:
        assert config.task == BLURB_TASKS[config.task.name]
        assert config.task.max_length == lengths.get(config.task.name, 512)
        assert config.optimization == OptimizationSection(
            epochs=60, batch_size=16, learning_rates=(1e-5, 3e-5, 5e-5), warmup_share=0.1
        )
        assert len(config.seeds) == 5
    assert len({config.output for config in configs}) == len(configs)


def test_defaults_are_the_papers(recipe: Path) -> None:
    config = load_config(recipe)
    paper = load_config(RECIPES / "gad.yaml")
    assert (config.task, config.optimization, config.seeds) == (paper.task, paper.optimization, paper.seeds)


def test_sizes_of_table_1_are_the_papers() -> None:
    sizes = {name: tuple(task.expected_sizes.values()) for name, task in BLURB_TASKS.items()}
    assert sizes == {
        "BC5CDR-chem": (5203, 5347, 5385),
        "BC5CDR-disease": (4182, 4244, 4424),
        "NCBI-disease": (5137, 787, 960),
        "BC2GM": (15197, 3061, 6325),
        "JNLPBA": (46750, 4551, 8662),
        "ChemProt": (18035, 11268, 15745),
        "DDI": (25296, 2496, 5716),
        "GAD": (4261, 535, 534),
    }


@pytest.mark.parametrize("name", ["own_ner", "own_relations"])
def test_a_set_of_ones_own_needs_only_a_yaml(name: str) -> None:
    task = load_config(RECIPES / f"{name}.yaml").task
    assert task.name not in BLURB_TASKS
    assert set(task.files) == {"train", "dev", "test"}


def test_a_mapping_without_kind_changes_the_blurb_set_it_names(recipe: Path) -> None:
    task = load_config(recipe, ["task={name: ncbi-DISEASE, max_length: 64, files: {dev: devel.tsv}}"]).task
    changes = {"max_length": 64, "files": {"train": "train.tsv", "dev": "devel.tsv", "test": "test.tsv"}}
    assert task == blurb_task("NCBI-disease").model_copy(update=changes)


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("task=NCBI-diseases", r"task = 'NCBI-diseases' \(expected one of BC5CDR-chem, .* did you mean NCBI-disease\?"),
        ("task={max_length: 9}", "expected one of BC5CDR-chem"),
        ("task={name: GAD, max_lenght: 64}", r"unknown key task.max_lenght \(did you mean max_length\?\)"),
        ("task={name: GAD, max_length: 7}", "task.max_length = 7"),
        ("task={kind: re, name: mine}", "missing key task.markers"),
        ("task={kind: ner, name: mine, markers: [x]}", "unknown key task.markers"),
        ("task={kind: ner, name: mine, entity_types: [a, b, a]}", "types must differ"),
        ("task={kind: re, name: mine, markers: ['@A B$']}", "marker '@A B\\$' is empty or holds white space"),
        ("task={name: GAD, negative_label: none}", "negative_label none is none of known_labels"),
        ("optimization.epochs=0", "optimization.epochs = 0"),
        ("seeds=[]", "seeds"),
    ],
)
def test_a_wrong_setting_is_named_with_its_override(recipe: Path, override: str, named: str) -> None:
    with pytest.raises(UserError, match=named) as caught:
        load_config(recipe, [override])
    if "missing" not in named:
        assert f"override {override}" in caught.value.where
