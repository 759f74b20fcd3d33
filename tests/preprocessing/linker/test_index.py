"""The link index gives scispaCy's scores, finds the true best name, and never changes its mind."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import TfidfVectorizer

from kebiolm.errors import UserError
from preprocessing.linker import LinkIndex, build, build_link_index, link_key
from preprocessing.linker import index as linker

PAIRS = [
    ("Aspirin", "C2"),
    ("aspirin", "C1"),
    ("acetylsalicylic acid", "C2"),
    ("Myocardial infarction", "C3"),
    ("Infarction myocardial", "C4"),
    ("Zq", "C9"),
]


def make_index(folder: Path, pairs: list[tuple[str, str]], **options: int) -> LinkIndex:
    names, cuis = zip(*pairs, strict=True)
    build_link_index(names, cuis, folder / "index", **options)
    return LinkIndex.load(folder / "index")


def scispacy_scores(pairs: list[tuple[str, str]], mentions: list[str], min_df: int) -> list[dict[str, float]]:
    """CUI -> score for each mention, from scispaCy's vectorizer settings and a dense product."""
    names = sorted({name for name, _ in pairs})
    vectorizer = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 3), min_df=min_df, dtype=np.float32)
    vectors = vectorizer.fit_transform(names).toarray()
    cosines = vectorizer.transform(mentions).toarray() @ vectors.T
    row_of = {name: row for row, name in enumerate(names)}
    results = []
    for cosine in cosines:
        scores: dict[str, float] = {}
        for name, cui in pairs:
            scores[cui] = max(scores.get(cui, 0.0), float(cosine[row_of[name]]))
        results.append({cui: score for cui, score in scores.items() if score > 0})
    return results


def assert_equal_to_scispacy(index: LinkIndex, pairs: list[tuple[str, str]], mentions: list[str], min_df: int) -> None:
    expected_scores = scispacy_scores(pairs, mentions, min_df)
    for mention, candidates, expected in zip(mentions, index.link(mentions, top=5), expected_scores, strict=True):
        if not expected:
            # The one addition to scispaCy: a name that has no vector is found by equality.
            assert all(
                candidate.score == 1.0 and link_key(candidate.name) == link_key(mention) for candidate in candidates
            )
            continue
        best = sorted(expected.values(), reverse=True)[:5]
        assert [candidate.score for candidate in candidates] == pytest.approx(best, abs=2e-6), mention
        for candidate in candidates:
            assert candidate.score == pytest.approx(expected[candidate.cui], abs=2e-6), mention
        order = [(-candidate.score, candidate.cui) for candidate in candidates]
        assert order == sorted(order)
        assert index.link([mention])[0] == candidates[:1]


def real_pairs(real_data: Path, count: int) -> list[tuple[str, str]]:
    rows = (real_data / "kb" / "openkb" / "MRCONSO.RRF").read_text(encoding="utf-8").splitlines()
    columns = [row.split("|") for row in rows[:: len(rows) // count]]
    return sorted({(column[14], column[0]) for column in columns})


def real_mentions(real_data: Path, count: int) -> list[str]:
    rows = (real_data / "corpora" / "cdr_train.pubtator.txt").read_text(encoding="utf-8").splitlines()
    return sorted({row.split("\t")[3] for row in rows if row.count("\t") >= 5})[:count]


def test_equals_scispacys_formula_on_real_names(real_data: Path, tmp_path: Path) -> None:
    pairs = real_pairs(real_data, 4000)
    index = make_index(tmp_path, pairs, min_df=10)
    assert_equal_to_scispacy(index, pairs, real_mentions(real_data, 600), min_df=10)


def test_equals_scispacys_candidate_generator(real_data: Path, tmp_path: Path) -> None:
    """scispaCy's own code on an exhaustive nmslib search (its graph finds the best name for 98% only)."""
    nmslib = pytest.importorskip("nmslib")
    from scispacy.candidate_generation import CandidateGenerator

    pairs = real_pairs(real_data, 2000)
    mentions = real_mentions(real_data, 150)
    index = make_index(tmp_path, pairs, min_df=10)
    vectorizer = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 3), min_df=10, dtype=np.float32)
    names = sorted({name for name, _ in pairs})
    vectors = vectorizer.fit_transform(names)
    kept = np.flatnonzero(np.diff(vectors.indptr))
    search = nmslib.init(method="brute_force", space="cosinesimil_sparse", data_type=nmslib.DataType.SPARSE_VECTOR)
    search.addDataPointBatch(vectors[kept])
    search.createIndex()
    alias_to_cuis: dict[str, set[str]] = {}
    for name, cui in pairs:
        alias_to_cuis.setdefault(name, set()).add(cui)
    kb = SimpleNamespace(alias_to_cuis=alias_to_cuis)
    generator = CandidateGenerator(search, vectorizer, [names[row] for row in kept], kb)

    for mention, theirs, ours in zip(mentions, generator(mentions, 30), index.link(mentions), strict=True):
        if not theirs:
            assert ours == () or ours[0].score == 1.0
            continue
        best = max(max(candidate.similarities) for candidate in theirs)
        tied = {candidate.concept_id for candidate in theirs if max(candidate.similarities) > best - 1e-6}
        assert ours[0].score == pytest.approx(best, abs=2e-6), mention
        assert ours[0].cui in tied, mention


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    names=st.lists(st.text(alphabet="abC é1-", min_size=1, max_size=9), min_size=1, max_size=30),
    mentions=st.lists(st.text(alphabet="abC é1-x", max_size=9), min_size=1, max_size=8),
    min_df=st.integers(1, 3),
)
def test_equals_scispacys_formula_on_any_names(
    tmp_path: Path, names: list[str], mentions: list[str], min_df: int
) -> None:
    pairs = sorted({(name, f"C{place % 7}") for place, name in enumerate(names)})
    index = make_index(tmp_path, pairs, min_df=min_df)
    if index.manifest["counts"]["vocabulary"]:  # scikit-learn refuses an empty one
        assert_equal_to_scispacy(index, pairs, mentions, min_df)


def test_an_equal_name_is_never_missed(tmp_path: Path) -> None:
    index = make_index(tmp_path, PAIRS, min_df=2)
    assert index.manifest["counts"]["names_without_vector"] == 2
    for name, _ in PAIRS:
        for mention in (name, name.upper(), f"  {name.lower()} "):
            assert index.link([mention])[0][0].score == 1.0
    assert index.link(["zq"])[0][0].cui == "C9"
    assert index.link(["zk", "", "  "]) == [(), (), ()]


def test_ties_go_to_the_first_cui(tmp_path: Path) -> None:
    index = make_index(tmp_path, PAIRS, min_df=1)
    # Upper and lower case have one vector, and so have the same words in another order.
    assert [candidate.cui for candidate in index.link(["ASPIRIN"], top=2)[0]] == ["C1", "C2"]
    assert [candidate.cui for candidate in index.link(["infarction myocardial"], top=2)[0]] == ["C3", "C4"]
    assert index.link(["aspirin"])[0][0].name == "aspirin"


def test_many_names_of_one_concept_do_not_hide_the_next(tmp_path: Path) -> None:
    pairs = [(f"chronic pain type {number}", "C1") for number in range(50)] + [("chronic pain of the left knee", "C2")]
    index = make_index(tmp_path, pairs)
    assert [candidate.cui for candidate in index.link(["chronic pain"], top=2)[0]] == ["C1", "C2"]


def test_order_of_names_and_batches_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mentions = ["aspirin", "infarct", "acid", "zq", "heart"]
    index = make_index(tmp_path / "one", PAIRS)
    other = make_index(tmp_path / "two", PAIRS[::-1] + PAIRS[:2])
    assert index.manifest["files"] == other.manifest["files"]
    expected = index.link(mentions, top=3)
    monkeypatch.setattr(linker, "MAX_PAIRS_IN_MEMORY", 2)
    assert index.link(mentions, top=3) == expected
    assert [index.link([mention], top=3)[0] for mention in mentions] == expected


def test_min_df_follows_the_size_of_the_knowledge_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert make_index(tmp_path, PAIRS).manifest["settings"]["min_df"] == 1
    monkeypatch.setattr(build, "SMALL_KB_NAMES", 6)
    assert make_index(tmp_path, PAIRS).manifest["settings"]["min_df"] == 10


def test_link_key_keeps_what_the_vector_keeps() -> None:
    assert link_key("  Heart\n Attack ") == "heart attack"


@pytest.mark.parametrize("name", ["lists_signature.npy", "names.arrow", "manifest.json"])
def test_a_damaged_index_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    make_index(tmp_path, PAIRS)
    file = tmp_path / "index" / name
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 0xFF]))
    with pytest.raises(UserError, match="kb build") as error:
        LinkIndex.load(tmp_path / "index")
    assert "\n" not in str(error.value)


def test_nothing_to_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one"):
        build_link_index([], [], tmp_path / "index")


def test_arrow_columns_and_lists_give_one_index(tmp_path: Path) -> None:
    names, cuis = zip(*PAIRS, strict=True)
    build_link_index(list(names), list(cuis), tmp_path / "lists")
    columns = pa.chunked_array([names[:2], names[2:]]), pa.chunked_array([cuis[:5], cuis[5:]])
    build_link_index(*columns, tmp_path / "chunked")
    build_link_index(pa.array(names), pa.array(cuis), tmp_path / "arrays")
    manifests = [(tmp_path / folder / "manifest.json").read_bytes() for folder in ("lists", "chunked", "arrays")]
    assert manifests[0] == manifests[1] == manifests[2]


def test_batches_of_names_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = make_index(tmp_path / "whole", PAIRS, min_df=2)
    monkeypatch.setattr(build, "NAMES_AT_ONCE", 2)
    assert make_index(tmp_path / "cut", PAIRS, min_df=2).fingerprint == whole.fingerprint


def test_strange_characters(tmp_path: Path) -> None:
    """The end of Unicode, letters whose lower case is longer, combining marks; a mention may hold half a surrogate."""
    pairs = [("\U0010ffff\U0010fffe\U0010fffd", "C1"), ("İstanbul", "C2"), ("e\u0301tat", "C3"), ("a\u2003b", "C4")]
    index = make_index(tmp_path, pairs)
    for name, cui in pairs:
        assert [(found.cui, found.score) for found in index.link([name])[0]] == [(cui, 1.0)]
    assert index.link(["\ud800", "a \udfff"])[0] == ()
    assert_equal_to_scispacy(index, pairs, [name for name, _ in pairs], min_df=1)
