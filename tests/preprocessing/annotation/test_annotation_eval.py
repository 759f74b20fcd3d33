"""The figures of an evaluation, against counts made by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from kebiolm.errors import UserError
from preprocessing.annotation.evaluation import Score, evaluate, evaluate_and_report, read_codes
from preprocessing.document import Document, Mention
from preprocessing.sources.pubtator import GoldDocument, GoldMention

TEXT = "aspirin for pain and fever"


def gold(*mentions: tuple[int, int, str], doc_id: str = "1") -> GoldDocument:
    return GoldDocument(
        doc_id=doc_id,
        text=TEXT,
        mentions=tuple(
            GoldMention(start=start, end=end, text=TEXT[start:end], codes=tuple(filter(None, codes.split("|"))))
            for start, end, codes in mentions
        ),
    )


def annotated(*mentions: tuple[int, int, str], doc_id: str = "1", text: str = TEXT) -> Document:
    found = tuple(Mention(start=start, end=end, cui=cui, score=1.0) for start, end, cui in mentions)
    return Document(doc_id=doc_id, text=text, mentions=found)


def test_a_table_of_other_codes_is_refused() -> None:
    with pytest.raises(UserError, match="for any of the 1 gold mentions"):
        evaluate([annotated((0, 7, "C1"))], [gold((0, 7, "D1"), (8, 11, ""))], {"X1": {"C1"}})


def test_counts_made_by_hand() -> None:
    # aspirin: right. pain: span right, concept wrong. fever: one character short. The gold has a fourth mention, "for",
    # without a code, found with some concept; and a fifth, "and", with a code that no table knows, not found.
    documents = [
        annotated((0, 7, "C1"), (8, 11, "C9"), (12, 16, "C7"), (21, 25, "C3")),
        annotated((0, 7, "C1"), doc_id="only annotated"),
    ]
    golds = [
        gold((0, 7, "D1|D2"), (8, 11, ""), (12, 16, "D2"), (17, 20, "D99"), (21, 26, "D3")),
        gold((0, 7, "D1"), doc_id="only gold"),
    ]
    result = evaluate(documents, golds, {"D1": {"C1", "C5"}, "D2": {"C2"}, "D3": {"C3"}})
    assert result.spans == Score(true_positives=3, predicted=4, gold=6)
    assert result.linked_spans == Score(true_positives=1, predicted=4, gold=6)
    assert (result.spans.precision, result.spans.recall, result.spans.f1) == (0.75, 0.5, 0.6)
    assert (result.found_spans_right, result.found_spans_with_concept, result.linking_accuracy) == (1, 2, 0.5)
    assert result.counts == {
        "annotated_documents_without_gold": 1,
        "documents_compared": 1,
        "gold_documents": 2,
        "gold_documents_not_annotated": 1,
        "gold_mentions": 6,
        "gold_mentions_with_unmapped_code": 1,
        "gold_mentions_without_code": 1,
        "gold_offsets_beside_their_text": 0,
    }


def test_a_span_marked_twice_is_one_with_both_concepts() -> None:
    golds = [gold((0, 7, "D1"), (0, 7, "D2"))]
    result = evaluate([annotated((0, 7, "C2"))], golds, {"D1": {"C1"}, "D2": {"C2"}})
    assert result.linked_spans == Score(true_positives=1, predicted=1, gold=1)


def test_nothing_found_is_zero_not_an_error() -> None:
    result = evaluate([annotated()], [gold()], {})
    assert (result.spans.f1, result.spans.precision, result.linking_accuracy) == (0.0, 0.0, 0.0)


def test_documents_that_do_not_fit_are_the_users_mistake() -> None:
    with pytest.raises(UserError, match="differs"):
        evaluate([annotated(text="another text")], [gold()], {})
    with pytest.raises(UserError, match="in common"):
        evaluate([annotated(doc_id="2")], [gold()], {})


def test_report_and_its_file(tmp_path: Path, write_annotated: Callable[..., Path], capsys) -> None:
    folder = write_annotated([Document(doc_id="1", text="Pain relief by aspirin.", mentions=(
        Mention(start=0, end=4, cui="C1", score=0.9), Mention(start=15, end=22, cui="C2", score=1.0)))])  # fmt: skip
    gold_file, codes = tmp_path / "gold.txt", tmp_path / "codes.tsv"
    gold_file.write_text("1|t|Pain relief\n1|a|by aspirin.\n1\t0\t4\tPain\tX\tD1\n1\t15\t22\taspirin\tX\tD2\n")
    codes.write_text("D1\tC1\nD2\tC9\nD2\tC2\n")
    evaluate_and_report(folder, gold_file, codes, tmp_path / "eval.json")
    figures = json.loads((tmp_path / "eval.json").read_text())
    assert figures["linked_spans"]["f1"] == figures["spans"]["f1"] == 1.0
    assert "1.000" in capsys.readouterr().out
    codes.write_text("D1 C1\n")
    with pytest.raises(UserError, match=r"codes.tsv:1.*code TAB CUI"):
        read_codes(codes)
    with pytest.raises(UserError, match="No such file"):
        read_codes(tmp_path / "absent.tsv")
