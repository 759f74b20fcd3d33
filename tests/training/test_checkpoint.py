"""What a power cut or a bad disk leaves of a checkpoint is never resumed from, and good ones are never removed."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from kebiolm.errors import UserError
from kebiolm.training import checkpoint, shard_files
from kebiolm.training.checkpoint import (
    DAMAGED,
    MARKER,
    complete_checkpoints,
    find_checkpoint,
    newest_whole_checkpoint,
    read_marker,
    save_checkpoint,
)
from kebiolm.training.deepspeed_engine import init_distributed
from tests.export.zero_checkpoints import REFUSED
from tests.full_disk import room_for
from tests.training.launch import losses, run_in_this_process
from tests.training.one_process import make_one_process

STEPS = ["optimization.max_steps=6", "checkpoints.every_steps=2"]
WEIGHTS = "mp_rank_00_model_states.pt"


@pytest.fixture(scope="module")
def small_run(sample_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output folder of a finished run of one process with checkpoints after steps 2, 4 and 6. Read only."""
    output = tmp_path_factory.mktemp("small") / "run"
    run_in_this_process(sample_shards, output, *STEPS)
    return output


@pytest.fixture
def run(small_run: Path, tmp_path: Path) -> Path:
    """A copy of `small_run` to damage."""
    return Path(shutil.copytree(small_run, tmp_path / "run"))


def cut_file(path: Path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def test_a_save_that_was_cut_at_any_file_is_ignored(run: Path) -> None:
    checkpoints = run / "checkpoints"
    newest = checkpoints / "step-00000006"
    # In the order of writing, the marker last; each file whole, then half, then empty, then not there.
    files = sorted((file for file in newest.rglob("*") if file.is_file()), key=lambda file: file.stat().st_mtime_ns)
    assert files[-1].name == MARKER
    assert len(files) > 5
    (newest / MARKER).rename(newest / f".{MARKER}.1-2.tmp")
    assert newest_whole_checkpoint(checkpoints).name == "step-00000004"
    for file in reversed(files[:-1]):
        for share in (0.5, 0.0):
            cut_file(file, share)
            assert newest_whole_checkpoint(checkpoints).name == "step-00000004"
        file.unlink()
        assert newest_whole_checkpoint(checkpoints).name == "step-00000004"


def forget_a_shard(folder: Path) -> None:
    """Leave a shard out of the list, as a host does that does not see it yet."""
    marker = json.loads((folder / MARKER).read_text())
    marker["files"] = {name: file for name, file in marker["files"].items() if "optim_states" not in name}
    (folder / MARKER).write_text(json.dumps(marker))


def flip_a_bit(folder: Path) -> None:
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / WEIGHTS).write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda folder: cut_file(folder / WEIGHTS, 0.5), id="file-cut-short"),
        pytest.param(lambda folder: cut_file(folder / WEIGHTS, 0.0), id="file-empty"),
        pytest.param(lambda folder: (folder / WEIGHTS).unlink(), id="file-missing"),
        pytest.param(lambda folder: shutil.rmtree(folder / "model"), id="folder-missing"),
        pytest.param(lambda folder: cut_file(folder / MARKER, 0.5), id="marker-half-written"),
        pytest.param(lambda folder: cut_file(folder / MARKER, 0.0), id="marker-empty"),
        pytest.param(lambda folder: (folder / MARKER).write_text("{}"), id="marker-of-another-format"),
        pytest.param(forget_a_shard, id="shard-not-listed"),
        pytest.param(flip_a_bit, id="one-bit"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_and_marked(
    damage: Callable[[Path], None], run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints = run / "checkpoints"
    damage(checkpoints / "step-00000006")
    with pytest.raises(UserError, match="older checkpoint"):
        find_checkpoint(checkpoints / "step-00000006")
    assert find_checkpoint(run).name == "step-00000004"
    assert (checkpoints / "step-00000006" / MARKER).is_file(), "what only looks must not change a run's folder"
    assert newest_whole_checkpoint(checkpoints).name == "step-00000004"
    assert "passing over a damaged checkpoint" in capsys.readouterr().err
    assert (checkpoints / "step-00000006" / DAMAGED).is_file()
    assert [folder.name for folder in complete_checkpoints(checkpoints)] == ["step-00000002", "step-00000004"]
    assert find_checkpoint(run).name == "step-00000004"


def test_resume_from_before_the_damage_gives_the_undisturbed_losses(
    small_run: Path, run: Path, sample_shards: Path
) -> None:
    flip_a_bit(run / "checkpoints" / "step-00000006")
    cut_file(run / "checkpoints" / "step-00000004" / WEIGHTS, 0.5)
    for name in ("metrics.jsonl", "samples.jsonl"):
        (run / name).unlink()
    run_in_this_process(sample_shards, run, *STEPS)
    repeated = losses(run)
    assert sorted(repeated) == [3, 4, 5, 6]
    assert repeated == {step: losses(small_run)[step] for step in repeated}
    assert [folder.name for folder in complete_checkpoints(run / "checkpoints")] == [
        "step-00000002",
        "step-00000004",
        "step-00000006",
    ]


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_over_unseen(run: Path, sample_shards: Path) -> None:
    for folder in complete_checkpoints(run / "checkpoints"):
        flip_a_bit(folder)
    for _ in range(2):
        with pytest.raises(UserError, match=r"no whole checkpoint, 3 damaged.*remove this folder to start from step 0"):
            run_in_this_process(sample_shards, run, *STEPS)


def test_a_removal_that_was_cut_leaves_no_checkpoint_that_looks_complete(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class PowerCut(BaseException):
        pass

    def cut(*_: object, **__: object) -> None:
        raise PowerCut

    monkeypatch.setattr(shutil, "rmtree", cut)
    with pytest.raises(PowerCut):
        checkpoint._remove_older(run / "checkpoints", 6, keep=1)
    assert [folder.name for folder in complete_checkpoints(run / "checkpoints")] == ["step-00000004", "step-00000006"]
    monkeypatch.undo()
    checkpoint._remove_older(run / "checkpoints", 6, keep=1)
    assert [folder.name for folder in (run / "checkpoints").glob("step-*")] == ["step-00000006"]


def test_the_last_good_checkpoint_stays_while_newer_ones_are_cut_short(
    sample_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = checkpoint._mark_complete

    def mark_on_a_disk_that_loses_data(folder: Path, step: int, world_size: int) -> None:
        mark(folder, step, world_size)
        if step > 2:
            cut_file(folder / WEIGHTS, 0.5)

    monkeypatch.setattr(checkpoint, "_mark_complete", mark_on_a_disk_that_loses_data)
    run_in_this_process(sample_shards, tmp_path / "run", *STEPS, "checkpoints.keep=1")
    assert newest_whole_checkpoint(tmp_path / "run" / "checkpoints").name == "step-00000002"


def test_leftovers_of_interrupted_saves_are_cleared_by_the_next_save(run: Path, sample_shards: Path) -> None:
    checkpoints = run / "checkpoints"
    (checkpoints / "step-00000006" / MARKER).unlink()
    (checkpoints / "step-00000005").mkdir()
    (checkpoints / "step-00000005" / WEIGHTS).write_bytes(b"half")
    run_in_this_process(sample_shards, run, *STEPS)
    assert sorted(folder.name[-1] for folder in checkpoints.glob("step-*")) == ["2", "4", "6"]


def test_disk_that_fills_up_during_a_save_is_one_line_and_costs_no_older_checkpoint(
    sample_shards: Path, tmp_path: Path
) -> None:
    engine, checkpoints = make_one_process(sample_shards).engine, tmp_path / "checkpoints"
    save = partial(save_checkpoint, engine, checkpoints, keep=2, write_model_files=Path.mkdir)
    save(1)
    # Room for the small files, not for the weights.
    with (
        room_for(20_000),
        pytest.raises(UserError, match=rf"{WEIGHTS}, process 0 on .*iB free.*make room") as caught,
    ):
        save(2)
    assert "\n" not in str(caught.value)
    assert [folder.name for folder in checkpoints.glob("step-*")] == ["step-00000001"]
    assert newest_whole_checkpoint(save(2).parent).name == "step-00000002"


def test_save_that_has_no_room_is_refused_after_leftovers_are_cleared(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = run / "checkpoints"
    (checkpoints / "step-00000006" / MARKER).unlink()
    needed = sum(file["bytes"] for file in read_marker(checkpoints / "step-00000004")["files"].values())
    usage = shutil.disk_usage(run)
    init_distributed()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed - 1))
    with pytest.raises(UserError, match=r"[GM]iB free; expected room for step-00000008.*make room"):
        save_checkpoint(None, checkpoints, 8, keep=2, write_model_files=Path.mkdir)
    assert [folder.name for folder in sorted(checkpoints.glob("step-*"))] == ["step-00000002", "step-00000004"]


def test_all_processes_refuse_alike_where_one_has_no_room(zero_checkpoints: Path) -> None:
    first, second = ((zero_checkpoints / REFUSED / rank).read_text() for rank in "01")
    assert first == second
    assert "process 1 on" in first and "make room" in first
    # And go on together: the next save of the same engines is whole.
    assert find_checkpoint(zero_checkpoints / "stage3").name == "step-00000003"


def test_file_of_another_host_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_files, "_POLL_S", 0.02)
    (tmp_path / "late").write_bytes(b"ha")
    threading.Timer(0.2, (tmp_path / "late").write_bytes, (b"half",)).start()
    shard_files.wait_until_visible(tmp_path, {"late": 4})
    monkeypatch.setattr(shard_files, "VISIBLE_AFTER_S", 0.1)
    with pytest.raises(UserError, match=r"never: got no such file of 4 bytes.*that all hosts share"):
        shard_files.wait_until_visible(tmp_path, {"late": 4, "never": 4})


def test_checkpoint_without_the_shard_of_a_process_is_not_marked_complete(run: Path) -> None:
    newest = run / "checkpoints" / "step-00000006"
    (newest / MARKER).unlink()
    with pytest.raises(UserError, match="got 1 optimizer shards; expected 2"):
        checkpoint._mark_complete(newest, 6, 2)
    assert not (newest / MARKER).exists()


def test_every_file_and_folder_is_on_disk_before_the_marker(
    sample_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    real = checkpoint.fsync_path
    monkeypatch.setattr(checkpoint, "fsync_path", lambda path: (synced.append(path), real(path)))
    monkeypatch.setattr(checkpoint, "write_json", lambda path, value: synced.append(path))
    run_in_this_process(sample_shards, tmp_path / "run", "optimization.max_steps=1")
    folder = tmp_path / "run" / "checkpoints" / "step-00000001"
    before = synced[: synced.index(folder / MARKER)]
    assert {folder, folder.parent, *folder.rglob("*")} <= set(before)


def test_a_checkpoint_of_another_model_is_one_clear_line(run: Path, sample_shards: Path) -> None:
    newest = run / "checkpoints" / "step-00000006"
    state = torch.load(newest / WEIGHTS, weights_only=True)
    name = "bert.entity_linker.entity_embeddings.weight"
    group = next(group for group in state["param_shapes"] if name in group)
    rows, size = group[name]
    group[name] = torch.Size([rows, 13])
    torch.save(state, newest / WEIGHTS)
    (newest / MARKER).unlink()
    checkpoint._mark_complete(newest, 6, 1)
    expected = rf"another model \({name}: {rows} x 13 then, {rows} x {size} now\)"
    with pytest.raises(UserError, match=expected):
        run_in_this_process(sample_shards, run, *STEPS)
