"""A packing job: the same bytes for any number of workers, killed or not; what is done is kept; changes are refused."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kebiolm.data.shard_format import PackedShards
from kebiolm.errors import UserError
from preprocessing.document import Document
from preprocessing.packing.pack import pack
from preprocessing.packing.settings import PackSettings
from tests.conftest import write_annotated_folder
from tests.preprocessing.packing.test_pack import make_documents

# 40 parts of 5 documents, two of them a group, and one document in five held out.
SETTINGS = {"max_length": 64, "heldout": 0.2, "documents_per_shard": 12}
DOCUMENTS, DOCUMENTS_PER_PART, GROUPS = 200, 5, 20


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def annotated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("annotated")
    return write_annotated_folder(folder, make_documents(DOCUMENTS), documents_per_part=DOCUMENTS_PER_PART)


@pytest.fixture(scope="module")
def undisturbed(annotated: Path, tiny_tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shards that one worker makes at one go. Read only."""
    out = tmp_path_factory.mktemp("undisturbed") / "shards"
    pack(annotated, tiny_tokenizer_folder, out, settings=PackSettings(**SETTINGS))
    return out


def test_shards_are_units_and_held_out_documents_stay_together(undisturbed: Path):
    shards = PackedShards.load(undisturbed, verify=True)
    names = [name for name in shards.manifest["files"] if name.endswith(".arrow")]
    train = [name for name in names if name.startswith("train")]
    assert train == [f"train-{number:05d}-of-{GROUPS:05d}.arrow" for number in range(GROUPS)]
    heldout = shards.manifest["counts"]["heldout"]
    # Each group has two or so of them; they were packed together, not group by group.
    assert 20 < heldout["documents"] < 60
    assert 1 < len(names) - len(train) < GROUPS / 2
    assert heldout["fill_rate"] > 0.85
    assert not (undisturbed / "work").exists()


def test_a_job_that_was_killed_goes_on_and_ends_with_the_same_bytes(
    annotated: Path, undisturbed: Path, tiny_tokenizer_folder: Path, tmp_path: Path, local_ray: None
):
    out = tmp_path / "shards"
    code = (
        "import sys; from pathlib import Path; from preprocessing.packing.pack import pack;"
        "from preprocessing.packing.settings import PackSettings;"
        f"pack(*map(Path, sys.argv[1:]), settings=PackSettings(**{SETTINGS}))"
    )
    command = [sys.executable, "-c", code, *map(str, (annotated, tiny_tokenizer_folder, out))]
    driver = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list(out.glob("work/groups/*.json"))) < 3 and driver.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    done = {path.stem: path.stat().st_mtime_ns for path in out.glob("work/groups/*.json")}
    assert 3 <= len(done) < GROUPS, "the job should be killed in its middle"
    with pytest.raises(UserError, match="a packing job that is not finished"):
        PackedShards.load(out)
    finished = {name: out / f"train-{name}-of-{GROUPS:05d}.arrow" for name in done}
    before = {name: path.stat().st_mtime_ns for name, path in finished.items()}
    # One of those that were done is damaged: it is made again, and the others are not.
    damaged = min(done)
    finished[damaged].write_bytes(b"damaged")
    (out / ".train-00000.arrow.1.tmp").write_bytes(b"half a shard")

    # The rest is done by two workers.
    settings = PackSettings(**SETTINGS)
    manifest = pack(annotated, tiny_tokenizer_folder, out, settings=settings, workers=2)
    assert contents(out) == contents(undisturbed)
    assert {name: path.stat().st_mtime_ns for name, path in finished.items() if name != damaged} == {
        name: moment for name, moment in before.items() if name != damaged
    }
    assert manifest == PackedShards.load(out, verify=True).manifest


def test_a_finished_job_does_nothing_and_mends_what_is_missing(
    annotated: Path, undisturbed: Path, tiny_tokenizer_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out, settings = tmp_path / "shards", PackSettings(**SETTINGS)
    pack(annotated, tiny_tokenizer_folder, out, settings=settings)
    capsys.readouterr()
    (out / "work").mkdir()  # as where the driver was killed after its last manifest
    pack(annotated, tiny_tokenizer_folder, out, settings=settings)
    assert "nothing to do" in capsys.readouterr().out and not (out / "work").exists()
    for name in (f"train-00004-of-{GROUPS:05d}.arrow", "entity_vocab.tsv", "tokenizer/tokenizer.json"):
        (out / name).write_bytes(b"damaged")
        pack(annotated, tiny_tokenizer_folder, out, settings=settings)
        assert "nothing to do" not in capsys.readouterr().out
        assert contents(out) == contents(undisturbed)


@pytest.mark.parametrize("change", ["settings", "tokenizer", "corpus"])
def test_a_changed_job_is_refused_and_what_was_there_stays(
    change: str, annotated: Path, tiny_tokenizer_folder: Path, tmp_path: Path
):
    out, settings, tokenizer = tmp_path / "shards", {"max_length": 64, "heldout": 0.2}, tiny_tokenizer_folder
    pack(annotated, tokenizer, out, settings=PackSettings(**settings))
    before = contents(out)
    if change == "settings":
        settings["heldout"], difference = 0.3, "settings.heldout: 0.2 -> 0.3"
    elif change == "tokenizer":
        difference = "tokenizer.vocab_sha256: "
        tokenizer = tmp_path / "tokenizer"
        tokenizer.mkdir()
        text = (tiny_tokenizer_folder / "vocab.txt").read_text(encoding="utf-8")
        (tokenizer / "vocab.txt").write_text(f"{text}new\n", encoding="utf-8")
    else:
        difference = "source.annotated_manifest_sha256: "
        annotated = tmp_path / "other"
        annotated.mkdir()
        write_annotated_folder(annotated, make_documents(20, seed=1))
    with pytest.raises(UserError, match=difference):
        pack(annotated, tokenizer, out, settings=PackSettings(**settings))
    assert contents(out) == before
    pack(annotated, tokenizer, out, settings=PackSettings(**settings), overwrite=True)
    assert PackedShards.load(out, verify=True).manifest["settings"]["heldout"] == settings["heldout"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_folders_of_others_are_never_touched(
    overwrite: bool, annotated: Path, tiny_tokenizer_folder: Path, tmp_path: Path
):
    (tmp_path / "thesis.txt").write_text("years of work")
    for out, message in ((tmp_path, "other files"), (annotated, "is the input"), (annotated / "x", "lies inside")):
        with pytest.raises(UserError, match=message):
            pack(annotated, tiny_tokenizer_folder, out, overwrite=overwrite)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
    assert not (annotated / "x").exists()


def test_a_part_with_other_bytes_than_its_manifest_says_is_refused(tiny_tokenizer_folder: Path, tmp_path: Path):
    folder = tmp_path / "annotated"
    folder.mkdir()
    write_annotated_folder(folder, make_documents(30))
    part = folder / "part-00000.parquet"
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    with pytest.raises(UserError, match=r"part-00000\.parquet: got SHA-256"):
        pack(folder, tiny_tokenizer_folder, tmp_path / "out")


def test_a_corpus_without_documents_has_nothing_to_train_on(tiny_tokenizer_folder: Path, tmp_path: Path):
    folder = tmp_path / "annotated"
    folder.mkdir()
    write_annotated_folder(folder, [])
    with pytest.raises(UserError, match="0 documents to train on"):
        pack(folder, tiny_tokenizer_folder, tmp_path / "out")


def test_a_group_of_empty_documents_is_an_empty_shard(tiny_tokenizer_folder: Path, tmp_path: Path):
    folder = tmp_path / "annotated"
    folder.mkdir()
    documents = [Document(doc_id=f"e{number}", text=" ") for number in range(2)]
    write_annotated_folder(folder, [*make_documents(2), *documents, *make_documents(2)], documents_per_part=2)
    settings = PackSettings(heldout=0, documents_per_shard=2)
    counts = pack(folder, tiny_tokenizer_folder, tmp_path / "out", settings=settings)["counts"]["train"]
    assert (counts["documents"], counts["empty_documents"]) == (6, 2)
    shards = PackedShards.load(tmp_path / "out", verify=True)
    assert [file["rows"] for name, file in shards.manifest["files"].items() if "train" in name] == [1, 0, 1]
    assert [sequence.document_ids[0] for sequence in shards.train] == ["d0", "d0"]
