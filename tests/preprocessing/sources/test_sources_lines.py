"""JSON lines and PubTator, whole and damaged; and the choice of a reader."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
from pathlib import Path

import pytest

from kebiolm.errors import UserError
from preprocessing.document import Document, Reject
from preprocessing.sources import find_reader, open_source, pubtator, stream
from preprocessing.sources.jsonl import read_jsonl
from preprocessing.sources.pubmed_xml import read_pubmed_xml
from preprocessing.sources.pubmedds import read_pubmedds
from preprocessing.sources.pubtator import GoldDocument, GoldMention, read_gold, read_pubtator

PUBTATOR = "1|t|A title.\n1|a|An abstract.\n1\t2\t7\ttitle\tDisease\tD001|D002\n1\tCID\tD001\tD002\n\n"


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    return path


def outcomes(path: Path) -> list[str]:
    """The id of each document, the reason of each reject, in order."""
    return [record.doc_id if isinstance(record, Document) else record.reason for record in open_source(path)]


def test_jsonl(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '\ufeff{"id": "a/../b", "text": "One."}\r\n\n{"id": 2, "text": "Zwei Größen."}')
    assert list(open_source(path)) == [
        Document(doc_id="a/../b", text="One."),
        Document(doc_id="2", text="Zwei Größen."),
    ]


def test_pubmedds_keeps_text_and_leaves_its_mentions(tmp_path: Path) -> None:
    mention = {"mention": "pain", "start_offset": 3, "end_offset": 7, "link_id": "C0030193"}
    record = {"_id": "12", "title": "On pain", "text": "On pain. It hurts.", "mentions": [mention]}
    path = write(tmp_path / "a.txt", json.dumps(record) + "\n")
    assert list(open_source(path)) == [Document(doc_id="12", text="On pain. It hurts.")]


def test_each_bad_line_costs_one_reject(tmp_path: Path) -> None:
    lines = [
        b'{"id": "1", "text": "fine"}',
        b'{"id": "2", "text": ',
        b'["id", "text"]',
        b'{"text": "no id"}',
        b'{"id": true, "text": "id is no text"}',
        b'{"id": "3"}',
        b'{"id": "4", "text": 5}',
        b'{"id": "5", "text": "  "}',
        b'{"id": "6", "text": "\xff\xfe"}',
        b'{"id": "7", "text": "\\ud800 alone"}',
        b'{"id": "\\udfff", "text": "alone in the id"}',
        b'{"id": "1", "text": "again"}',
        b'{"id": "' + b"9" * 10_000 + b'", "text": "a long id"}',
        b'{"id": 1' + b"0" * 5000 + b', "text": "a huge number"}',
        b'{"id": NaN, "text": "no number"}',
        b"[" * 100_000,
        b'{"id": "8", "text": "NUL \\u0000 and \xe2\x80\xa8 are fine"}',
    ]
    path = write(tmp_path / "a.jsonl", b"\n".join(lines))
    assert outcomes(path) == [
        "1",
        "bad-json",
        "bad-json",
        "missing-field",
        "missing-field",
        "missing-field",
        "missing-field",
        "empty-abstract",
        "invalid-utf8",
        "lone-surrogate",
        "lone-surrogate",
        "1",  # what a repeated id means is for the job to say: it may stand in another file, too
        "id-too-long",
        "bad-json",
        "missing-field",
        "bad-json",
        "8",
    ]
    rejects = [record for record in open_source(path) if isinstance(record, Reject)]
    assert rejects[0].source == "a.jsonl:2"
    for reject in rejects:  # whatever was found can be stored
        "".join((reject.doc_id, reject.source, reject.detail)).encode("utf-8")


def test_an_endless_line_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "MAX_LINE_BYTES", 64)
    long = json.dumps({"id": "long", "text": "x" * 1000})
    path = write(tmp_path / "a.jsonl", f'{{"id": "1", "text": "a"}}\n{long}\n{{"id": "2", "text": "b"}}\n')
    assert outcomes(path) == ["1", "line-too-long", "2"]


def test_pubtator_text_and_gold(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.txt", PUBTATOR + "2|t|Next\n2|a|More.\n2\t0\t4\tNext\tX\tMESH:D1+OMIM:22\n2\t5\t9\tMore\tX\t-1"
    )
    assert list(open_source(path)) == [
        Document(doc_id="1", text="A title. An abstract."),
        Document(doc_id="2", text="Next More."),
    ]
    first, second = read_gold(path)
    assert isinstance(first, GoldDocument)
    assert first.mentions == (GoldMention(start=2, end=7, text="title", codes=("D001", "D002")),)
    assert [mention.codes for mention in second.mentions] == [("D1", "22"), ()]


def test_damaged_pubtator_costs_one_document(tmp_path: Path) -> None:
    blocks = [
        "1|t|T\n1|a|A",
        "2|t|T\n2|a|",
        "3|t|T\nno bar here\n3|a|A",
        "4|t|T\n5|a|A",
        "6|t|T\n6|a|A\n6|a|A",
        "7|t|T\n7|a|\xff",
        "8|t|T\n8|a|A\n9|t|T\n9|a|A",
    ]
    path = write(tmp_path / "a.pubtator", "\n\n\n".join(blocks).encode("latin-1"))
    assert outcomes(path) == [
        "1", "empty-abstract", "bad-pubtator", "bad-pubtator", "bad-pubtator", "invalid-utf8", "8", "9",
    ]  # fmt: skip


def test_real_corpora_are_read_whole(real_data: Path) -> None:
    assert len(set(outcomes(real_data / "corpora" / "cdr_train.pubtator.txt"))) == 500
    found = outcomes(real_data / "corpora" / "ncbi_disease_train.pubtator.txt")
    assert (len(found), len(set(found))) == (593, 592)


def test_content_decides_the_format_whatever_the_name(tmp_path: Path) -> None:
    samples = {
        b"\xef\xbb\xbf  <?xml version='1.0'?>": read_pubmed_xml,
        b'{"title": "x", "_id": "1"}': read_pubmedds,
        b'{"id": "1"}\n{"_id": 2}': read_jsonl,
        b"12|t|x": read_pubtator,
        "<PubmedArticleSet/>".encode("utf-16"): read_pubmed_xml,
    }
    for content, reader in samples.items():
        assert find_reader(write(tmp_path / "file", content)) is reader
        assert find_reader(write(tmp_path / "file.jsonl", gzip.compress(content))) is reader


def test_damaged_files_are_rejected_in_one_line(tmp_path: Path) -> None:
    packed = gzip.compress(b'{"id": "1", "text": "a"}\n')
    assert outcomes(write(tmp_path / "empty.jsonl", b"")) == ["no-records"]
    assert outcomes(write(tmp_path / "cut.jsonl.gz", packed[:-12])) == ["unreadable-rest"]
    assert outcomes(write(tmp_path / "tail.jsonl.gz", packed + b"garbage")) == ["1", "unreadable-rest"]
    assert outcomes(write(tmp_path / "crc.jsonl.gz", packed[:-8] + bytes(8))) == ["1", "unreadable-rest"]


def test_a_gzip_bomb_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "EXPANSION_FREE_BYTES", 1 << 16)
    bomb = gzip.compress(b'{"id": "1", "text": "a"}\n' + b" " * (20 << 20))
    assert outcomes(write(tmp_path / "bomb.jsonl.gz", bomb)) == ["1", "unreadable-rest"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"id,text\n", "begins with b'id,text"),
        ("a", b"", "holds nothing"),
        ("b.bin", bytes(range(256)), "known format"),
        ("a.jsonl", b"PK\x03\x04...", "zip archive"),
        ("a.jsonl", bz2.compress(b"{}"), "bzip2"),
        ("a.jsonl", b"\x28\xb5\x2f\xfd...", "zstandard"),
        ("a.jsonl", lzma.compress(b"{}"), "xz"),
        ("a.jsonl.gz", gzip.compress(gzip.compress(b"{}")), "gzip inside gzip"),
        ("a.json", b'[{"id": 1, "text": "a"}]', "one object on each line"),
        ("a.json", b'{\n  "id": 1\n}', "one object on each line"),
    ],
)
def test_an_unknown_format_is_the_users_mistake(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        list(open_source(write(tmp_path / name, content)))


def test_what_is_no_file_is_the_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "dangling.xml").symlink_to(tmp_path / "absent.xml")
    (tmp_path / "circle.xml").symlink_to(tmp_path / "circle.xml")
    (tmp_path / "folder.xml").mkdir()
    os.mkfifo(tmp_path / "pipe.xml")
    write(tmp_path / os.fsdecode(b"\xff.jsonl"), '{"id": "1", "text": "a"}')
    for name, message in (
        ("absent.xml", "no such file"),
        ("dangling.xml", "no such file"),
        ("circle.xml", "can be read"),
        ("x" * 300 + ".xml", "can be read"),
        ("a\0b.xml", "can be read"),
        ("folder.xml", "a folder"),
        ("pipe.xml", "a pipe"),
        ("\udcff.jsonl", r"not UTF-8.*rename"),
    ):
        with pytest.raises(UserError, match=message) as error:
            list(open_source(tmp_path / name))
        assert "\n" not in str(error.value)
        str(error.value).encode("utf-8")


def test_annotations_without_end_cost_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pubtator, "MAX_ANNOTATIONS", 3)
    rows = "1\t0\t1\tA\tX\tD1\n"
    path = write(tmp_path / "a.txt", f"1|t|A\n1|a|B\n{rows * 4}\n2|t|A\n2|a|B\n{rows * 3}")
    assert outcomes(path) == ["bad-pubtator", "2"]


def test_offsets_that_are_no_numbers_are_no_mentions(tmp_path: Path) -> None:
    rows = "".join(f"1\t0\t{end}\tA\tX\tD1\n" for end in ("1", "9" * 5000, "-1", "\u00b2"))
    (document,) = read_gold(write(tmp_path / "a.txt", f"1|t|A\n1|a|B\n{rows}"))
    assert isinstance(document, GoldDocument) and len(document.mentions) == 1
