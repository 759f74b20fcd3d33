"""JSON lines and PubTator, whole and damaged; and the choice of a reader."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from kebiolm.errors import UserError
from preprocessing.document import Document, Reject
from preprocessing.sources import find_reader, open_source, stream
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
        "duplicate-id",
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
    assert (len(found), found.count("duplicate-id")) == (593, 1)


def test_content_decides_the_format_whatever_the_name(tmp_path: Path) -> None:
    samples = {
        b"\xef\xbb\xbf  <?xml version='1.0'?>": read_pubmed_xml,
        b'{"title": "x", "_id": "1"}': read_pubmedds,
        b'{"id": "1"}\n{"_id": 2}': read_jsonl,
        b"12|t|x": read_pubtator,
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
    bomb = gzip.compress(b'{"id": "1", "text": "a"}\n' + b"\n" * (20 << 20))
    assert outcomes(write(tmp_path / "bomb.jsonl.gz", bomb)) == ["1", "unreadable-rest"]


@pytest.mark.parametrize(("name", "content"), [("a.csv", b"id,text\n"), ("a", b""), ("b.bin", bytes(range(256)))])
def test_an_unknown_format_is_the_users_mistake(tmp_path: Path, name: str, content: bytes) -> None:
    with pytest.raises(UserError, match="known format"):
        list(open_source(write(tmp_path / name, content)))


def test_a_missing_file_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        list(open_source(tmp_path / "absent.xml"))
