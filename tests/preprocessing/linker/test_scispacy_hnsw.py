"""scispaCy's approximate search gives what scispaCy's own candidate generator gives over the same files."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import joblib
import numpy as np
import pytest
from scipy import sparse
from scispacy.candidate_generation import CandidateGenerator, LinkerPaths

from kebiolm.errors import UserError
from preprocessing.linker.choice import describe_linker, load_linker
from preprocessing.linker.scispacy_hnsw import ScispacyHnsw, build_scispacy_hnsw

PAIRS = [
    *((f"{kind} {disease}", f"C{place}") for kind in ("acute", "chronic", "familial", "renal")
      for place, disease in enumerate(("myocardial infarction", "hepatitis", "nephropathy", "cardiomyopathy"), 1)),
    ("Aspirin", "C8"), ("aspirin", "C7"), ("acetylsalicylic acid", "C8"), ("zzq", "C9"),
]  # fmt: skip
MENTIONS = [
    "aspirin",
    "acute hepatitis",
    "hepatitis, chronic",
    "renal cardiomyopathies",
    "zzq",
    "",
    "xyz",
    "nephropathi",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hnsw") / "linker"
    build_scispacy_hnsw([name for name, _ in PAIRS], path, min_df=2)
    return path


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may break, without our manifest: as scispaCy publishes it."""
    shutil.copytree(folder, tmp_path / "linker")
    (tmp_path / "linker" / "manifest.json").unlink()
    return tmp_path / "linker"


def load(path: Path) -> ScispacyHnsw:
    names, cuis = zip(*PAIRS, strict=True)
    return ScispacyHnsw.load(path, names, cuis)


def test_equals_scispacys_candidate_generator(folder: Path) -> None:
    index = load(folder)
    aliases, vectorizer, graph = LinkerPaths.from_directory(folder).load()
    alias_to_cuis = {name: {cui for other, cui in PAIRS if other == name} for name in aliases}
    generator = CandidateGenerator(graph, vectorizer, aliases, SimpleNamespace(alias_to_cuis=alias_to_cuis))
    linked = index.link_above(MENTIONS, 0.6)
    for mention, theirs, concept, score in zip(
        MENTIONS, generator(MENTIONS, 30), linked.concept, linked.score, strict=True
    ):
        scores = {found.concept_id: round(max(found.similarities), 6) for found in theirs}
        best = max(scores.values(), default=0)
        if best <= 0.6:
            assert (concept, score) == (-1, 0), mention
            continue
        assert index.concepts[concept].as_py() == min(cui for cui, value in scores.items() if value == best), mention
        assert score == pytest.approx(best), mention
    assert [index.concepts[concept].as_py() for concept in linked.concept[:3]] == ["C7", "C2", "C2"]
    assert linked.concept[4:7].tolist() == [-1, -1, -1]


def test_a_pickle_of_an_older_scikit_learn(copy: Path) -> None:
    """Before version 1.5 the weights lay in a diagonal matrix; scispaCy's published linkers are older."""
    expected = load(copy).link_above(MENTIONS, 0.6)
    vectorizer = joblib.load(copy / "tfidf_vectorizer.joblib")
    vectorizer._tfidf.__dict__["_idf_diag"] = sparse.diags(vectorizer._tfidf.__dict__.pop("idf_"))
    joblib.dump(vectorizer, copy / "tfidf_vectorizer.joblib")
    found = load(copy).link_above(MENTIONS, 0.6)
    assert found.concept.tolist() == expected.concept.tolist()
    assert found.score.tolist() == expected.score.tolist()


def test_names_of_the_index_that_the_knowledge_base_lacks(copy: Path) -> None:
    index = ScispacyHnsw.load(copy, ["acute hepatitis", "spleen"], ["C2", "C3"])
    linked = index.link_above(["acute hepatitis", "aspirin"], 0.6)
    assert index.concepts.to_pylist() == ["C2", "C3"]
    assert linked.concept.tolist() == [0, -1]


@pytest.mark.parametrize(
    "name", ["nmslib_index.bin", "tfidf_vectors_sparse.npz", "tfidf_vectorizer.joblib", "concept_aliases.json"]
)
def test_a_missing_or_broken_file_is_refused_in_one_line(copy: Path, name: str) -> None:
    whole = (copy / name).read_bytes()
    for broken in (whole[: len(whole) // 2], b"", bytes(range(256)) * 20):
        (copy / name).write_bytes(broken)
        with pytest.raises(UserError, match=name) as error:
            load(copy)
        assert "\n" not in str(error.value)
    (copy / name).unlink()
    with pytest.raises(UserError, match="no such file"):
        load(copy)


def test_files_that_do_not_belong_together_are_refused(copy: Path) -> None:
    aliases = json.loads((copy / "concept_aliases.json").read_text())
    (copy / "concept_aliases.json").write_text(json.dumps(aliases[:-1]))
    with pytest.raises(UserError, match="vectors"):
        load(copy)


def test_a_changed_file_of_our_own_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "linker")
    before = load(tmp_path / "linker").fingerprint
    assert before == load(folder).fingerprint
    aliases = tmp_path / "linker" / "concept_aliases.json"
    aliases.write_text(aliases.read_text().replace("Aspirin", "Aspirim"))
    with pytest.raises(UserError, match="SHA-256"):
        load(tmp_path / "linker")
    assert ScispacyHnsw.load(tmp_path / "linker", ["a"], ["C1"], check_hash=False).fingerprint != before


def test_a_pickle_that_others_can_change_is_refused(copy: Path) -> None:
    pickle = copy / "tfidf_vectorizer.joblib"
    pickle.chmod(0o666)
    with pytest.raises(UserError, match="others may write"):
        load(copy)
    pickle.chmod(0o644)
    if os.getuid() != 0:
        pytest.skip("only root can give files away")
    os.chown(pickle, 12345, 12345)
    with pytest.raises(UserError, match="user 12345"):
        load(copy)


def test_the_choice_of_a_linker(small_kb: Path, tmp_path: Path, folder: Path) -> None:
    exact = load_linker("exact", small_kb)
    expected = exact.link_above(["Aspirin", "heart attack", "hypertensions"], 0.85)
    kb = tmp_path / "kb"
    shutil.copytree(small_kb, kb)
    published = load_linker(str(folder), kb)
    assert published.concepts.equals(exact.concepts)
    # Its name "Aspirin" is one of the knowledge base's; "acetylsalicylic acid" there has a capital letter.
    linked = published.link_above(["aspirin", "acetylsalicylic acid"], 0.85)
    assert linked.concept.tolist() == [published.concepts.index("C0004057").as_py(), -1]
    assert expected.concept[:2].tolist() == [exact.concepts.index(cui).as_py() for cui in ("C0004057", "C0027051")]
    assert np.all(expected.score[:2] == 1)
    assert describe_linker("exact", kb) == {"kind": "exact", "sha256": exact.fingerprint}
    assert describe_linker(str(folder), kb)["sha256"] == published.fingerprint
    built = load_linker("scispacy-hnsw", kb).link_above(["Aspirin", "heart attack"], 0.85)
    assert built.concept.tolist() == expected.concept[:2].tolist()
    assert load_linker("scispacy-hnsw", kb).fingerprint == describe_linker("scispacy-hnsw", kb)["sha256"]
    with pytest.raises(UserError, match="scispacy-hnsw"):
        load_linker("no-such-linker", kb)
