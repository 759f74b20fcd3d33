from __future__ import annotations

import pytest

from kebiolm.errors import UserError
from kebiolm.finetune.read_relations import find_markers, read_relations
from kebiolm.finetune.read_splits import read_relation_splits
from kebiolm.finetune.tasks import RelationTask, blurb_task

TASK = blurb_task("ChemProt")
GOOD = "r1\tthe @GENE$ of @CHEMICAL$\tCPR:3\n"


def test_rows_know_their_markers_in_text_order(data_file, warnings) -> None:
    path = data_file(f"{GOOD}r2\tx@CHEMICAL$/@GENE$\tfalse\nr3\tthe @CHEM-GENE$.\tCPR:9\n")
    rows = read_relations(path, TASK, warnings)
    marked = [[row.text[start:end] for start, end in row.marker_spans] for row in rows]
    assert marked == [["@GENE$", "@CHEMICAL$"], ["@CHEMICAL$", "@GENE$"], ["@CHEM-GENE$"]]
    assert [(row.row_id, row.label) for row in rows] == [("r1", "CPR:3"), ("r2", "false"), ("r3", "CPR:9")]
    assert rows[2].where == f"{path}:3"
    assert warnings.counts == {}


def test_a_header_is_no_row_and_its_absence_loses_none(data_file, warnings) -> None:
    task = blurb_task("GAD")
    row = "0\t@GENE$ and @DISEASE$\t1\n"
    assert len(read_relations(data_file(f"index\tsentence\tlabel\n{row}"), task, warnings)) == 1
    assert len(read_relations(data_file(row), task, warnings)) == 1


def test_rows_with_other_than_two_markers_are_kept_and_counted(data_file, warnings) -> None:
    path = data_file(f"{GOOD}a\tno marker\tfalse\nb\tone @GENE$\tfalse\nc\t@GENE$ @GENE$ @CHEMICAL$\tfalse\n\n")
    rows = read_relations(path, TASK, warnings)
    assert [len(row.marker_spans) for row in rows] == [2, 0, 1, 3]
    assert warnings.counts == {
        "empty lines, skipped": 1,
        "rows without a marker, classified by [CLS]": 1,
        "rows with one marker only, which is used for both entities": 1,
        "rows with more than two markers, of which the first two are used": 1,
    }


def test_a_file_in_which_no_row_has_its_markers_is_refused(data_file, warnings) -> None:
    task = RelationTask(name="mine", markers=("[E1]", "[E2]"))
    with pytest.raises(UserError, match=r"no row with its two markers; expected two of \[E1\], \[E2\]"):
        read_relations(data_file(GOOD), task, warnings)


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("r2\ttwo columns", "2 columns"),
        ("r2\tfour @GENE$\tcolumns @GENE$\tfalse", "4 columns"),
        ("r2\t \tfalse", "an empty column"),
        ("r2\t@GENE$ @GENE$\tCPR:7", "the label 'CPR:7'; expected one of false, CPR:3"),
        ("r2\t@GENE$ and @DRUG-DRUG$\tfalse", "the marker @DRUG-DRUG\\$"),
    ],
)
def test_a_broken_line_is_refused_by_its_number(data_file, warnings, line, named) -> None:
    path = data_file(f"{GOOD}{line}\n")
    with pytest.raises(UserError, match=named) as caught:
        read_relations(path, TASK, warnings)
    assert caught.value.where == f"{path}:2"


@pytest.mark.parametrize("content", ["", "index\tsentence\tlabel\n", "\n"])
def test_a_file_without_rows_is_refused(data_file, warnings, content) -> None:
    with pytest.raises(UserError, match="no row"):
        read_relations(data_file(content), TASK, warnings)


def test_the_longest_marker_is_found_and_a_stray_dollar_is_none() -> None:
    task = RelationTask(name="mine", markers=("@A$", "@A$B"))
    assert find_markers("@a$ @A$B $ @A$", task) == ((4, 8), (11, 14))


def test_the_real_sets_have_the_sizes_of_table_1_and_the_counted_shared_markers(real_data, warnings) -> None:
    read_relation_splits(blurb_task("GAD"), real_data / "blurb" / "GAD", warnings)
    chemprot = read_relation_splits(TASK, real_data / "blurb" / "chemprot", warnings, ("dev",))["dev"]
    drugs = read_relation_splits(blurb_task("DDI"), real_data / "blurb" / "DDI", warnings, ("dev",))["dev"]
    assert sum(len(row.marker_spans) == 1 for row in chemprot) == 946  # requirement D25
    assert sum(len(row.marker_spans) == 1 for row in drugs) == 3
    assert sum(row.label == "DDI-int" for row in drugs) == 11  # requirement U5
    assert warnings.counts == {}
