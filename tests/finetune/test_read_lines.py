from __future__ import annotations

import codecs

import pytest

from kebiolm.errors import UserError
from kebiolm.finetune.read_lines import read_lines


def test_only_line_feeds_end_lines(data_file, warnings) -> None:
    content = "one\u2028still one\ntwo\x85still two\n\nfour"
    assert read_lines(data_file(content), warnings) == ["one\u2028still one", "two\x85still two", "", "four"]
    assert warnings.counts == {}


def test_windows_line_ends_and_a_byte_order_mark_are_read_and_counted(data_file, warnings) -> None:
    path = data_file(codecs.BOM_UTF8 + b"one\r\ntwo\nthree\r\n")
    assert read_lines(path, warnings) == ["one", "two", "three"]
    assert warnings.lines() == [
        f"1 x byte order marks, dropped (first: {path})",
        f"2 x lines with Windows line ends, read as usual (first: {path})",
    ]


@pytest.mark.parametrize(
    ("content", "line", "named"),
    [
        ("good\nna\u00efve\n".encode("latin-1"), 2, "0xef"),
        ("good\n".encode("utf-16"), 1, "UTF-8"),
        ("good\n".encode("utf-16-be"), 1, "0x00"),
        (b"good\nfine\nbroken\rhere\n", 3, "carriage return"),
    ],
    ids=["Latin-1", "UTF-16", "UTF-16 without a mark", "a carriage return in a line"],
)
def test_what_is_not_lines_of_utf_8_is_refused_by_line(data_file, warnings, content, line, named) -> None:
    path = data_file(content)
    with pytest.raises(UserError, match=named) as caught:
        read_lines(path, warnings)
    assert caught.value.where == f"{path}:{line}"


def test_a_missing_file_is_said_with_the_files_beside_it(data_file, warnings, tmp_path) -> None:
    data_file("x")
    with pytest.raises(UserError, match=r"dev\.tsv: got no such file; its folder has train\.tsv; .*task\.files"):
        read_lines(tmp_path / "dev.tsv", warnings)
    with pytest.raises(UserError, match="no such folder"):
        read_lines(tmp_path / "nowhere" / "dev.tsv", warnings)
    with pytest.raises(UserError, match="expected a readable file"):
        read_lines(tmp_path, warnings)
