from __future__ import annotations

import pytest

from kebiolm.errors import UserError
from kebiolm.finetune.read_ner import read_ner
from kebiolm.finetune.read_splits import read_ner_splits
from kebiolm.finetune.tasks import NerTask, blurb_task

TASK = NerTask(name="test")
TYPED = NerTask(name="test", entity_types=("Gene", "Drug"))


def test_sentences_know_their_words_labels_and_first_line(data_file, warnings) -> None:
    path = data_file("Aspirin\tB\nacid\tI\nhelps\tO\n\nNo\u00a0more\tO\n")
    first, second = read_ner(path, TASK, warnings)
    assert (first.words, first.labels) == (("Aspirin", "acid", "helps"), ("B", "I", "O"))
    assert (second.words, second.labels) == (("No\u00a0more",), ("O",))
    assert (first.where, second.where) == (f"{path}:1", f"{path}:5")
    assert warnings.counts == {}


def test_a_last_line_without_line_end_and_windows_line_ends_change_nothing(data_file, warnings) -> None:
    plain = read_ner(data_file("a\tB\n\nb\tO\nc\tI\n\n"), TASK, warnings)
    assert read_ner(data_file("a\tB\r\n\r\nb\tO\r\nc\tI"), TASK, warnings) == plain


def test_what_is_left_out_or_odd_is_counted(data_file, warnings) -> None:
    path = data_file("-DOCSTART-\tO\n\na\tI\nb\tI\n  \n\n\nc\tB\nd\tI\n\n")
    assert [sentence.words for sentence in read_ner(path, TASK, warnings)] == [("a", "b"), ("c", "d")]
    assert warnings.counts == {
        "-DOCSTART- lines, skipped": 1,
        "sentences without words, skipped": 3,
        "entities that begin with I, kept": 1,
    }
    assert f"(first: {path}:3)" in warnings.lines()[2]


def test_entity_types_are_ignored_and_counted_unless_the_task_names_them(data_file, warnings) -> None:
    path = data_file("a\tB-Gene\nb\tI-Gene\nc\tI-Drug\n")
    assert read_ner(path, TASK, warnings)[0].labels == ("B", "I", "I")
    assert warnings.counts == {"labels with an entity type, which is ignored": 3}
    assert read_ner(path, TYPED, warnings)[0].labels == ("B-Gene", "I-Gene", "I-Drug")
    assert warnings.counts["entities that begin with I, kept"] == 1
    assert TYPED.labels == ("O", "B-Gene", "I-Gene", "B-Drug", "I-Drug")


@pytest.mark.parametrize(
    ("line", "task", "named"),
    [
        ("word O", TASK, "'word O'"),
        ("word\tNN\tO", TASK, "a word, a tab and a label"),
        ("word\t", TASK, "a word, a tab and a label"),
        ("\tO", TASK, "a word, a tab and a label"),
        ("\t", TASK, "a word, a tab and a label"),
        ("word\tE", TASK, "the label 'E'; expected one of O, B, I"),
        ("word\tO ", TASK, "the label 'O '"),
        ("word\tB", TYPED, "one of O, B-Gene"),
        ("word\tB-Cell", TYPED, "the label 'B-Cell'"),
    ],
)
def test_a_broken_line_is_refused_by_its_number(data_file, warnings, line, task, named) -> None:
    path = data_file(f"fine\tO\n\nfine\tO\n{line}\n")
    with pytest.raises(UserError, match=named) as caught:
        read_ner(path, task, warnings)
    assert caught.value.where == f"{path}:4"


@pytest.mark.parametrize("content", ["", "\n\n", "-DOCSTART-\tO\n\n"])
def test_a_file_without_sentences_is_refused(data_file, warnings, content) -> None:
    with pytest.raises(UserError, match="no sentence"):
        read_ner(data_file(content), TASK, warnings)


def test_the_real_sets_have_the_sizes_of_table_1_but_for_the_known_difference(real_data, warnings) -> None:
    task = blurb_task("NCBI-disease")
    splits = read_ner_splits(task, real_data / "blurb" / task.name, warnings)
    assert {split: len(sentences) for split, sentences in splits.items()} == {"train": 5424, "dev": 923, "test": 940}
    (line,) = warnings.lines()
    assert "train split with 5134 mentions, as in the public BLURB files, where Table 1 of the paper says 5137" in line
    read_ner_splits(blurb_task("BC5CDR-chem"), real_data / "blurb" / "BC5CDR-chem", warnings, ("dev",))
    assert len(warnings.lines()) == 1


def test_another_size_than_expected_is_a_warning(data_file, warnings) -> None:
    folder = data_file("a\tB\nb\tB\n").parent
    task = NerTask(name="test", expected_sizes={"train": 3})
    read_ner_splits(task, folder, warnings, ("train",))
    assert list(warnings.counts) == ["train split with 2 mentions where task.expected_sizes says 3"]
