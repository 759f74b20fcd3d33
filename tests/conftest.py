"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from kebiolm.files import write_json
from preprocessing.annotation.store import FORMAT, VERSION, document_table, reject_table, write_part
from preprocessing.document import Document

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real abstracts, a real knowledge base and a mention model (KEBIOLM_TEST_DATA); skips where absent."""
    folder = Path(os.environ.get("KEBIOLM_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "kb" / "openkb").is_dir():
        pytest.skip(f"real data is not at {folder} (set KEBIOLM_TEST_DATA)")
    return folder


@pytest.fixture(scope="session")
def sample_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The generated sample: umls/, pubmed/, gold.pubtator.txt, codes.tsv, tokenizer/. Read only."""
    from preprocessing.sample.build import build_sample

    folder = tmp_path_factory.mktemp("sample") / "sample"
    build_sample(folder)
    return folder


@pytest.fixture(scope="session")
def sample_kb(sample_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The knowledge base folder built from the sample's UMLS files. Read only."""
    from preprocessing.umls.build_kb import build_kb

    folder = tmp_path_factory.mktemp("sample_kb") / "kb"
    build_kb(sample_dir / "umls", folder)
    return folder


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """Ray on this machine with two CPUs, started once; annotation jobs use a session that is open."""
    from preprocessing.ray_pool import ray_session

    with ray_session(None, workers=2):
        yield


@pytest.fixture(scope="session")
def tiny_tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lower-casing BERT tokenizer of 119 pieces (all letters, digits, some punctuation and words): vocab.txt only."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    words = ["asp", "##irin", "head", "##ache", "treats", "the", "of", "and", "patient", "##s", "pain", "severe"]
    pieces = [*special, *letters, *(f"##{letter}" for letter in letters), *".,;:()-+/[]'?!%<>=_&", *words]
    folder = tmp_path_factory.mktemp("tokenizer")
    # "##s" stands among the letters already.
    (folder / "vocab.txt").write_text("\n".join(dict.fromkeys(pieces)) + "\n", encoding="utf-8")
    return folder


def write_annotated_folder(folder: Path, documents: Iterable[Document], *, documents_per_part: int = 2000) -> Path:
    """Write documents as a finished annotated folder; returns the folder."""
    documents = list(documents)
    starts = range(0, max(len(documents), 1), documents_per_part)
    parts = [
        write_part(folder, number, document_table(documents[start : start + documents_per_part]), reject_table([]), {})
        for number, start in enumerate(starts)
    ]
    files = {name: file for part in parts for name, file in part["files"].items()}
    counts = {"documents_in": len(documents), "documents_out": len(documents), "rejects": 0, "parts": len(parts)}
    write_json(folder / "manifest.json", {"format": FORMAT, "version": VERSION, "counts": counts, "files": files})
    return folder


@pytest.fixture
def write_annotated(tmp_path: Path) -> Callable[[Iterable[Document]], Path]:
    """Writes documents as a finished annotated folder; returns the folder."""

    def write(documents: Iterable[Document]) -> Path:
        folder = tmp_path / "annotated"
        folder.mkdir()
        return write_annotated_folder(folder, documents)

    return write


@pytest.fixture(scope="session")
def sample_shards(sample_dir: Path, sample_kb: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample's abstracts annotated with their gold mentions and packed at length 128. Read only."""
    from preprocessing.document import Mention
    from preprocessing.packing.pack import pack
    from preprocessing.packing.settings import PackSettings
    from preprocessing.sources.pubtator import read_gold

    documents = [
        Document(
            doc_id=gold.doc_id,
            text=gold.text,
            mentions=tuple(Mention(start=m.start, end=m.end, cui=m.codes[0], score=1.0) for m in gold.mentions),
        )
        for gold in read_gold(sample_dir / "gold.pubtator.txt")
    ]
    annotated = write_annotated_folder(tmp_path_factory.mktemp("sample_annotated"), documents)
    shards = tmp_path_factory.mktemp("sample_shards") / "shards"
    settings = PackSettings(max_length=128, heldout=0.1)
    pack(annotated, sample_dir / "tokenizer", shards, settings=settings, knowledge_base=sample_kb)
    return shards


@pytest.fixture(scope="session")
def trained_run(sample_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output folder of a finished run: 40 steps of the debug recipe on the sample, ZeRO-2 in 2 processes. Read only.

    The one run of the tests of training that MLflow has too.
    """
    from tests.training.launch import launch_pretraining

    output = tmp_path_factory.mktemp("trained") / "run"
    uri = f"sqlite:///{output.parent / 'mlflow.db'}"
    launch_pretraining(sample_shards, output, f"tracking.tracking_uri={uri}").check()
    return output


@pytest.fixture(scope="session")
def zero_checkpoints(tiny_tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of two processes, one run folder for each case of `tests.export.zero_checkpoints`. Read only."""
    from tests.export.zero_checkpoints import make_zero_checkpoints

    return make_zero_checkpoints(tmp_path_factory.mktemp("zero"), tiny_tokenizer_folder)
