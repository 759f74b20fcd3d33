from __future__ import annotations

import pytest
import torch

from kebiolm.data.tokenizer import load_tokenizer, save_tokenizer
from kebiolm.errors import UserError
from kebiolm.finetune.read_relations import RelationRow, find_markers, read_relations
from kebiolm.finetune.relation_examples import add_markers, make_relation_examples, relation_labels
from kebiolm.finetune.tasks import BLURB_TASKS, RelationTask, blurb_task
from kebiolm.model import KeBioLMConfig, KeBioLMForRelationExtraction

TASK = blurb_task("ChemProt")
LABELS = ("false", "CPR:3", "CPR:4")
RELATION_TASKS = [task for task in BLURB_TASKS.values() if task.kind == "re"]


def row(text: str, label: str = "false", task: RelationTask = TASK) -> RelationRow:
    return RelationRow(row_id="r", text=text, marker_spans=find_markers(text, task), label=label, where="f:1")


@pytest.fixture
def tokenizer(tiny_tokenizer_folder):
    tokenizer = load_tokenizer(tiny_tokenizer_folder)
    add_markers(tokenizer, TASK)
    return tokenizer


@pytest.mark.parametrize("task", RELATION_TASKS, ids=lambda task: task.name)
def test_each_marker_is_one_piece_in_sorted_order_behind_the_vocabulary(tiny_tokenizer_folder, tmp_path, task) -> None:
    tokenizer = load_tokenizer(tiny_tokenizer_folder)
    size = len(tokenizer)
    assert add_markers(tokenizer, task) == len(task.all_markers)
    assert add_markers(tokenizer, task) == 0
    save_tokenizer(tokenizer, tmp_path)
    for used in (tokenizer, load_tokenizer(tmp_path)):
        ids = [used(f"x{marker}-y", add_special_tokens=False)["input_ids"] for marker in sorted(task.all_markers)]
        assert [pieces[1:-2] for pieces in ids] == [[size + number] for number in range(len(ids))]
        assert len(used) == size + len(ids)


def test_markers_get_the_released_ids_in_the_released_vocabulary(real_data, warnings) -> None:
    tokenizer = load_tokenizer(real_data / "released_checkpoint")
    add_markers(tokenizer, TASK)
    ids = tokenizer.convert_tokens_to_ids(["@CHEM-GENE$", "@CHEMICAL$", "@GENE$"])
    assert ids == [28895, 28896, 28897]  # requirement D24
    texts = read_relations(real_data / "blurb" / "chemprot" / "dev.tsv", TASK, warnings)[:1500]
    examples = make_relation_examples(texts, tokenizer, TASK, sorted(TASK.known_labels), warnings)
    for one, example in zip(texts, examples, strict=True):
        names = tokenizer.convert_ids_to_tokens([example.input_ids[at] for at in example.marker_positions])
        marked = [one.text[start:end] for start, end in one.marker_spans]
        assert names == (marked if len(marked) == 2 else marked * 2)
    assert warnings.counts == {}


def test_positions_are_in_text_order_and_equal_for_a_shared_marker(tokenizer, warnings) -> None:
    texts = ["the @GENE$ of @CHEMICAL$", "@CHEMICAL$/@GENE$.", "severe @CHEM-GENE$ pain", "@gene$ $ @GENE$ @GENE$"]
    rows = [row(text, "CPR:4") for text in texts]
    examples = make_relation_examples(rows, tokenizer, TASK, LABELS, warnings)
    marked = [
        tokenizer.convert_ids_to_tokens([example.input_ids[position] for position in example.marker_positions])
        for example in examples
    ]
    assert marked == [["@GENE$", "@CHEMICAL$"], ["@CHEMICAL$", "@GENE$"], ["@CHEM-GENE$"] * 2, ["@GENE$"] * 2]
    assert [example.marker_positions for example in examples[:3]] == [(2, 4), (1, 3), (2, 2)]
    assert examples[3].marker_positions[0] < examples[3].marker_positions[1]
    assert {example.label for example in examples} == {2}
    assert examples[0].input_ids[0] == tokenizer.cls_token_id
    assert examples[0].input_ids[-1] == tokenizer.sep_token_id


def test_markers_that_truncation_cuts_off_are_counted(tokenizer, warnings) -> None:
    task = TASK.model_copy(update={"max_length": 8})
    texts = [
        "@GENE$ the of and the @CHEMICAL$",
        "@GENE$ the of and the of @CHEMICAL$",
        "the of and the of and @GENE$ @CHEMICAL$",
        "@GENE$ @CHEMICAL$ the of and the of",
    ]
    examples = make_relation_examples([row(text) for text in texts], tokenizer, task, LABELS, warnings)
    assert [example.marker_positions for example in examples] == [(1, 6), (1, 1), (0, 0), (1, 2)]
    assert all(len(example.input_ids) == 8 for example in examples)
    assert all(example.input_ids[-1] == tokenizer.sep_token_id for example in examples)
    assert warnings.counts == {
        "sentences truncated at max_length": 3,
        "markers cut off by max_length, the other one stands for both entities": 1,
        "markers cut off by max_length, [CLS] stands for both entities": 2,
    }


def test_labels_are_the_train_splits_negative_first_else_sorted() -> None:
    rows = [row("x", label) for label in ("CPR:9", "false", "CPR:3", "CPR:9")]
    assert relation_labels(rows, TASK) == ("false", "CPR:3", "CPR:9")
    assert relation_labels(rows, TASK.model_copy(update={"negative_label": None})) == ("CPR:3", "CPR:9", "false")


@pytest.mark.parametrize(
    ("labels", "named"), [(("CPR:3", "CPR:4"), "negative label false"), (("false",), "at least two")]
)
def test_a_train_split_without_the_labels_it_needs_is_refused(labels, named) -> None:
    with pytest.raises(UserError, match=named):
        relation_labels([row("x", label) for label in labels], TASK)


def test_a_label_that_the_train_split_lacks_is_refused_by_file_and_line(tokenizer, warnings) -> None:
    with pytest.raises(UserError, match=r"f:1: got the label CPR:5; expected one of the train split's, false, CPR:3"):
        make_relation_examples([row("@GENE$", "CPR:5")], tokenizer, TASK, LABELS, warnings)


def test_a_tokenizer_without_markers_and_markers_that_are_words_are_refused(tiny_tokenizer_folder, warnings) -> None:
    tokenizer = load_tokenizer(tiny_tokenizer_folder)
    with pytest.raises(ValueError, match="call add_markers first"):
        make_relation_examples([row("@GENE$")], tokenizer, TASK, LABELS, warnings)
    task = RelationTask(name="mine", markers=("the", "pain"))
    add_markers(tokenizer, task)
    with pytest.raises(UserError, match="choose markers that are no words"):
        make_relation_examples([row("The pain and the pain", task=task)], tokenizer, task, LABELS, warnings)


def test_examples_run_through_a_model_whose_vocabulary_has_grown(tokenizer, warnings) -> None:
    torch.manual_seed(0)
    config = KeBioLMConfig(
        vocab_size=len(tokenizer) - len(TASK.all_markers),
        hidden_size=16,
        num_hidden_layers=2,
        num_context_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        num_entities=8,
        entity_size=4,
        max_candidate_entities=3,
        num_labels=len(LABELS),
    )
    model = KeBioLMForRelationExtraction(config)
    model.resize_token_embeddings(len(tokenizer))
    rows = [row("the @GENE$ of @CHEMICAL$", "CPR:3"), row("x @CHEM-GENE$ x pain", "false")]
    examples = make_relation_examples(rows, tokenizer, TASK, LABELS, warnings)
    output = model(
        torch.tensor([example.input_ids for example in examples]),
        marker_positions=torch.tensor([example.marker_positions for example in examples]),
        labels=torch.tensor([example.label for example in examples]),
    )
    assert output.logits.shape == (2, 3)
    output.loss.backward()
    gradient = model.get_input_embeddings().weight.grad
    assert all(gradient[tokenizer.convert_tokens_to_ids(marker)].any() for marker in TASK.all_markers)
