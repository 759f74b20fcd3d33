"""Write the mini PubMed: XML files as NLM ships them, and the gold mentions in PubTator format."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path

from preprocessing.sample.abstracts import Abstract, Section

_HEADER = """<?xml version="1.0" encoding="utf-8"?>
<!DOCTYPE PubmedArticleSet PUBLIC "-//NLM//DTD PubMedArticle, 1st January 2025//EN" \
"https://dtd.nlm.nih.gov/ncbi/pubmed/out/pubmed_250101.dtd">
<PubmedArticleSet>
"""
_FOOTER = "</PubmedArticleSet>\n"


def write_pubmed(folder: Path, abstracts: Sequence[Abstract], per_file: int) -> None:
    """Write files of `per_file` articles each; the last one is gzipped."""
    folder.mkdir(parents=True)
    chunks = [abstracts[start : start + per_file] for start in range(0, len(abstracts), per_file)]
    for number, chunk in enumerate(chunks, start=1):
        raw = (_HEADER + "".join(_article_xml(abstract) for abstract in chunk) + _FOOTER).encode("utf-8")
        path = folder / f"sample{number:04}.xml"
        if number == len(chunks):
            # A time stamp of 0, because the same sample must be the same bytes.
            path.with_name(path.name + ".gz").write_bytes(gzip.compress(raw, mtime=0))
        else:
            path.write_bytes(raw)


def write_gold(path: Path, abstracts: Sequence[Abstract]) -> None:
    """Write text and mentions in PubTator format: id, start, end, mention, kind, CUI; offsets count characters."""
    blocks = []
    for abstract in abstracts:
        document = abstract.document
        lines = [f"{abstract.pmid}|t|{abstract.title.text}", f"{abstract.pmid}|a|{abstract.abstract.text}"]
        for mention in document.mentions:
            name, concept = document.text[mention.start : mention.end], mention.concept
            fields = (abstract.pmid, str(mention.start), str(mention.end), name, concept.group, concept.cui)
            lines.append("\t".join(fields))
        blocks.append("\n".join(lines) + "\n")
    path.write_bytes("\n".join(blocks).encode("utf-8"))


def _article_xml(abstract: Abstract) -> str:
    sections = "\n".join(f"          {_section_xml(section)}" for section in abstract.sections)
    return f"""  <PubmedArticle>
    <MedlineCitation Status="MEDLINE" Owner="NLM">
      <PMID Version="1">{abstract.pmid}</PMID>
      <Article PubModel="Print">
        <Journal>
          <Title>Journal of Made-Up Medicine</Title>
        </Journal>
        <ArticleTitle>{abstract.title.xml}</ArticleTitle>
        <Abstract>
{sections}
        </Abstract>
        <Language>eng</Language>
      </Article>
    </MedlineCitation>
    <PubmedData>
      <ArticleIdList>
        <ArticleId IdType="pubmed">{abstract.pmid}</ArticleId>
      </ArticleIdList>
    </PubmedData>
  </PubmedArticle>
"""


def _section_xml(section: Section) -> str:
    label = f' Label="{section.label}" NlmCategory="{section.label}"' if section.label else ""
    return f"<AbstractText{label}>{section.passage.xml}</AbstractText>"
