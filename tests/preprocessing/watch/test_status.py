"""What `kebiolm status` says of jobs at every moment of their lives, without a trace in their folders."""

from __future__ import annotations

import fcntl
import json
import os
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from kebiolm.errors import UserError
from kebiolm.files import write_json
from preprocessing.annotation.unit_files import write_unit_manifest
from preprocessing.watch.read_status import FINISHED, RUNNING, STOPPED, StageStatus, driver_holds, read_status
from preprocessing.watch.status import show_status, status_line

NOW = 1_000_000.0


def write_job(folder: Path, files: int = 2) -> Path:
    inputs = [{"name": f"{number}.xml", "bytes": 1, "sha256": "0"} for number in range(files)]
    write_json(folder / "job.json", {"format": "kebiolm-annotation-job", "version": 2, "inputs": inputs})
    (folder / ".lock").touch()
    return folder


def write_unit(path: Path, counts: dict[str, int], *, at: float = NOW, **more: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_unit_manifest(path, "", counts, {}, **more)
    os.utime(path, (at, at))


def write_read_files(folder: Path, slices: int = 3) -> None:
    for number in range(2):
        counts = {"documents_in": 21, "documents": 20, "rejects": 1}
        pieces = [{"documents": 10, "rejects": 0}] * slices
        write_unit(folder / "work" / "read" / f"file-0000{number}.json", counts, at=NOW - 500, slices=pieces)


def write_found(folder: Path, parts: int, *, every_s: float = 10.0) -> None:
    counts = {"documents_in": 10, "set_aside": 1, "mentions_found": 100, "texts": 30}
    for part in range(parts):
        at = NOW - every_s * (parts - 1 - part)
        write_unit(folder / "work" / "found" / f"part-{part:05d}.json", counts, at=at)


def stages(folder: Path) -> list[tuple[str, int, int | None]]:
    return [(stage.name, stage.done, stage.total) for stage in read_status(folder, now=NOW).stages]


def test_a_job_that_has_just_begun(tmp_path: Path) -> None:
    status = read_status(write_job(tmp_path), now=NOW)
    assert status.state == STOPPED and status.driver is False and status.last_manifest_s is None
    assert stages(tmp_path) == [("read", 0, 2), ("find", 0, None), ("link", 0, None), ("join", 0, None)]
    assert "same `kebiolm annotate` command again" in status.next


def test_how_far_each_stage_is(tmp_path: Path) -> None:
    write_read_files(write_job(tmp_path))
    write_found(tmp_path, 4)
    assert stages(tmp_path) == [("read", 2, 2), ("find", 4, 6), ("link", 0, None), ("join", 0, 6)]
    status = read_status(tmp_path, now=NOW + 3)
    assert status.stage is not None and status.stage.name == "find" and status.last_manifest_s == 3
    assert status.stage.per_second == pytest.approx(1.0)
    assert status.counts == {"records_read": 42, "documents_searched": 40, "mentions_found": 400}
    assert sum(status.set_aside.values()) == 2 + 4


def test_the_number_of_parts_is_unknown_until_every_file_was_read(tmp_path: Path) -> None:
    write_read_files(write_job(tmp_path, files=3))
    assert stages(tmp_path)[:2] == [("read", 2, 3), ("find", 0, None)]


def test_linking_and_joining_with_reasons(tmp_path: Path) -> None:
    write_read_files(write_job(tmp_path))
    write_found(tmp_path, 6)
    write_json(tmp_path / "work" / "links.json", {"buckets": 2})
    for bucket in range(2):
        write_unit(tmp_path / "work" / "links" / f"bucket-000{bucket}.json", {"texts": 50, "texts_linked": 40})
    counts = {"documents_in": 11, "documents_out": 8, "rejects": 3, "mentions_linked": 60}
    for part in range(3):
        reasons = {"empty-abstract": 1, "time-limit": 2}
        write_unit(tmp_path / f"part-0000{part}.json", counts, rejects_by_reason=reasons)
    assert stages(tmp_path)[2:] == [("link", 2, 2), ("join", 3, 6)]
    status = read_status(tmp_path, now=NOW)
    assert status.set_aside == {"empty-abstract": 3, "time-limit": 6}
    assert status.counts["distinct_texts_linked"] == 100 and status.counts["documents_finished"] == 24


def test_broken_and_missing_manifests_count_as_not_written(tmp_path: Path) -> None:
    write_read_files(write_job(tmp_path))
    (tmp_path / "work" / "read" / "file-00001.json").write_text('{"counts": ', encoding="utf-8")
    (tmp_path / "work" / "links.json").write_text("[]", encoding="utf-8")
    assert stages(tmp_path) == [("read", 1, 2), ("find", 0, None), ("link", 0, None), ("join", 0, None)]


def test_a_driver_is_seen_and_not_disturbed(tmp_path: Path) -> None:
    write_read_files(write_job(tmp_path))
    write_found(tmp_path, 4)
    with open(tmp_path / ".lock", "a", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        status = read_status(tmp_path, now=NOW)
        assert status.state == RUNNING and status.driver is True
        # Two of six parts are left, one in ten seconds.
        assert status.left_s == pytest.approx(20)
    assert read_status(tmp_path, now=NOW).state == STOPPED
    with open(tmp_path / ".lock", "a", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_looking_leaves_no_trace(tmp_path: Path) -> None:
    write_job(tmp_path)
    (tmp_path / ".lock").unlink()
    before = {path: path.stat().st_mtime_ns for path in [tmp_path, *tmp_path.rglob("*")]}
    assert driver_holds(tmp_path) is False
    show_status(tmp_path, console=Console(file=StringIO()))
    assert {path: path.stat().st_mtime_ns for path in [tmp_path, *tmp_path.rglob("*")]} == before


def test_a_packing_job(tmp_path: Path) -> None:
    write_json(tmp_path / "job.json", {"format": "kebiolm-pack-job", "version": 1})
    for group in range(2):
        path = tmp_path / "work" / "groups" / f"0000{group}.json"
        write_json(
            path,
            {
                "format": "kebiolm-pack-unit",
                "version": 1,
                "counts": {"documents_in": 100},
                "files": {f"train-0000{group}-of-00005.arrow": {}, f"work/groups/0000{group}-heldout.arrow": {}},
            },
        )
    assert stages(tmp_path) == [("groups", 2, 5), ("heldout", 0, None)]
    status = read_status(tmp_path)
    assert status.kind == "packing job" and status.counts == {"documents_packed": 200}
    assert "`kebiolm pack`" in status.next


def test_finished_folders(sample_shards: Path, small_kb: Path) -> None:
    shards, base = read_status(sample_shards), read_status(small_kb)
    assert (shards.state, shards.kind) == (FINISHED, "training shards") and shards.counts["documents"] == 400
    assert (base.state, base.kind) == (FINISHED, "knowledge base") and base.counts["concepts"] == 7


@pytest.mark.parametrize("kind", ["absent", "empty", "other"])
def test_a_folder_that_is_none_of_ours(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "folder"
    if kind != "absent":
        folder.mkdir()
    if kind == "other":
        write_json(folder / "manifest.json", {"format": "something"})
        write_json(folder / "job.json", ["kebiolm"])
    with pytest.raises(UserError, match="no such folder" if kind == "absent" else r"no job\.json"):
        read_status(folder)


def test_json_has_all_of_it(tmp_path: Path) -> None:
    write_read_files(write_job(tmp_path))
    out = StringIO()
    show_status(tmp_path, as_json=True, console=Console(file=out, width=40))
    said = json.loads(out.getvalue())
    assert said["state"] == STOPPED and said["stage"] == "find"
    assert said["stages"][1] == {
        "name": "find",
        "done": 0,
        "total": 6,
        "documents": 0,
        "per_second": None,
        "left_s": None,
    }


def test_the_table_and_the_line_say_what_is_next(tmp_path: Path) -> None:
    write_read_files(write_job(tmp_path))
    out = StringIO()
    show_status(tmp_path, console=Console(file=out, width=100))
    text = out.getvalue()
    assert "0 of 6 parts" in text and "2 of 2 files" in text and "command again" in text
    assert status_line(read_status(tmp_path)).startswith("stopped, find 0 of 6 parts, 42 records read")


def test_watching_ends_with_the_job(annotated: Path) -> None:
    out = StringIO()
    show_status(annotated, watch=True, console=Console(file=out, width=200))
    show_status(annotated, watch=True, as_json=True, console=Console(file=out, width=40))
    line, as_json = out.getvalue().splitlines()
    assert line.startswith("finished, ") and "30 documents out" in line
    assert json.loads(as_json)["set_aside"] == {"empty-abstract": 2, "time-limit": 1}


def test_a_stage_is_done_only_where_its_total_is_known() -> None:
    assert not StageStatus(name="find", done=0, total=None).is_done
    assert StageStatus(name="find", done=0, total=0).is_done
