"""Inputs as an accident, a bad export or an attacker makes them, and what must come of each.

A case is one or more small files. Either the job refuses it in one line before it starts, or every record of it ends as
a document or as a counted reject. Texts name aspirin, so that a test can see whether mentions still stand where they
should.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

TEXT = "Aspirin helps."


@dataclass(frozen=True, kw_only=True)
class NastyInput:
    """One case.

    Attributes:
        name: of the case, and the beginning of its ids.
        files: name of the case -> ending of each file's name, or a whole name with a folder -> its bytes.
        documents: how many documents come out.
        rejects: reason -> how many records are set aside for it.
        refused: what the one line says with which the job refuses it before it starts; empty where it does not.
    """

    name: str
    files: Callable[[str], dict[str, bytes]]
    documents: int = 0
    rejects: Mapping[str, int] = field(default_factory=dict)
    refused: str = ""

    def write(self, folder: Path) -> list[Path]:
        """Write the files into a folder; returns their paths."""
        paths = []
        for ending, content in self.files(self.name).items():
            path = folder / (ending if "/" in ending else f"{self.name}.{ending}")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            paths.append(path)
        return paths


def json_lines(case: str, *texts: str) -> bytes:
    """A line for each text, all ASCII: what is not is escaped."""
    records = [{"id": f"{case}/{number}", "text": text} for number, text in enumerate(texts)]
    return "".join(f"{json.dumps(record)}\n" for record in records).encode()


def pubmed(case: str, *abstracts: str, head: str = "", encoding: str = "utf-8") -> bytes:
    """A set of articles with the given contents of their `Abstract` elements."""
    body = "".join(article(f"{case}/{n}", abstract) for n, abstract in enumerate(abstracts))
    return f"{head}<PubmedArticleSet>{body}</PubmedArticleSet>".encode(encoding)


def article(pmid: str, abstract: str) -> str:
    """One article; the abstract is XML, its `AbstractText` elements included where it begins with one."""
    sections = abstract if abstract.startswith("<AbstractText") else f"<AbstractText>{abstract}</AbstractText>"
    return (
        f"<PubmedArticle><MedlineCitation><PMID>{pmid}</PMID><Article><ArticleTitle>Title</ArticleTitle>"
        f"<Abstract>{sections}</Abstract></Article></MedlineCitation></PubmedArticle>"
    )


def with_entities(declarations: str) -> str:
    """The beginning of a file that declares entities."""
    return f"<!DOCTYPE PubmedArticleSet [{declarations}]>"


def zipped(content: bytes) -> bytes:
    """A zip archive of one file."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("a.jsonl", content)
    return packed.getvalue()


def text_case(name: str, *texts: str, documents: int = 0, rejects: Mapping[str, int] | None = None) -> NastyInput:
    """A case of JSON lines whose texts are what is nasty."""
    return NastyInput(
        name=name, files=lambda case: {"jsonl": json_lines(case, *texts)}, documents=documents, rejects=rejects or {}
    )


def lines_case(
    name: str, *lines: bytes | str, documents: int = 0, rejects: Mapping[str, int] | None = None, ending: str = "jsonl"
) -> NastyInput:
    """A case whose lines are given as they stand in the file; "CASE" in them becomes the name of the case."""
    raw = [line.encode() if isinstance(line, str) else line for line in lines]
    content = b"\n".join(raw).replace(b"CASE", name.encode())
    return NastyInput(name=name, files=lambda _: {ending: content}, documents=documents, rejects=rejects or {})


def xml_case(
    name: str,
    *abstracts: str,
    documents: int = 0,
    rejects: Mapping[str, int] | None = None,
    head: str = "",
    encoding: str = "utf-8",
) -> NastyInput:
    """A case of PubMed XML with the given abstracts."""
    return NastyInput(
        name=name,
        files=lambda case: {"xml": pubmed(case, *abstracts, head=head, encoding=encoding)},
        documents=documents,
        rejects=rejects or {},
    )


def refused_case(name: str, files: Callable[[str], dict[str, bytes]], refused: str) -> NastyInput:
    """A case that the job refuses."""
    return NastyInput(name=name, files=files, refused=refused)


# Each level names the one below ten times: a9 would be 10^9 times "lol".
BILLION_LAUGHS = '<!ENTITY a0 "lol">' + "".join(
    f'<!ENTITY a{level} "{f"&a{level - 1};" * 10}">' for level in range(1, 10)
)

TEXTS = [
    text_case("lone-surrogate", TEXT, "Aspirin \ud800.", documents=1, rejects={"lone-surrogate": 1}),
    text_case("surrogate-pair", "\U0001f600 aspirin \U00010000 aspirin", documents=1),
    text_case("nul", "\0 aspirin\0 \0", documents=1),
    text_case("control-characters", "".join(map(chr, range(32))) + " aspirin \x1b[31m\x7f\x85\x9b", documents=1),
    text_case("two-megabytes", "aspirin " * 250_000, rejects={"text-too-long": 1}),
    text_case("200k-letters", "a" * 200_000, rejects={"text-too-long": 1}),
    text_case("5000-letters", "a" * 5000, rejects={"words-too-long": 1}),
    text_case("no-spaces", "\u963f\u53f8\u5339\u6797" * 200 + " aspirin", documents=1),
    text_case("thousands-of-brackets", "(" * 3000 + TEXT + ")" * 3000, rejects={"words-too-long": 1}),
    text_case("thousands-of-bracketed-words", "Aspirin (As) " * 3000, documents=1),
    text_case("unbalanced-brackets", ") ]( ( aspirin ((( ) [ aspirin )", documents=1),
    text_case("white-space-only", " ", "\n\t\u00a0\u2003", "", rejects={"empty-abstract": 3}),
    text_case("90k-newlines", "\n" * 90_000 + "aspirin", documents=1),
    text_case("combining-characters", "a" + "\u0301" * 500 + " aspirin e\u0301 aspirin\u0301", documents=1),
    text_case("right-to-left", "\u202enirips\u0430 aspirin\u202c \u200f aspirin \u061c", documents=1),
    text_case("emoji", "\U0001f468\u200d\U0001f469\u200d\U0001f467 aspirin \U0001f3f3\ufe0f aspirin", documents=1),
    text_case("no-characters", "\uffff\ufffe\ufdd0 aspirin \ufeffaspirin", documents=1),
    text_case("line-separators", "aspirin\u2028aspirin\u2029aspirin\x85aspirin\x0b\x0c", documents=1),
    text_case("markup", "<script>aspirin</script> [red]aspirin[/] %s {0} ${HOME} aspirin", documents=1),
]

JSON = [
    lines_case("empty-file", rejects={"no-records": 1}),
    lines_case("blank-lines", "", "  ", "\t", "", rejects={"no-records": 1}),
    lines_case("crlf", '{"id": "CASE/1", "text": "Aspirin."}\r', "\r", '{"id": "CASE/2", "text": "A."}\r', documents=2),
    lines_case(
        "only-carriage-returns", '{"id": "1", "text": "A"}\r{"id": "2", "text": "A"}\r', rejects={"bad-json": 1}
    ),
    lines_case("byte-order-mark", b'\xef\xbb\xbf{"id": "CASE", "text": "Aspirin."}', documents=1),
    lines_case("missing-fields", "{}", '{"id": "1"}', '{"text": "A"}', rejects={"missing-field": 3}),
    lines_case(
        "wrong-types",
        '{"id": null, "text": "A"}',
        '{"id": ["1"], "text": "A"}',
        '{"id": true, "text": "A"}',
        '{"id": "1", "text": null}',
        '{"id": "1", "text": ["A"]}',
        rejects={"missing-field": 5},
    ),
    lines_case(
        "no-objects", '{"id": "CASE", "text": "Aspirin."}', "null", "[]", "1", documents=1, rejects={"bad-json": 3}
    ),
    lines_case("100k-deep", '{"id": ' + "[" * 100_000, '{"a":' * 100_000, rejects={"bad-json": 2}),
    lines_case(
        "no-numbers",
        '{"id": NaN, "text": "A"}',
        '{"id": 1e400, "text": "A"}',
        '{"id": 1' + "0" * 5000 + ', "text": "A"}',
        rejects={"missing-field": 2, "bad-json": 1},
    ),
    lines_case("integer-ids", '{"id": 70000001, "text": "A"}', '{"id": -70000001, "text": "A"}', documents=2),
    lines_case(
        "ids-as-paths",
        r'{"id": "CASE/../../etc/passwd", "text": "Aspirin."}',
        '{"id": "/CASE/etc/passwd", "text": "Aspirin."}',
        r'{"id": "CASE\\..\\x", "text": "Aspirin."}',
        '{"id": "..", "text": "Aspirin."}',
        documents=4,
    ),
    lines_case("ids-with-newlines", r'{"id": "CASE\n\t\u0000\u202e[red]", "text": "Aspirin."}', documents=1),
    lines_case("id-of-10-kb", '{"id": "' + "x" * 10_000 + '", "text": "A"}', rejects={"id-too-long": 1}),
    lines_case("blank-ids", '{"id": "", "text": "A"}', '{"id": " ", "text": "A"}', rejects={"missing-field": 2}),
    lines_case("surrogate-in-id", r'{"id": "\udfff", "text": "A"}', rejects={"lone-surrogate": 1}),
    lines_case("field-twice", '{"id": "x", "id": "CASE", "text": "", "text": "Aspirin."}', documents=1),
    lines_case("raw-nul", b'{"id": "1", "text": "a\0b"}', b"\0\0\0", rejects={"bad-json": 2}),
    lines_case(
        "invalid-utf8",
        b'{"id": "1", "text": "\xff"}',
        '{"id": "CASE", "text": "A"}',
        documents=1,
        rejects={"invalid-utf8": 1},
    ),
    lines_case("latin-1", '{"id": "1", "text": "Gr\u00f6\u00dfe"}'.encode("latin-1"), rejects={"invalid-utf8": 1}),
    lines_case(
        "utf-16-lines", '{"id": "1", "text": "A"}\n'.encode("utf-16"), rejects={"invalid-utf8": 1, "bad-json": 1}
    ),
    lines_case(
        "cut-line", '{"id": "CASE", "text": "A"}', '{"id": "2", "text": "Asp', documents=1, rejects={"bad-json": 1}
    ),
    lines_case("two-on-a-line", '{"id": "1", "text": "A"} {"id": "2", "text": "A"}', rejects={"bad-json": 1}),
    NastyInput(
        name="line-of-17-mib",
        files=lambda case: {"jsonl": json_lines(case, "a" * (17 << 20), TEXT)},
        documents=1,
        rejects={"line-too-long": 1},
    ),
    lines_case(
        "mixed-formats",
        '{"id": "CASE", "text": "Aspirin."}',
        "<PubmedArticleSet/>",
        "1|t|Title",
        '{"_id": "2", "text": "A"}',
        documents=1,
        rejects={"bad-json": 2, "missing-field": 1},
    ),
    lines_case("ids-twice", *['{"id": "CASE", "text": "Aspirin."}'] * 3, documents=1, rejects={"duplicate-id": 2}),
    lines_case(
        "ids-equal-as-text",
        '{"id": 70000002, "text": "A"}',
        '{"id": "70000002", "text": "A"}',
        documents=1,
        rejects={"duplicate-id": 1},
    ),
    NastyInput(
        name="ids-in-two-files",
        files=lambda case: {"1.jsonl": json_lines(case, TEXT, TEXT), "2.jsonl": json_lines(case, TEXT)},
        documents=2,
        rejects={"duplicate-id": 1},
    ),
    NastyInput(
        name="equal-file-names",
        files=lambda case: {"a/same.jsonl": json_lines(case, TEXT), "b/same.jsonl": json_lines(case + "b", TEXT)},
        documents=2,
    ),
    NastyInput(
        name="odd-file-name",
        files=lambda case: {"odd/ [red]\n%s \u202e\x1b[31m.jsonl": json_lines(case, TEXT)},
        documents=1,
    ),
]

GZIP = [
    NastyInput(
        name="cut-gzip",
        files=lambda case: {"jsonl.gz": gzip.compress(json_lines(case, TEXT)) + gzip.compress(b"{}" * 1000)[:-12]},
        documents=1,
        rejects={"unreadable-rest": 1},
    ),
    NastyInput(
        name="gzip-with-garbage",
        files=lambda case: {"jsonl.gz": gzip.compress(json_lines(case, TEXT)) + b"garbage"},
        documents=1,
        rejects={"unreadable-rest": 1},
    ),
    NastyInput(
        name="gzip-with-wrong-checksum",
        files=lambda case: {"jsonl.gz": gzip.compress(json_lines(case, TEXT))[:-8] + bytes(8)},
        documents=1,
        rejects={"unreadable-rest": 1},
    ),
    NastyInput(
        name="two-gzip-members",
        files=lambda case: {
            "jsonl.gz": gzip.compress(json_lines(case, TEXT)) + gzip.compress(json_lines(case + "b", TEXT))
        },
        documents=2,
    ),
    NastyInput(
        name="gzip-bomb",
        files=lambda case: {"jsonl.gz": gzip.compress(json_lines(case, TEXT) + b" " * (100 << 20), compresslevel=9)},
        documents=1,
        rejects={"unreadable-rest": 1},
    ),
    NastyInput(
        name="gzip-bomb-in-xml",
        files=lambda case: {"xml.gz": gzip.compress(pubmed(case, TEXT)[:-19] + b"<!--" + b" " * (100 << 20))},
        documents=1,
        rejects={"forbidden-xml": 1},
    ),
    NastyInput(
        name="gzip-without-its-ending", files=lambda case: {"jsonl": gzip.compress(json_lines(case, TEXT))}, documents=1
    ),
    NastyInput(name="ending-without-gzip", files=lambda case: {"jsonl.gz": json_lines(case, TEXT)}, documents=1),
    NastyInput(name="gzip-of-nothing", files=lambda _: {"jsonl.gz": gzip.compress(b"")}, rejects={"no-records": 1}),
    NastyInput(name="gzip-header-only", files=lambda _: {"xml.gz": b"\x1f\x8b\x08"}, rejects={"unreadable-rest": 1}),
]

XML = [
    xml_case("billion-laughs", "&a9;", head=with_entities(BILLION_LAUGHS), rejects={"forbidden-xml": 1}),
    xml_case(
        "quadratic-entities",
        "&b;" * 1000,
        head=with_entities(f'<!ENTITY b "{"x" * 100_000}">'),
        rejects={"forbidden-xml": 1},
    ),
    xml_case(
        "external-entity",
        "&leak;",
        head=with_entities('<!ENTITY leak SYSTEM "file:///etc/passwd">'),
        rejects={"forbidden-xml": 1},
    ),
    xml_case(
        "parameter-entity",
        TEXT,
        head=with_entities('<!ENTITY % p SYSTEM "file:///etc/passwd"> %p;'),
        rejects={"forbidden-xml": 1},
    ),
    xml_case("external-dtd", TEXT, head='<!DOCTYPE PubmedArticleSet SYSTEM "file:///etc/passwd">', documents=1),
    xml_case("undefined-entity", TEXT, "a&nbsp;b", documents=1, rejects={"bad-xml": 1}),
    xml_case(
        "wrong-encoding",
        TEXT,
        "Gr\u00f6\u00dfe",
        head='<?xml version="1.0" encoding="utf-8"?>',
        encoding="latin-1",
        documents=1,
        rejects={"bad-xml": 1},
    ),
    xml_case(
        "latin-1-without-a-word", TEXT, "Gr\u00f6\u00dfe", encoding="latin-1", documents=1, rejects={"bad-xml": 1}
    ),
    xml_case(
        "latin-1-declared",
        "Aspirin Gr\u00f6\u00dfe",
        head='<?xml version="1.0" encoding="iso-8859-1"?>',
        encoding="latin-1",
        documents=1,
    ),
    xml_case("utf-16-that-is-none", TEXT, head='<?xml version="1.0" encoding="utf-16"?>', rejects={"bad-xml": 1}),
    xml_case("utf-16", TEXT, head='<?xml version="1.0" encoding="utf-16"?>', encoding="utf-16", documents=1),
    xml_case("unknown-encoding", TEXT, head='<?xml version="1.0" encoding="foo-8"?>', rejects={"bad-xml": 1}),
    xml_case("100k-deep-markup", "<b>" * 100_000 + TEXT + "</b>" * 100_000, documents=1),
    xml_case("record-of-17-mib", TEXT, "a" * (17 << 20), documents=1, rejects={"forbidden-xml": 1}),
    xml_case("control-character-in-xml", TEXT, "a\x01b", documents=1, rejects={"bad-xml": 1}),
    xml_case("nul-in-xml", TEXT, "a\0b", documents=1, rejects={"bad-xml": 1}),
    xml_case("surrogate-reference", TEXT, "a&#xd800;b", documents=1, rejects={"bad-xml": 1}),
    xml_case("comments-and-sections", "<!-- no -->Aspirin <![CDATA[<b> & aspirin]]> <?x y?>", documents=1),
    xml_case("no-abstract", "", "<AbstractText/>", rejects={"empty-abstract": 2}),
    xml_case(
        "labels-only",
        '<AbstractText Label="AIM"/><AbstractText Label="END"> </AbstractText>',
        rejects={"empty-abstract": 1},
    ),
    lines_case(
        "namespace",
        '<p:PubmedArticleSet xmlns:p="x"><p:PubmedArticle/></p:PubmedArticleSet>',
        ending="xml",
        rejects={"no-records": 1},
    ),
    lines_case(
        "cut-xml",
        "<PubmedArticleSet>",
        article("CASE/1", TEXT),
        article("2", TEXT)[:-60],
        ending="xml",
        documents=1,
        rejects={"bad-xml": 1},
    ),
    lines_case("200k-open-elements", "<a>" * 200_000, ending="xml", rejects={"bad-xml": 1}),
    lines_case(
        "no-pmid",
        "<PubmedArticleSet>",
        article("", TEXT),
        "</PubmedArticleSet>",
        ending="xml",
        rejects={"missing-field": 1},
    ),
    lines_case(
        "two-roots",
        *["<PubmedArticleSet>" + article("CASE/1", TEXT) + "</PubmedArticleSet>"] * 2,
        ending="xml",
        documents=1,
        rejects={"bad-xml": 1},
    ),
    lines_case(
        "book-and-deleted",
        "<PubmedArticleSet>",
        article("CASE/1", TEXT),
        article("CASE/2", TEXT),
        "<PubmedBookArticle><BookDocument><PMID>CASE/3</PMID></BookDocument></PubmedBookArticle>",
        "<DeleteCitation><PMID>CASE/1</PMID><PMID>CASE/4</PMID></DeleteCitation></PubmedArticleSet>",
        ending="xml",
        documents=1,
        rejects={"book-article": 1, "deleted-citation": 2, "deleted-later": 1},
    ),
    lines_case(
        "revised-article",
        "<PubmedArticleSet>",
        article("CASE", TEXT),
        article("CASE", TEXT),
        "</PubmedArticleSet>",
        ending="xml",
        documents=1,
        rejects={"duplicate-id": 1},
    ),
    lines_case("empty-xml", ending="xml", rejects={"bad-xml": 1}),
    lines_case(
        "page-as-xml",
        "<!DOCTYPE html><html><body>502 Bad Gateway<br></body></html>",
        ending="xml",
        rejects={"bad-xml": 1},
    ),
    lines_case("other-xml", "<html><body>502 Bad Gateway</body></html>", ending="xml", rejects={"no-records": 1}),
    lines_case("binary-as-xml", bytes(range(256)) * 8, ending="xml", rejects={"bad-xml": 1}),
]

PUBTATOR = [
    lines_case(
        "tabs-missing",
        "CASE|t|Title",
        "CASE|a|Aspirin.",
        "CASE 6 13 Aspirin Chemical D1",
        ending="txt",
        rejects={"bad-pubtator": 1},
    ),
    lines_case(
        "offsets-out-of-range",
        "CASE|t|Title",
        "CASE|a|Aspirin.",
        "CASE\t6\t999999\tAspirin\tX\tD1",
        "CASE\t-1\tx\t\t\t",
        ending="txt",
        documents=1,
    ),
    lines_case("title-only", "CASE|t|Title", ending="txt", rejects={"empty-abstract": 1}),
    lines_case(
        "abstract-first", "CASE|a|Aspirin.", "CASE|t|Title", ending="txt", documents=1, rejects={"empty-abstract": 1}
    ),
    lines_case(
        "two-ids-in-one",
        "1|t|Title",
        "2|a|Aspirin.",
        "",
        "CASE|t|T",
        "CASE|a|A.",
        ending="txt",
        documents=1,
        rejects={"bad-pubtator": 1},
    ),
    lines_case("letter-as-pubtator", "Dear Sir, here are the abstracts.", ending="txt", rejects={"bad-pubtator": 1}),
]

REFUSED = [
    refused_case("json-array", lambda _: {"json": b'[{"id": "1", "text": "A"}]'}, "one object on each line"),
    refused_case(
        "json-over-lines", lambda _: {"json": b'{\n  "id": "1",\n  "text": "A"\n}'}, "one object on each line"
    ),
    refused_case(
        "nested-gzip",
        lambda case: {"jsonl.gz": gzip.compress(gzip.compress(json_lines(case, TEXT)))},
        "gzip inside gzip",
    ),
    refused_case("zip", lambda case: {"jsonl": zipped(json_lines(case, TEXT))}, "zip archive"),
    refused_case("bzip2", lambda case: {"jsonl.bz2": bz2.compress(json_lines(case, TEXT))}, "bzip2"),
    refused_case("zstandard", lambda _: {"jsonl.zst": b"\x28\xb5\x2f\xfd" + bytes(20)}, "zstandard"),
    refused_case("unknown-format", lambda _: {"csv": b"id,text\n1,Aspirin.\n"}, "known format"),
    refused_case("empty-without-format", lambda _: {"dat": b""}, "holds nothing"),
]

# What a job takes, and what it refuses.
ACCEPTED = [*TEXTS, *JSON, *GZIP, *XML, *PUBTATOR]
