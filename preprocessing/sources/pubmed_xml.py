"""PubMed XML as NLM's baseline and update files and efetch give it, read as a stream in constant memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from io import BufferedIOBase
from xml.etree.ElementTree import Element, ParseError

from preprocessing.document import Document, Reject
from preprocessing.sources.record import make_record, make_reject
from preprocessing.sources.xml_events import EncodingError, ForbiddenXmlError, XmlEvents


def read_pubmed_xml(stream: BufferedIOBase, name: str) -> Iterator[Document | Reject]:
    """Read one record from each article, book article and deleted citation.

    Broken XML, an encoding that cannot be read, declared entities and a record larger than 16 MiB end the file: what
    stood before them is kept, and one reject ("bad-xml", "forbidden-xml") tells after how many records the rest was
    given up.
    """
    records = 0
    try:
        for record in _read_records(stream, name):
            records += 1
            yield record
    except ParseError as error:
        source = f"{name}:{error.position[0]}"
        yield make_reject(source=source, reason="bad-xml", detail=f"{error}; the rest is lost after {records} records")
    except EncodingError as error:
        yield make_reject(source=name, reason="bad-xml", detail=f"{error}; the rest is lost after {records} records")
    except ForbiddenXmlError as error:
        detail = f"{error}; the rest is lost after {records} records"
        yield make_reject(source=name, reason="forbidden-xml", detail=detail)


def _read_records(stream: BufferedIOBase, name: str) -> Iterator[Document | Reject]:
    events, open_elements = XmlEvents(stream), list[Element]()
    for event, element in events:
        if event == "start":
            open_elements.append(element)
            continue
        open_elements.pop()
        # What was read is dropped, or the whole file would gather in memory: a record at its end, and anything else
        # at the end of a child of the root. A root that is itself one article keeps its children until it is read.
        if element.tag in _RECORDS:
            yield from _RECORDS[element.tag](element, name)
            element.clear()
            events.end_record()
        if len(open_elements) == 1 and open_elements[0].tag not in _RECORDS:
            open_elements[0].clear()
            events.end_record()


def _read_book(book: Element, name: str) -> Iterator[Reject]:
    doc_id = _flat_text(book.find("BookDocument/PMID"))
    yield make_reject(doc_id=doc_id, source=name, reason="book-article", detail="not a journal abstract")


def _read_deletions(deletions: Element, name: str) -> Iterator[Reject]:
    for pmid in deletions.iterfind("PMID"):
        detail = "NLM deleted this citation; earlier files may still hold it"
        yield make_reject(doc_id=_flat_text(pmid), source=name, reason="deleted-citation", detail=detail)


def _read_article(article: Element, name: str) -> Iterator[Document | Reject]:
    doc_id = _flat_text(article.find("MedlineCitation/PMID"))
    title = _flat_text(article.find("MedlineCitation/Article/ArticleTitle"))
    sections = [_read_section(part) for part in article.iterfind("MedlineCitation/Article/Abstract/AbstractText")]
    abstract = " ".join(section for section in sections if section)
    yield make_record(doc_id=doc_id, source=f"{name}#{doc_id}", title=title, abstract=abstract)


def _read_section(section: Element) -> str:
    """A section of a structured abstract with its label in front: "RESULTS: We found ..."."""
    text, label = _flat_text(section), " ".join(section.get("Label", "").split())
    return f"{label}: {text}" if text and label else text


def _flat_text(element: Element | None) -> str:
    """All text inside an element, inline markup (sub, sup, i, b, mathematics) dissolved, white space joined."""
    return " ".join("".join(element.itertext()).split()) if element is not None else ""


_RECORDS: dict[str, Callable[[Element, str], Iterator[Document | Reject]]] = {
    "PubmedArticle": _read_article,
    "PubmedBookArticle": _read_book,
    "DeleteCitation": _read_deletions,
}
