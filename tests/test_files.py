"""Folders appear whole or not at all, and nobody else's files are ever removed."""

from __future__ import annotations

from pathlib import Path

import pytest

from kebiolm.errors import UserError
from kebiolm.files import atomic_folder, has_format, write_json


def is_ours(folder: Path) -> bool:
    return has_format(folder, "ours")


def write(out: Path, text: str = "new", *, overwrite: bool = True, inputs: tuple[Path, ...] = ()) -> None:
    with atomic_folder(out, overwrite=overwrite, is_ours=is_ours, inputs=inputs) as folder:
        (folder / "result").write_text(text)
        write_json(folder / "manifest.json", {"format": "ours"})


def test_an_output_of_ours_and_an_empty_folder_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    write(tmp_path / "out", "old")
    write(tmp_path / "out")
    assert (tmp_path / "out" / "result").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("manifest", [None, "{", "[]", '{"format": "theirs"}'])
def test_a_folder_of_others_is_never_replaced(tmp_path: Path, manifest: str | None) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    if manifest is not None:
        (out / "manifest.json").write_text(manifest)
    with pytest.raises(UserError, match="did not make"):
        write(out)
    assert (out / "thesis.txt").read_text() == "years of work"


def test_a_file_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("years of work")
    with pytest.raises(UserError, match="got a file"):
        write(tmp_path / "out")
    assert (tmp_path / "out").read_text() == "years of work"


def test_nothing_is_replaced_unasked(tmp_path: Path) -> None:
    write(tmp_path / "out", "old")
    with pytest.raises(UserError, match="--overwrite"):
        write(tmp_path / "out", overwrite=False)
    assert (tmp_path / "out" / "result").read_text() == "old"


@pytest.mark.parametrize(
    ("out", "relation"),
    [("a/in", "is the input"), ("a", "contains the input"), ("a/in/b/out", "lies inside the input")],
)
def test_inputs_are_never_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str, relation: str) -> None:
    write(tmp_path / "a" / "in", "old")
    write_json(tmp_path / "a" / "manifest.json", {"format": "ours"})
    monkeypatch.chdir(tmp_path)
    for named in (Path(out), tmp_path / "a" / ".." / out):
        with pytest.raises(UserError, match=relation):
            write(named, inputs=(Path("a/in"),))
    assert (tmp_path / "a" / "in" / "result").read_text() == "old"


def test_inputs_behind_a_link_are_seen(tmp_path: Path) -> None:
    write(tmp_path / "in", "old")
    (tmp_path / "link").symlink_to(tmp_path / "in")
    with pytest.raises(UserError, match="is the input"):
        write(tmp_path / "link", inputs=(tmp_path / "in",))


def test_a_linked_folder_is_replaced_where_it_is(tmp_path: Path) -> None:
    write(tmp_path / "disk" / "out", "old")
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "out")
    write(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "disk" / "out" / "result").read_text() == "new"


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    write(tmp_path / "out", "old")
    with (
        pytest.raises(ZeroDivisionError),
        atomic_folder(tmp_path / "out", overwrite=True, is_ours=is_ours) as folder,
    ):
        (folder / "result").write_text("half")
        raise ZeroDivisionError
    assert (tmp_path / "out" / "result").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
