"""One job over all nasty inputs: it ends well, and of each input comes exactly what its case says."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest

from kebiolm.errors import UserError
from preprocessing.annotation.job import AnnotationJob, list_inputs
from preprocessing.annotation.store import AnnotatedCorpus, part_name
from tests.conftest import REPOSITORY
from tests.preprocessing.annotation.here import run_here
from tests.preprocessing.nasty import ACCEPTED, REFUSED, NastyInput

ASPIRIN = "C0004057"

# The largest bombs stop at 16 MiB of one record; an interpreter with the readers takes 15 MiB.
MAX_PEAK_MIB = 150
BOMBS = ("gzip-bomb", "gzip-bomb-in-xml", "billion-laughs", "quadratic-entities", "line-of-17-mib", "record-of-17-mib")


@pytest.fixture(scope="module")
def finished(
    small_kb: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[AnnotatedCorpus, Mapping[str, Counter[str]]]:
    """The finished folder; and for each case how many documents ("documents") and rejects (by reason) it gave."""
    folder = tmp_path_factory.mktemp("nasty")
    cases = [(case.name, path) for case in ACCEPTED for path in case.write(folder / "in")]
    inputs = list_inputs([path for _, path in cases])
    job = AnnotationJob(inputs=inputs, kb=small_kb, model="dictionary", out=folder / "out")
    run_here(job)
    corpus = AnnotatedCorpus.load(job.out)
    found = {name: Counter[str]() for name, _ in cases}
    assert len(corpus.part_sizes) == len(cases)  # no file is larger than one slice
    for number, (name, _) in enumerate(cases):
        part = json.loads((job.out / f"{part_name(number)}.json").read_text(encoding="utf-8"))
        assert part["counts"]["documents_out"] == corpus.part_sizes[number]
        found[name].update({"documents": corpus.part_sizes[number], **part["rejects_by_reason"]})
    return corpus, found


@pytest.mark.parametrize("case", ACCEPTED, ids=lambda case: case.name)
def test_nothing_is_lost(case: NastyInput, finished: tuple[AnnotatedCorpus, Mapping[str, Counter[str]]]) -> None:
    _, found = finished
    assert +found[case.name] == +Counter({"documents": case.documents, **case.rejects})


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.name)
def test_what_cannot_be_read_is_refused_before_the_job_starts(case: NastyInput, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=case.refused) as error:
        list_inputs(case.write(tmp_path))
    assert "\n" not in str(error.value)


def test_sums_and_contents(finished: tuple[AnnotatedCorpus, Mapping[str, Counter[str]]]) -> None:
    corpus, _ = finished
    counts = corpus.manifest["counts"]
    assert counts["documents_in"] == counts["documents_out"] + counts["rejects"]
    assert counts["documents_out"] == sum(case.documents for case in ACCEPTED)
    assert counts["rejects"] == sum(sum(case.rejects.values()) for case in ACCEPTED)
    assert counts["rejects"] == sum(1 for _ in corpus.iter_rejects())
    assert counts["abbreviations_skipped"] == 1
    for document in corpus.iter_documents():
        for mention in document.mentions:
            assert (document.text[mention.start : mention.end].lower(), mention.cui) == ("aspirin", ASPIRIN)
        if " aspirin " in f" {document.text.lower()} ":
            assert document.mentions, document.doc_id
        assert "root:" not in document.text  # of /etc/passwd


def test_bombs_cost_no_memory(tmp_path: Path) -> None:
    paths = [path for case in ACCEPTED if case.name in BOMBS for path in case.write(tmp_path)]
    assert len(paths) == len(BOMBS)
    # What `resource` reports would include the process that this one was forked from.
    code = """if True:
        import sys
        from pathlib import Path
        from preprocessing.sources import open_source
        for path in sys.argv[1:]:
            sum(1 for _ in open_source(Path(path)))
        print(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])"""
    command = [sys.executable, "-c", code, *map(str, paths)]
    child = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=True)
    assert int(child.stdout) < MAX_PEAK_MIB * 1024
