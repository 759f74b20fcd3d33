"""The report's figures are right, its page is whole, and no text of the data becomes a part of it."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from kebiolm.data.knowledge_base import KnowledgeBase
from kebiolm.errors import UserError
from kebiolm.files import sha256_of_json
from kebiolm.linking import page_assets
from preprocessing.annotation.store import AnnotatedCorpus
from preprocessing.document import Document, Mention, Reject
from preprocessing.watch.charts import axis_ticks, column_chart, columns_of_tally, short_number
from preprocessing.watch.report import write_report
from preprocessing.watch.report_figures import EXAMPLES, ReportFigures, collect_figures
from preprocessing.watch.report_page import make_report_page
from tests.preprocessing.watch.conftest import CONCEPTS, example_documents, write_concepts, write_finished

EVIL = "<img src=x onerror=alert(1)> \"'&</script><script>alert(2)</script>"


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.scripts: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        self._open.append(tag)

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "script":
            self.scripts.append(data)
            self._open.pop()
        else:
            self.text += data


def figures_of(annotated: Path, kb: Path) -> ReportFigures:
    return collect_figures(AnnotatedCorpus.load(annotated), KnowledgeBase.load(kb))


def test_the_figures(annotated: Path, kb: Path) -> None:
    figures = figures_of(annotated, kb)
    # Documents 0 to 9 have as many mentions as their number, the other 20 have 10 each; Aspirin comes first.
    aspirin, headache = 5 * 20 + sum(-(-n // 2) for n in range(10)), 5 * 20 + sum(n // 2 for n in range(10))
    assert figures.lengths[7] == aspirin and figures.lengths[8] == headache
    assert figures.lengths.sum() == figures.scores.sum() == aspirin + headache == 245
    assert figures.score_ones == figures.scores[-1] == aspirin and figures.scores[6] == headache
    assert figures.per_document[:11].tolist() == [1] * 10 + [20]
    assert [(concept.name, count) for concept, count in figures.top] == [("Aspirin", aspirin), ("Headache", headache)]
    assert figures.semantic_types == {
        "Organic Chemical": aspirin,
        "Pharmacologic Substance": aspirin,
        "Sign or Symptom": headache,
    }
    assert (figures.concepts_used, figures.unknown_concepts) == (2, 0)
    assert [reject.doc_id for reject in figures.rejects["empty-abstract"]] == ["r1", "r2"]


def test_examples_are_spread_over_the_corpus_and_worth_reading(annotated: Path, kb: Path) -> None:
    examples = figures_of(annotated, kb).examples
    numbers = [int(document.doc_id[1:]) for document in examples]
    assert len(numbers) == len(set(numbers)) and len(numbers) >= EXAMPLES - 3
    assert numbers == sorted(numbers) and numbers[-1] > 25
    assert all(len(document.mentions) >= 3 for document in examples)


def test_a_corpus_with_nothing_in_it(tmp_path: Path, kb: Path) -> None:
    for name, documents in (("empty", []), ("unlinked", [Document(doc_id="1", text="Nothing here.")])):
        folder = write_finished(tmp_path / name, [(documents, [])], kb)
        page = Page(make_report_page(figures_of(folder, kb)))
        assert "Annotation report" in page.text and "Every record of the input became a document" in page.text


def test_concepts_that_the_knowledge_base_lacks(tmp_path: Path, kb: Path) -> None:
    mentions = (Mention(start=0, end=7, cui="C9999999", score=1.0), Mention(start=8, end=9, cui="C0000003", score=1.0))
    folder = write_finished(tmp_path / "other", [([Document(doc_id="1", text="Unknown x", mentions=mentions)], [])], kb)
    figures = figures_of(folder, kb)
    assert figures.unknown_concepts == 1 and figures.semantic_types == {}
    text = Page(make_report_page(figures)).text
    assert "C9999999" in text and "1 are not in this knowledge base" in text and "no semantic type" in text


def test_the_same_corpus_gives_the_same_bytes(annotated: Path, kb: Path, tmp_path: Path) -> None:
    write_report(annotated, kb, tmp_path / "1.html")
    write_report(annotated, kb, tmp_path / "2.html")
    assert (tmp_path / "1.html").read_bytes() == (tmp_path / "2.html").read_bytes()


def test_a_page_is_one_file_that_asks_nobody(annotated: Path, kb: Path) -> None:
    page = Page(make_report_page(figures_of(annotated, kb)))
    assert not {"link", "img", "iframe", "object", "embed", "form"} & set(page.tags)
    assert not [value for name, value in page.attributes if name in ("src", "href", "action")]
    assert page.scripts == [page_assets.SCRIPT]
    ids = [value for name, value in page.attributes if name == "id"]
    controlled = [value for name, value in page.attributes if name == "aria-controls"]
    assert len(ids) == len(set(ids)) and set(controlled) <= set(ids) and controlled


def test_no_text_of_the_data_becomes_markup(tmp_path: Path) -> None:
    kb = write_concepts(tmp_path / "kb", {**CONCEPTS, "C0000004": (EVIL, (EVIL,))})
    mentions = (Mention(start=0, end=4, cui="C0000004", score=0.9),)
    document = Document(doc_id=EVIL, text=f"{EVIL}\x00\x1b[31m", mentions=mentions)
    reject = Reject(doc_id=EVIL, source=EVIL, reason=EVIL, detail=EVIL)
    folder = write_finished(tmp_path / "evil", [([document], [reject])], kb)
    page = make_report_page(figures_of(folder, kb))
    parsed = Page(page)
    assert parsed.scripts == [page_assets.SCRIPT] and "img" not in parsed.tags
    assert not [name for name, _ in parsed.attributes if name.startswith("on")]
    # As doc id, name, type, reason, source, reject's id and detail, and in the text itself.
    assert parsed.text.count("onerror=alert(1)") >= 8
    assert "\x00" not in page and "\x1b" not in page


def test_the_page_stays_small_however_long_the_texts(tmp_path: Path, kb: Path) -> None:
    documents = example_documents(EXAMPLES, text="Aspirin eases headache. " * 20_000)
    rejects = [Reject(doc_id="1", source="x", reason=f"reason-{n:04d}", detail="y" * 300) for n in range(500)]
    page = make_report_page(figures_of(write_finished(tmp_path / "long", [(documents, rejects)], kb), kb))
    assert len(page) < 200_000 and "460 rarer reasons are not shown" in page


def test_shards_of_these_documents_only(annotated: Path, kb: Path, sample_shards: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="shards of other documents"):
        write_report(annotated, kb, tmp_path / "report.html", shards=sample_shards)
    assert not (tmp_path / "report.html").exists()


def test_the_fill_rate_of_shards(annotated: Path, kb: Path) -> None:
    corpus = AnnotatedCorpus.load(annotated)
    split = {"documents": 30, "sequences": 2, "pieces": 1000, "fill_rate": 0.9876, "mentions_in": 9, "mentions_kept": 8}
    shards = {
        "source": {"annotated_manifest_sha256": sha256_of_json(corpus.manifest)},
        "settings": {"max_length": 512},
        "counts": {"train": split, "heldout": split},
    }
    text = Page(make_report_page(collect_figures(corpus, KnowledgeBase.load(kb), shards))).text
    assert "98.8%" in text and "98.76%" in text and "at most 512 word pieces" in text


def test_columns_of_a_tally() -> None:
    tally = np.zeros(101, np.int64)
    tally[[1, 2, 3, 4]] = [100, 50, 20, 10]
    columns = columns_of_tally(tally, first=1)
    assert [(column.label, column.count) for column in columns] == [("1", 100), ("2", 50), ("3", 20), ("4", 10)]
    tally[100] = 1
    assert sum(column.count for column in columns_of_tally(tally, first=1)) == tally.sum()
    wide = columns_of_tally(np.ones(1001, np.int64))
    assert len(wide) <= 33 and sum(column.count for column in wide) == 1001 and wide[-1].label.endswith("or more")


@pytest.mark.parametrize("most", [0, 1, 3, 7, 99, 100, 12_345, 660_000_000])
def test_an_axis_holds_its_highest_column_with_few_round_numbers(most: int) -> None:
    top, ticks = axis_ticks(most)
    assert top >= most and top <= max(2 * most, 1)
    assert ticks[0] == 0 and ticks[-1] <= top and len(ticks) <= 6


def test_short_numbers_and_charts_of_nothing() -> None:
    assert [short_number(value) for value in (0, 950, 1500, 20e6, 3e9)] == ["0", "950", "1.5K", "20M", "3G"]
    assert column_chart([], title="x", unit="y").startswith("<svg")
