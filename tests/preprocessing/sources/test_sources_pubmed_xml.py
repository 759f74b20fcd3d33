"""PubMed XML as NLM writes it, and as an attacker would."""

from __future__ import annotations

import gzip
import io
import resource
from pathlib import Path

import pytest

from kebiolm.errors import UserError
from preprocessing.document import Document, Reject
from preprocessing.sources import open_source, xml_events
from preprocessing.sources.pubmed_xml import read_pubmed_xml

DOCTYPE = (
    '<?xml version="1.0" encoding="utf-8"?>\n'
    '<!DOCTYPE PubmedArticleSet PUBLIC "-//NLM//DTD PubMedArticle, 1st January 2025//EN" '
    '"https://dtd.nlm.nih.gov/ncbi/pubmed/out/pubmed_250101.dtd">\n'
)


def article(pmid: str, title: str, abstract: str) -> str:
    return (
        f'<PubmedArticle><MedlineCitation><PMID Version="1">{pmid}</PMID><Article>'
        f"<ArticleTitle>{title}</ArticleTitle>{abstract}</Article></MedlineCitation>"
        "<PubmedData><ReferenceList><Reference><ArticleIdList><ArticleId>9</ArticleId></ArticleIdList></Reference>"
        "</ReferenceList></PubmedData></PubmedArticle>\n"
    )


def plain(text: str) -> str:
    return f"<Abstract><AbstractText>{text}</AbstractText></Abstract>"


def write(path: Path, body: str, *, root: str = "PubmedArticleSet", head: str = DOCTYPE) -> Path:
    path.write_text(f"{head}<{root}>\n{body}</{root}>\n", encoding="utf-8")
    return path


def read(path: Path) -> tuple[list[Document], list[Reject]]:
    records = list(open_source(path))
    documents = [record for record in records if isinstance(record, Document)]
    return documents, [record for record in records if isinstance(record, Reject)]


def test_title_and_structured_abstract_are_joined(tmp_path: Path) -> None:
    abstract = (
        '<Abstract><AbstractText Label="BACKGROUND" NlmCategory="BACKGROUND">Pain is common.</AbstractText>'
        '<AbstractText Label="RESULTS">It\n  fell.</AbstractText><AbstractText Label="EMPTY"/>'
        "<AbstractText>No label.</AbstractText><CopyrightInformation>Copyright 2020</CopyrightInformation></Abstract>"
        '<OtherAbstract Language="spa"><AbstractText>Otro.</AbstractText></OtherAbstract>'
    )
    documents, rejects = read(write(tmp_path / "a.xml", article("1", "On pain.", abstract)))
    assert documents == [Document(doc_id="1", text="On pain. BACKGROUND: Pain is common. RESULTS: It fell. No label.")]
    assert rejects == []


def test_inline_markup_is_dissolved(tmp_path: Path) -> None:
    body = article("1", "<i>In vivo</i> H<sub>2</sub>O", plain("10<sup>-3</sup> &lt;b&gt; <b>bo<i>ld</i></b> &#945;"))
    documents, _ = read(write(tmp_path / "a.xml", body))
    assert documents[0].text == "In vivo H2O 10-3 <b> bold \N{GREEK SMALL LETTER ALPHA}"


def test_every_record_is_accounted_for(tmp_path: Path) -> None:
    body = (
        article("1", "Title", plain("Text."))
        + article("2", "Only a title", "")
        + article("3", "Blank", plain("  \n"))
        + article("1", "Again", plain("Text."))
        + article("", "No id", plain("Text."))
        + "<PubmedBookArticle><BookDocument><PMID>77</PMID><Abstract><AbstractText>Book.</AbstractText></Abstract>"
        "</BookDocument></PubmedBookArticle>" + "<DeleteCitation><PMID>88</PMID><PMID>89</PMID></DeleteCitation>"
    )
    documents, rejects = read(write(tmp_path / "a.xml", body))
    assert [document.doc_id for document in documents] == ["1", "1"]
    assert [(reject.doc_id, reject.reason) for reject in rejects] == [
        ("2", "empty-abstract"),
        ("3", "empty-abstract"),
        ("", "missing-field"),
        ("77", "book-article"),
        ("88", "deleted-citation"),
        ("89", "deleted-citation"),
    ]


def test_gzip_another_encoding_and_a_single_article_are_read(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.xml", article("1", "T", plain("Größe.")))
    packed = tmp_path / "a.xml.gz"
    packed.write_bytes(gzip.compress(whole.read_bytes()))
    latin = tmp_path / "latin.xml"
    latin.write_bytes(whole.read_text(encoding="utf-8").replace("utf-8", "iso-8859-1").encode("iso-8859-1"))
    single = tmp_path / "single.xml"
    single.write_text(article("1", "T", plain("Größe.")), encoding="utf-8")
    for path in (whole, packed, latin, single):
        assert read(path) == ([Document(doc_id="1", text="T Größe.")], []), path.name


# Each level names the one below ten times: a9 would be 10^9 times "lol".
BILLION_LAUGHS = '<!ENTITY a0 "lol">' + "".join(
    '<!ENTITY a{} "{}">'.format(level, f"&a{level - 1};" * 10) for level in range(1, 10)
)


@pytest.mark.parametrize(
    ("declarations", "text"),
    [
        (BILLION_LAUGHS, "&a9;"),
        (f'<!ENTITY big "{"x" * 100_000}">', "&big;" * 1000),
        ('<!ENTITY leak SYSTEM "file:///etc/passwd">', "&leak;"),
        ('<!ENTITY % remote SYSTEM "http://127.0.0.1:9/x.dtd"> %remote;', "none"),
        ('<!NOTATION n SYSTEM "n"><!ENTITY raw SYSTEM "file:///etc/passwd" NDATA n>', "none"),
        (" " * 200_000 + '<!ENTITY late "x">', "&late;"),
    ],
    ids=["billion-laughs", "quadratic", "external-file", "external-parameter", "unparsed", "after-many-blocks"],
)
def test_entities_are_refused_and_cost_no_memory(tmp_path: Path, declarations: str, text: str) -> None:
    path = tmp_path / "bomb.xml"
    head = f"<!DOCTYPE PubmedArticleSet [{declarations}]>\n"
    write(path, article("1", "T", plain(text)), head=head)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    documents, rejects = read(path)
    assert documents == []
    assert [reject.reason for reject in rejects] == ["forbidden-xml"]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # KiB


def test_an_entity_that_is_declared_elsewhere_is_not_fetched(tmp_path: Path) -> None:
    (tmp_path / "a.dtd").write_text('<!ENTITY secret "leaked">')
    head = '<!DOCTYPE PubmedArticleSet SYSTEM "a.dtd">'
    path = write(
        tmp_path / "a.xml", article("1", "T", plain("Text.")) + article("2", "T", plain("&secret;")), head=head
    )
    documents, rejects = read(path)
    assert [document.text for document in documents] == ["T Text."]
    assert [reject.reason for reject in rejects] == ["bad-xml"] and "undefined entity" in rejects[0].detail


def test_an_endless_record_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xml_events, "MAX_RECORD_BYTES", 600_000)
    many = "".join(article(str(pmid), "T", plain("Text.")) for pmid in range(3000))
    documents, rejects = read(write(tmp_path / "many.xml", many))
    assert (len(documents), rejects) == (3000, [])
    documents, rejects = read(write(tmp_path / "a.xml", many + article("x", "T", plain("word " * 400_000))))
    assert len(documents) == 3000
    assert [reject.reason for reject in rejects] == ["forbidden-xml"] and "after 3000 records" in rejects[0].detail


def test_broken_xml_keeps_what_stands_before_it(tmp_path: Path) -> None:
    path = write(tmp_path / "a.xml", article("1", "T", plain("Text.")) + "<PubmedArticle><oops></PubmedArticle>")
    documents, rejects = read(path)
    assert [document.doc_id for document in documents] == ["1"]
    assert rejects[0].reason == "bad-xml"
    assert rejects[0].source == "a.xml:5"
    assert "after 1 records" in rejects[0].detail


def test_invalid_utf8_in_xml(tmp_path: Path) -> None:
    path = write(tmp_path / "a.xml", article("1", "T", plain("Text.")) + article("2", "T", plain("@@@")))
    path.write_bytes(path.read_bytes().replace(b"@@@", b"\xff\xfe\xfd"))
    documents, rejects = read(path)
    assert [document.doc_id for document in documents] == ["1"]
    assert [reject.reason for reject in rejects] == ["bad-xml"]


@pytest.mark.parametrize("encoding", ["foo-8", "shift_jis", "hex", "utf-16"])
def test_an_encoding_that_cannot_be_read_is_a_reject(tmp_path: Path, encoding: str) -> None:
    head = f'<?xml version="1.0" encoding="{encoding}"?>\n'
    documents, rejects = read(write(tmp_path / "a.xml", article("1", "T", plain("Text.")), head=head))
    assert documents == []
    assert [reject.reason for reject in rejects] == ["bad-xml"]
    assert rejects[0].source.startswith("a.xml") and "encoding" in rejects[0].detail


def test_a_users_mistake_is_no_bad_xml() -> None:
    class Failing(io.BytesIO):
        def read1(self, size: int | None = -1) -> bytes:
            raise UserError("stream", got="x", expected="y", mend="z")

    with pytest.raises(UserError, match="stream"):
        list(read_pubmed_xml(Failing(), "a.xml"))


def test_gzip_cut_short_keeps_what_stands_before_the_cut(tmp_path: Path) -> None:
    body = "".join(article(str(pmid), f"Title {pmid * 7919}", plain(f"Text {pmid**3}.")) for pmid in range(1, 3000))
    whole = write(tmp_path / "a.xml", body)
    packed = gzip.compress(whole.read_bytes())
    cut = tmp_path / "cut.xml.gz"
    cut.write_bytes(packed[: len(packed) // 2])
    documents, rejects = read(cut)
    assert 500 < len(documents) < 2900
    assert [reject.reason for reject in rejects] == ["unreadable-rest"]
    assert f"after {len(documents)} records" in rejects[0].detail


def test_a_page_that_is_no_pubmed_is_not_silent(tmp_path: Path) -> None:
    path = write(tmp_path / "a.xml", "<body>502 Bad Gateway</body>", root="html", head="")
    assert [reject.reason for reject in read(path)[1]] == ["no-records"]


def test_memory_stays_flat(tmp_path: Path) -> None:
    path = tmp_path / "big.xml"
    with open(path, "w", encoding="utf-8") as file:
        file.write(f"{DOCTYPE}<PubmedArticleSet>")
        for pmid in range(8000):
            file.write(article(str(pmid), "Title", plain("word " * 500)))
        file.write("</PubmedArticleSet>")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert sum(1 for _ in open_source(path)) == 8000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 12_000  # KiB; the file has 22 MB
