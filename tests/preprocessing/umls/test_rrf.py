from __future__ import annotations

import gzip
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import pytest

from kebiolm.errors import UserError
from preprocessing.umls import rrf, rrf_blocks, rrf_rows

LAYOUT = "MRSTY.RRF|Semantic types|CUI,TUI,STN,STY,ATUI,CVF|6|{rows}|0|\n"
ROWS = [b"C0000001|T047|B2|Disease or Syndrome|AT1||", b"C0000002|T121|A1|Pharmacologic Substance|AT2||"]
COLUMNS = ("CUI", "STY")


def write_sty(folder: Path, rows: list[bytes], *, end: bytes = b"\n") -> Path:
    path = folder / "MRSTY.RRF"
    path.write_bytes(b"".join(row + end for row in rows))
    return path


def read_all(folder: Path, columns: tuple[str, ...] = COLUMNS) -> tuple[list[dict], rrf_rows.RowCounts]:
    counts = rrf_rows.RowCounts()
    file = rrf.find_file(folder, "MRSTY.RRF", columns)
    with ThreadPoolExecutor(2) as executor:
        rows = [row for batch in rrf_rows.read_rows(file, columns, counts, executor) for row in batch.to_pylist()]
    return rows, counts


def test_reads_wanted_columns_in_file_order(tmp_path: Path) -> None:
    write_sty(tmp_path, ROWS)
    rows, counts = read_all(tmp_path)
    assert rows == [
        {"CUI": "C0000001", "STY": "Disease or Syndrome"},
        {"CUI": "C0000002", "STY": "Pharmacologic Substance"},
    ]
    assert (counts.read, counts.good, counts.examples) == (2, 2, [])


def test_layout_file_decides_the_order_of_columns(tmp_path: Path) -> None:
    write_sty(tmp_path, [b"Sign or Symptom|C0000001|"])
    (tmp_path / "MRFILES.RRF").write_text("MRSTY.RRF|x|STY,CUI|2|1|0|\n")
    assert read_all(tmp_path)[0] == [{"CUI": "C0000001", "STY": "Sign or Symptom"}]


def test_quotes_and_other_letters_are_plain_text(tmp_path: Path) -> None:
    names = ['"5\'-end" \\n', "β-carotene, naïve, 日本", 'unclosed " quote', "a,b;c\td"]
    write_sty(tmp_path, [f"C1|T1||{name}|||".encode() for name in names])
    assert [row["STY"] for row in read_all(tmp_path)[0]] == names


def test_gzip_and_crlf_give_the_same_rows(tmp_path: Path) -> None:
    path = write_sty(tmp_path, ROWS)
    plain = read_all(tmp_path)[0]
    write_sty(tmp_path, ROWS, end=b"\r\n")
    assert read_all(tmp_path)[0] == plain
    write_sty(tmp_path, ROWS)
    (tmp_path / "MRSTY.RRF.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    assert read_all(tmp_path)[0] == plain


def test_bad_rows_are_counted_with_their_lines(tmp_path: Path) -> None:
    rows = [
        ROWS[0],
        b"C0000003|T047|",  # line 2: too few fields
        ROWS[1],
        b"C0000004|T047|B2|caf\xe9|AT4||",  # line 4: Latin-1
        b"C0000005|T047|B2|a|b|AT5|||",  # line 5: too many fields
        b"C0000006|T047|B2|fine|AT6||",
        b"C0000007|T047|B2|text after the end|AT7||x",  # line 7
    ]
    write_sty(tmp_path, rows)
    found, counts = read_all(tmp_path)
    assert [row["CUI"] for row in found] == ["C0000001", "C0000002", "C0000006"]
    assert counts.rejects == {rrf_rows.WRONG_FIELD_COUNT: 3, rrf_rows.INVALID_UTF8: 1}
    assert counts.read == len(rows)
    by_line = {example["line"]: example["reason"] for example in counts.examples}
    assert by_line == {
        2: rrf_rows.WRONG_FIELD_COUNT,
        4: rrf_rows.INVALID_UTF8,
        5: rrf_rows.WRONG_FIELD_COUNT,
        7: rrf_rows.WRONG_FIELD_COUNT,
    }


def test_line_numbers_hold_across_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rrf_blocks, "_BLOCK_BYTES", 1 << 12)
    rows = [f"C{number:07}|T047|B2|Disease or Syndrome|AT{number}||".encode() for number in range(1, 1001)]
    rows[99] = b"broken"
    rows[799] = rows[799].replace(b"Disease", b"\xff")
    write_sty(tmp_path, rows)
    found, counts = read_all(tmp_path)
    assert len(found) == 998
    assert {(example["line"], example["reason"]) for example in counts.examples} == {
        (100, rrf_rows.WRONG_FIELD_COUNT),
        (800, rrf_rows.INVALID_UTF8),
    }


def test_few_examples_are_kept_but_all_rejects_counted(tmp_path: Path) -> None:
    write_sty(tmp_path, [ROWS[0]] + [b"broken"] * 50)
    counts = read_all(tmp_path)[1]
    assert counts.rejects[rrf_rows.WRONG_FIELD_COUNT] == 50
    assert len(counts.examples) == rrf_rows.MAX_REJECT_EXAMPLES


def test_missing_file_says_which_and_how_to_mend(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"MRSTY\.RRF: got no such file.*META folder"):
        rrf.find_file(tmp_path, "MRSTY.RRF", COLUMNS)
    with pytest.raises(UserError, match="got no folder"):
        rrf.find_file(tmp_path / "nowhere", "MRSTY.RRF", COLUMNS)


def test_missing_column_is_named(tmp_path: Path) -> None:
    write_sty(tmp_path, ROWS)
    (tmp_path / "MRFILES.RRF").write_text("MRSTY.RRF|x|CUI,TUI,STN,NAME,ATUI,CVF|6|2|0|\n")
    with pytest.raises(UserError, match="without column STY"):
        rrf.find_file(tmp_path, "MRSTY.RRF", COLUMNS)


@pytest.mark.parametrize("layout", [b"MRSTY.RRF|too|few|\n", b"MRSTY.RRF|x|CUI,STY|2|many|0|\n", b"\xff\xfe|\n"])
def test_broken_layout_file_is_refused(tmp_path: Path, layout: bytes) -> None:
    write_sty(tmp_path, ROWS)
    (tmp_path / "MRFILES.RRF").write_bytes(layout)
    with pytest.raises(UserError, match=r"MRFILES\.RRF"):
        rrf.find_file(tmp_path, "MRSTY.RRF", COLUMNS)


def test_listed_rows_are_known(tmp_path: Path) -> None:
    write_sty(tmp_path, ROWS)
    assert rrf.find_file(tmp_path, "MRSTY.RRF", COLUMNS).rows_listed is None
    (tmp_path / "MRFILES.RRF").write_text(LAYOUT.format(rows=7))
    assert rrf.find_file(tmp_path, "MRSTY.RRF", COLUMNS).rows_listed == 7


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("MRSTY.RRF", b""),
        ("MRSTY.RRF", b"no pipes\nat all\n"),
        ("MRSTY.RRF.gz", b"not gzip"),
        ("MRSTY.RRF.gz", gzip.compress(b"\n".join(b"C%07d|T1||x|||" % n for n in range(9999)))[:-200]),
    ],
    ids=["empty", "no RRF", "not gzip", "gzip cut short"],
)
def test_unreadable_file_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=r"MRSTY\.RRF.*got .*; expected .*; "):
        read_all(tmp_path)


def write_parts(folder: Path, content: bytes, cuts: list[int], *, pack: bool) -> None:
    """Write MRSTY.RRF.aa, MRSTY.RRF.ab, ...: the content cut at some bytes."""
    for letter, start, end in zip("abcdef", [0, *cuts], [*cuts, len(content)], strict=False):
        path = folder / f"MRSTY.RRF.a{letter}{'.gz' if pack else ''}"
        path.write_bytes(gzip.compress(content[start:end]) if pack else content[start:end])


@pytest.mark.parametrize("pack", [False, True])
def test_parts_are_read_as_one_table(tmp_path: Path, pack: bool) -> None:
    path = write_sty(tmp_path, [*ROWS, b"C0000003|T047|B2|caf\xc3\xa9|AT3||"])
    whole, content = read_all(tmp_path)[0], path.read_bytes()
    path.unlink()
    # Between two lines, inside a line, before and after an end of line, inside a letter of two bytes.
    letter = content.index(b"\xc3") + 1
    for cut in (content.index(b"\n") + 1, 20, content.index(b"\n"), letter):
        write_parts(tmp_path, content, [cut], pack=pack)
        rows, counts = read_all(tmp_path)
        assert rows == whole
        parts = sorted(tmp_path.glob("MRSTY.RRF.a*"))
        assert [part["file"] for part in counts.parts] == [part.name for part in parts]
        assert [part["sha256"] for part in counts.parts] == [sha256(part.read_bytes()).hexdigest() for part in parts]
    write_parts(tmp_path, content, [5, 10, letter], pack=pack)
    assert read_all(tmp_path)[0] == whole


def test_rejects_name_the_part_and_its_line(tmp_path: Path) -> None:
    rows = [ROWS[0], b"broken in aa", ROWS[1], b"cut", ROWS[0], b"broken in ab"]
    content = b"".join(row + b"\n" for row in rows)
    # The fourth line begins in the first part and ends in the second, whose first line it is.
    write_parts(tmp_path, content, [content.index(b"cut") + 1], pack=True)
    counts = read_all(tmp_path)[1]
    assert [(example["file"], example["line"]) for example in counts.examples] == [
        ("MRSTY.RRF.aa", 2),
        ("MRSTY.RRF.ab", 1),
        ("MRSTY.RRF.ab", 3),
    ]
    assert counts.read == len(rows)


def test_a_missing_part_is_refused(tmp_path: Path) -> None:
    write_parts(tmp_path, b"".join(row + b"\n" for row in ROWS * 3), [40, 80], pack=True)
    (tmp_path / "MRSTY.RRF.ab.gz").unlink()
    with pytest.raises(UserError, match=r"MRSTY\.RRF\.ab: got no such file; expected the part before MRSTY\.RRF\.ac"):
        read_all(tmp_path)


def test_a_part_that_is_cut_short_is_named(tmp_path: Path) -> None:
    content = b"\n".join(b"C%07d|T1||x|||" % number for number in range(9999))
    write_parts(tmp_path, content, [5000], pack=True)
    part = tmp_path / "MRSTY.RRF.ab.gz"
    part.write_bytes(part.read_bytes()[:-200])
    with pytest.raises(UserError, match=r"MRSTY\.RRF\.ab\.gz: got a file that cannot be read to its end"):
        read_all(tmp_path)


def test_a_file_without_lines_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rrf_blocks, "_BLOCK_BYTES", 1 << 10)
    monkeypatch.setattr(rrf_blocks, "_LONGEST_LINE_BYTES", 1 << 12)
    write_sty(tmp_path, [b"x" * 3000, b"y" * 6000])
    with pytest.raises(UserError, match="a line of more than"):
        read_all(tmp_path)
