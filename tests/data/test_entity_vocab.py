"""Entity vocabulary: rows, files, bad files."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from kebiolm.data.entity_vocab import NIL_ROW, NUM_SPECIAL_ROWS, EntityVocab
from kebiolm.errors import UserError

COUNTS = {"C0017861": 3, "C0004057": 1, "C0011603": 2}


def test_rows_are_special_then_shuffled_in_a_fixed_order():
    vocab = EntityVocab.build(COUNTS)
    rows = [vocab.cui(row) for row in range(len(vocab))]
    assert rows[:3] == ["[PAD_ENT]", "[UNK_ENT]", "[NIL_ENT]"]
    assert sorted(rows[3:]) == ["C0004057", "C0011603", "C0017861"]
    # Neither the order of the counts nor other concepts change the order; it is not that of the CUIs.
    backwards = EntityVocab.build(dict(reversed(COUNTS.items())))
    assert rows == [backwards.cui(row) for row in range(len(backwards))]
    many = {f"C{number:07d}": 1 for number in range(1000)}
    order = list(map(EntityVocab.build(many).cui, range(3, 1003)))
    neighbours = sum(abs(int(one[1:]) - int(other[1:])) == 1 for one, other in itertools.pairwise(order))
    assert neighbours < 20
    fewer = list(map(EntityVocab.build(dict.fromkeys(list(many)[::2], 1)).cui, range(3, 503)))
    assert fewer == [cui for cui in order if cui in fewer]
    assert all(vocab.cui(vocab.row(cui)) == cui and vocab.count(vocab.row(cui)) == COUNTS[cui] for cui in COUNTS)
    assert vocab.row("C9999999") == NIL_ROW
    assert "C0017861" in vocab and "C9999999" not in vocab


def test_rows_do_not_depend_on_the_order_of_counting():
    assert EntityVocab.build(COUNTS).sha256 == EntityVocab.build(dict(reversed(COUNTS.items()))).sha256


def test_min_count_sends_rare_concepts_to_nil():
    vocab = EntityVocab.build(COUNTS, min_count=2)
    assert len(vocab) == NUM_SPECIAL_ROWS + 2
    assert vocab.row("C0004057") == NIL_ROW
    assert vocab.count(NIL_ROW) == 1


def test_save_and_load(tmp_path: Path):
    names = {"C0017861": "1,2,3-Propanetriol", "C0011603": "a name\twith\na break"}
    types = {"C0017861": ("Organic Chemical", "Pharmacologic Substance")}
    vocab = EntityVocab.build(COUNTS, names=names, semantic_types=types)
    vocab.save(tmp_path / "vocab.tsv")
    loaded = EntityVocab.load(tmp_path / "vocab.tsv")
    assert loaded.sha256 == vocab.sha256 and len(loaded) == len(vocab)
    row = loaded.row("C0017861")
    assert (loaded.name(row), loaded.count(row)) == (names["C0017861"], 3)
    assert loaded.semantic_types(row) == types["C0017861"]
    assert loaded.semantic_types(loaded.row("C0004057")) == ()
    assert loaded.name(loaded.row("C0011603")) == "a name with a break"
    assert loaded.name(loaded.row("C0004057")) == ""


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("", ":1"),
        ("row\tcui\n", ":1"),
        ("row\tcui\tname\tcount\tsemantic_type\n0\t[PAD_ENT]\t\t0\n", ":2"),
        ("row\tcui\tname\tcount\tsemantic_type\n1\t[PAD_ENT]\t\t0\t\n", ":2"),
        ("row\tcui\tname\tcount\tsemantic_type\n0\tC0000001\t\t0\t\n", "special|first rows"),
        ("row\tcui\tname\tcount\tsemantic_type\n0\t[PAD_ENT]\t\tmany\t\n", ":2"),
    ],
)
def test_broken_files_are_refused(tmp_path: Path, text: str, where: str):
    (tmp_path / "vocab.tsv").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=where):
        EntityVocab.load(tmp_path / "vocab.tsv")


def test_missing_file_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="kebiolm pack"):
        EntityVocab.load(tmp_path / "vocab.tsv")
