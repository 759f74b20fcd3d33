"""PubMed XML as NLM's baseline and update files and efetch give it, read as a stream in constant memory.

A document type declaration is accepted, because every file of NLM has one; a declaration of an entity is refused before
it can grow, and nothing outside the file is ever fetched.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO
from xml.etree.ElementTree import Element, ParseError

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import iterparse

from kebiolm.errors import UserError
from preprocessing.document import Document, Reject
from preprocessing.sources.record import make_record, make_reject


def read_pubmed_xml(stream: BinaryIO, name: str) -> Iterator[Document | Reject]:
    """Read one record from each article, book article and deleted citation.

    Broken XML, an encoding that cannot be read and forbidden declarations end the file: what stood before them is kept,
    and one reject ("bad-xml", "forbidden-xml") tells after how many records the rest was given up.
    """
    records = 0
    try:
        for record in _read_elements(stream, name):
            records += 1
            yield record
    except ParseError as error:
        source = f"{name}:{error.position[0]}"
        yield make_reject(source=source, reason="bad-xml", detail=f"{error}; the rest is lost after {records} records")
    except _EncodingError as error:
        yield make_reject(source=name, reason="bad-xml", detail=f"{error}; the rest is lost after {records} records")
    except DefusedXmlException as error:
        detail = f"entity or external reference refused ({error}); the rest is lost after {records} records"
        yield make_reject(source=name, reason="forbidden-xml", detail=detail)


class _EncodingError(Exception):
    """The file declares an encoding that the parser does not know, or cannot read."""


def _parse(stream: BinaryIO) -> Iterator[tuple[str, Element]]:
    """The parser's ("start" or "end", element) pairs."""
    events = iterparse(stream, events=("start", "end"), forbid_dtd=False, forbid_entities=True, forbid_external=True)
    while True:
        # Of an encoding the parser says LookupError, or ValueError where a character has several bytes. Only its own
        # step is guarded, so that no mistake of this program is taken for one of the file.
        try:
            event = next(events, None)
        except (DefusedXmlException, UserError):
            raise
        except (LookupError, ValueError) as error:
            raise _EncodingError(error) from None
        if event is None:
            return
        yield event


def _read_elements(stream: BinaryIO, name: str) -> Iterator[Document | Reject]:
    open_elements: list[Element] = []
    for event, element in _parse(stream):
        if event == "start":
            open_elements.append(element)
            continue
        open_elements.pop()
        if element.tag == "PubmedArticle":
            yield _read_article(element, name)
        elif element.tag == "PubmedBookArticle":
            doc_id = _flat_text(element.find("BookDocument/PMID"))
            yield make_reject(doc_id=doc_id, source=name, reason="book-article", detail="not a journal abstract")
        elif element.tag == "DeleteCitation":
            for pmid in element.iterfind("PMID"):
                detail = "NLM deleted this citation; earlier files may still hold it"
                yield make_reject(doc_id=_flat_text(pmid), source=name, reason="deleted-citation", detail=detail)
        # A finished child of the root is dropped, or the whole file would gather in memory; a root that is itself one
        # article keeps its children until it is read.
        if len(open_elements) == 1 and open_elements[0].tag != "PubmedArticle":
            open_elements[0].clear()


def _read_article(article: Element, name: str) -> Document | Reject:
    doc_id = _flat_text(article.find("MedlineCitation/PMID"))
    title = _flat_text(article.find("MedlineCitation/Article/ArticleTitle"))
    sections = [_read_section(part) for part in article.iterfind("MedlineCitation/Article/Abstract/AbstractText")]
    abstract = " ".join(section for section in sections if section)
    return make_record(doc_id=doc_id, source=f"{name}#{doc_id}", title=title, abstract=abstract)


def _read_section(section: Element) -> str:
    """A section of a structured abstract with its label in front: "RESULTS: We found ..."."""
    text, label = _flat_text(section), " ".join(section.get("Label", "").split())
    return f"{label}: {text}" if text and label else text


def _flat_text(element: Element | None) -> str:
    """All text inside an element, inline markup (sub, sup, i, b, mathematics) dissolved, white space joined."""
    return " ".join("".join(element.itertext()).split()) if element is not None else ""
