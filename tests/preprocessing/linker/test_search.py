"""The pruned search finds exactly what the exhaustive one finds, wherever its best score is above the threshold."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numba.core import caching

from preprocessing.linker import LinkIndex, build_link_index
from preprocessing.linker.search import compiled

THRESHOLDS = (0.0, 0.5, 0.7, 0.75, 0.85, 0.95, 1.0)


def make_index(folder: Path, pairs: list[tuple[str, str]], **options: int) -> LinkIndex:
    names, cuis = zip(*pairs, strict=True)
    build_link_index(names, cuis, folder, **options)
    return LinkIndex.load(folder)


def found_above(index: LinkIndex, mentions: list[str], threshold: float) -> list[tuple[str, np.float32] | None]:
    linked = index.link_above(mentions, threshold)
    assert linked.concept.dtype == np.int32
    assert linked.score.dtype == np.float32
    assert (linked.score[linked.concept < 0] == 0).all()
    return [
        (index.concepts[concept].as_py(), score) if concept >= 0 else None
        for concept, score in zip(linked.concept.tolist(), linked.score, strict=True)
    ]


def exhaustive(index: LinkIndex, mentions: list[str], threshold: float) -> list[tuple[str, np.float32] | None]:
    return [
        (best[0].cui, np.float32(best[0].score)) if best and best[0].score > threshold else None
        for best in index.link(mentions, top=1)
    ]


def perturb(draw: random.Random, text: str, words: list[str]) -> str:
    """A misspelling, a word more or less, words in another order, or the text twice."""
    letters, parts = list(text), text.split()
    place = draw.randrange(len(letters))
    kind = draw.randrange(7)
    if kind == 0:
        del letters[place]
    elif kind == 1:
        letters.insert(place, draw.choice("aeiost-"))
    elif kind == 2:
        letters[place] = draw.choice("aeiost ")
    elif kind == 3:
        return " ".join([*parts, draw.choice(words)])
    elif kind == 4:
        return " ".join(draw.sample(parts, len(parts)))
    elif kind == 5 and len(parts) > 1:
        return " ".join(parts[1:])
    elif kind == 6:
        return f"{text} {text}"
    return "".join(letters)


@pytest.fixture(scope="module")
def real_names(real_data: Path) -> list[tuple[str, str]]:
    rows = (real_data / "kb" / "openkb" / "MRCONSO.RRF").read_text(encoding="utf-8").splitlines()
    columns = [row.split("|") for row in rows]
    return sorted({(column[14], column[0]) for column in columns})


@pytest.fixture(scope="module")
def real_index(real_names: list[tuple[str, str]], tmp_path_factory: pytest.TempPathFactory) -> LinkIndex:
    """The index of all 100,000 real names."""
    return make_index(tmp_path_factory.mktemp("real") / "index", real_names)


@pytest.fixture(scope="module")
def real_mentions(real_data: Path, real_names: list[tuple[str, str]]) -> list[str]:
    """Gold mentions of the corpora, and as many real names and gold mentions with changes."""
    draw = random.Random(0)
    gold: set[str] = set()
    for corpus in ("cdr_train", "ncbi_disease_train"):
        rows = (real_data / "corpora" / f"{corpus}.pubtator.txt").read_text(encoding="utf-8").splitlines()
        gold |= {row.split("\t")[3] for row in rows if row.count("\t") >= 5}
    mentions = sorted(gold)
    words = sorted({word for mention in mentions for word in mention.split()})
    source = mentions + [name for name, _ in draw.sample(real_names, 900)]
    for _ in range(2):
        source = [*source, *(perturb(draw, text, words) or "x" for text in draw.sample(source, 700))]
    return source


def test_equals_the_exhaustive_search_on_real_names(real_index: LinkIndex, real_mentions: list[str]) -> None:
    assert len(real_mentions) > 3500
    best = exhaustive(real_index, real_mentions, 0.0)
    for threshold in (0.7, 0.85, 0.93):
        expected = [found if found and found[1] > np.float32(threshold) else None for found in best]
        assert found_above(real_index, real_mentions, threshold) == expected
        assert 500 < sum(found is not None for found in expected) < len(expected) - 500


def test_order_and_batches_change_nothing(
    real_index: LinkIndex, real_mentions: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = found_above(real_index, real_mentions, 0.85)
    monkeypatch.setattr("preprocessing.linker.index._MENTIONS_AT_ONCE", 7)
    shuffled = random.Random(1).sample(range(len(real_mentions)), len(real_mentions))
    found = found_above(real_index, [real_mentions[place].upper() for place in shuffled], 0.85)
    upper = found_above(real_index, [mention.upper() for mention in real_mentions], 0.85)
    assert found == [upper[place] for place in shuffled]
    # Some letters have no single upper case; all others are looked at in lower case only.
    same = [mention.upper().lower() == mention.lower() for mention in real_mentions]
    assert [one for one, is_same in zip(upper, same, strict=True) if is_same] == [
        one for one, is_same in zip(expected, same, strict=True) if is_same
    ]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    names=st.lists(st.text(alphabet="aab C-", min_size=1, max_size=24), min_size=1, max_size=30),
    mentions=st.lists(st.text(alphabet="aab c-x", max_size=24), min_size=1, max_size=8),
    threshold=st.sampled_from(THRESHOLDS),
    min_df=st.integers(1, 3),
)
def test_equals_the_exhaustive_search_on_any_names(
    tmp_path: Path, names: list[str], mentions: list[str], threshold: float, min_df: int
) -> None:
    """Few letters make names that repeat their 3-grams and share them with many others, and equal scores."""
    pairs = [(name, f"C{place % 5}") for place, name in enumerate(names)]
    index = make_index(tmp_path / "index", pairs, min_df=min_df)
    mentions = [*mentions, *names, *(f"{name} {mention}" for name, mention in zip(names, mentions, strict=False))]
    assert found_above(index, mentions, threshold) == exhaustive(index, mentions, threshold)


def test_the_threshold_itself_is_not_above_it(tmp_path: Path) -> None:
    index = make_index(tmp_path / "index", [("aspirin", "C1"), ("ibuprofen", "C2")])
    score = float(index.link(["aspirine"])[0][0].score)
    assert 0.7 < score < 1
    assert found_above(index, ["aspirine"], score) == [None]
    assert found_above(index, ["aspirine"], score - 1e-6) == [("C1", np.float32(score))]
    assert found_above(index, ["aspirin"], 1.0) == [None]
    with pytest.raises(ValueError, match=r"threshold 1\.5"):
        index.link_above(["aspirin"], 1.5)


def test_no_mentions_and_mentions_of_nothing(tmp_path: Path) -> None:
    index = make_index(tmp_path / "index", [("aspirin", "C1"), ("zq", "C2"), ("Zq", "C1")], min_df=2)
    assert found_above(index, [], 0.85) == []
    assert found_above(index, ["", "  ", "xyz"], 0.85) == [None, None, None]
    assert found_above(index, [" ZQ "], 0.85) == [("C1", np.float32(1))]


def test_two_processes_that_compile_at_once_agree(tmp_path: Path) -> None:
    """The first use on a machine: an empty cache, and as many processes as there are workers."""
    make_index(tmp_path / "index", [("aspirin", "C1"), ("ibuprofen", "C2")])
    code = (
        "import sys; from pathlib import Path; from preprocessing.linker import LinkIndex\n"
        "print(LinkIndex.load(Path(sys.argv[1])).link_above(['aspirins', 'ibuprofen'], 0.7))"
    )
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, "-c", code, str(tmp_path / "index")]
    started = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = [process.communicate()[0] for process in started]
    assert [process.returncode for process in started] == [0, 0]
    assert answers[0] == answers[1]
    assert "array([0, 1]" in answers[0]
    assert list((tmp_path / "cache").rglob("*.nbc"))


def test_a_machine_without_a_place_for_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])

    def add_one(number: int) -> int:
        return number + 1

    assert compiled(add_one)(2) == 3
