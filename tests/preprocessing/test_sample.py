from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kebiolm.cli import app
from kebiolm.data.knowledge_base import KnowledgeBase
from kebiolm.errors import UserError
from kebiolm.files import read_manifest
from preprocessing.document import Document
from preprocessing.sample.abstracts import make_abstracts
from preprocessing.sample.build import FORMAT, VERSION, SampleSettings, build_sample
from preprocessing.sample.concepts import AMBIGUOUS_NAMES, all_concepts
from preprocessing.sample.relations import RELATIONS, all_facts
from preprocessing.sources.open_source import open_source
from preprocessing.sources.pubtator import GoldDocument, read_gold

SMALL = SampleSettings(num_abstracts=30, abstracts_per_file=10)


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def gold_documents(folder: Path) -> list[GoldDocument]:
    documents = list(read_gold(folder / "gold.pubtator.txt"))
    assert all(isinstance(document, GoldDocument) for document in documents)
    return documents


def test_same_seed_same_bytes_in_another_process(tmp_path: Path) -> None:
    build_sample(tmp_path / "here", SMALL)
    code = (
        "import sys; from pathlib import Path; from preprocessing.sample.build import *;"
        "build_sample(Path(sys.argv[1]), SampleSettings(num_abstracts=30, abstracts_per_file=10))"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "there")], check=True, env={"PYTHONHASHSEED": "1"})
    assert bytes_of(tmp_path / "here") == bytes_of(tmp_path / "there")


def test_another_seed_gives_other_abstracts_and_the_same_umls(tmp_path: Path) -> None:
    build_sample(tmp_path / "a", SMALL)
    build_sample(tmp_path / "b", SampleSettings(num_abstracts=30, abstracts_per_file=10, seed=1))
    a, b = bytes_of(tmp_path / "a"), bytes_of(tmp_path / "b")
    assert a["gold.pubtator.txt"] != b["gold.pubtator.txt"]
    assert a["umls/MRCONSO.RRF"] == b["umls/MRCONSO.RRF"]


def test_first_abstracts_do_not_depend_on_the_count() -> None:
    assert make_abstracts(40, seed=3)[:20] == make_abstracts(20, seed=3)


def test_concepts_are_distinct_and_well_formed() -> None:
    concepts = all_concepts()
    assert 250 <= len(concepts) <= 500
    assert len({concept.cui for concept in concepts}) == len(concepts)
    assert all(re.fullmatch(r"C\d{7}", concept.cui) for concept in concepts)
    assert all(2 <= len(concept.names) <= 6 for concept in concepts)
    cuis_of = defaultdict(set)
    for concept in concepts:
        for name in concept.names:
            cuis_of[name.lower()].add(concept.cui)
    assert {name for name, cuis in cuis_of.items() if len(cuis) > 1} == {name.lower() for name in AMBIGUOUS_NAMES}


def test_facts_are_distinct_and_of_many_kinds() -> None:
    assert len(RELATIONS) >= 8
    triples = [(fact.subject.cui, fact.relation.name, fact.object.cui) for fact in all_facts()]
    assert len(set(triples)) == len(triples)
    assert all(count >= 5 for count in Counter(relation for _, relation, _ in triples).values())


def test_figure_1_of_the_paper(sample_dir: Path, sample_kb: Path) -> None:
    triples = {tuple(row.values()) for row in KnowledgeBase.load(sample_kb).triples().to_pylist()}
    assert ("C0017861", "may_prevent", "C0011603") in triples
    assert ("C0011603", "may_be_prevented_by", "C0017861") in triples
    assert ("C0011603", "may_prevent", "C0017861") not in triples
    document = gold_documents(sample_dir)[0]
    start = document.text.index("treated with glycerin show reduced inflammation after 2 hours.")
    found = {(mention.text, mention.codes) for mention in document.mentions if mention.start > start}
    assert found == {("glycerin", ("C0017861",)), ("inflammation", ("C0011603",))}


def test_knowledge_base_has_exactly_the_tables_of_the_sample(sample_kb: Path) -> None:
    kb = KnowledgeBase.load(sample_kb)
    names = {(row["name"], row["cui"]) for row in kb.names().to_pylist()}
    assert names == {(name, concept.cui) for concept in all_concepts() for name in concept.names}
    assert kb.preferred_names() == {concept.cui: concept.preferred_name for concept in all_concepts()}
    straight = {(fact.subject.cui, fact.relation.name, fact.object.cui) for fact in all_facts()}
    inverse = {(fact.object.cui, fact.relation.inverse, fact.subject.cui) for fact in all_facts()}
    assert {tuple(row.values()) for row in kb.triples().to_pylist()} == straight | inverse
    dropped = {name: counts["dropped"] for name, counts in kb.manifest["counts"]["rows"].items()}
    assert set(dropped["MRCONSO.RRF"]) == {"duplicate", "not English", "suppressed"}
    assert set(dropped["MRREL.RRF"]) == {"duplicate", "empty RELA", "self-loop", "suppressed", "unknown CUI"}
    assert all(count > 0 for name in ("MRCONSO.RRF", "MRREL.RRF") for count in dropped[name].values())


def test_gold_offsets_are_exact(sample_dir: Path) -> None:
    names = {concept.cui: {name.lower() for name in concept.names} for concept in all_concepts()}
    documents = gold_documents(sample_dir)
    assert len(documents) == 400
    for document in documents:
        position = 0
        for mention in document.mentions:
            assert position <= mention.start < mention.end
            position = mention.end
            assert document.text[mention.start : mention.end] == mention.text
            assert mention.text.lower() in names[mention.codes[0]]


def test_dictionary_finds_the_gold_mentions_and_no_others(sample_dir: Path) -> None:
    names = sorted({name.lower() for concept in all_concepts() for name in concept.names}, key=len, reverse=True)
    pattern = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, names))})(?!\w)")
    for document in gold_documents(sample_dir):
        found = [match.span() for match in pattern.finditer(document.text.lower())]
        assert found == [(mention.start, mention.end) for mention in document.mentions], document.doc_id


def test_xml_reader_gives_the_text_of_the_gold_file(sample_dir: Path) -> None:
    files = sorted((sample_dir / "pubmed").iterdir())
    assert [path.suffix for path in files] == [".xml", ".xml", ".xml", ".gz"]
    records = [record for path in files for record in open_source(path)]
    assert all(isinstance(record, Document) for record in records)
    texts = {record.doc_id: record.text for record in records}
    assert texts == {document.doc_id: document.text for document in gold_documents(sample_dir)}


def test_xml_has_what_real_files_have(sample_dir: Path) -> None:
    text = (sample_dir / "pubmed" / "sample0001.xml").read_text(encoding="utf-8")
    for part in ("<!DOCTYPE PubmedArticleSet", 'Label="BACKGROUND"', "<sup>", "<sub>", "<i>", "&lt;", "&amp;"):
        assert part in text


def test_abstracts_cover_the_facts_and_vary_the_names() -> None:
    abstracts = make_abstracts(400, seed=0)
    sentences = [len(re.findall(r"[.?](?: |$)", abstract.abstract.text)) for abstract in abstracts]
    assert min(sentences) >= 3 and max(sentences) <= 9
    mentions = [mention for abstract in abstracts for mention in abstract.document.mentions]
    surfaces = defaultdict(set)
    for abstract in abstracts:
        for mention in abstract.document.mentions:
            surfaces[mention.concept.cui].add(abstract.document.text[mention.start : mention.end].lower())
    assert len(mentions) > 3000
    assert len(surfaces) > 0.9 * len(all_concepts())
    assert sum(len(names) >= 2 for names in surfaces.values()) > 0.8 * len(surfaces)
    text = " ".join(abstract.document.text for abstract in abstracts)
    assert re.search(r"hronic obstructive pulmonary disease \(COPD\)", text)


def test_codes_stand_for_themselves(sample_dir: Path) -> None:
    lines = (sample_dir / "codes.tsv").read_text(encoding="utf-8").splitlines()
    assert lines == [f"{concept.cui}\t{concept.cui}" for concept in all_concepts()]


def test_tokenizer_loads_and_knows_the_text(sample_dir: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(sample_dir / "tokenizer")
    assert tokenizer.is_fast
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert tokenizer.convert_tokens_to_ids(special) == [0, 1, 2, 3, 4]
    assert len(tokenizer) == SampleSettings().vocab_size
    vocab = (sample_dir / "tokenizer" / "vocab.txt").read_text(encoding="utf-8").splitlines()
    assert tokenizer.convert_ids_to_tokens(list(range(len(vocab)))) == vocab
    assert tokenizer("Glycerin [MASK]")["input_ids"] == [2, *tokenizer("glycerin")["input_ids"][1:-1], 4, 3]
    for document in gold_documents(sample_dir)[:50]:
        assert 1 not in tokenizer(document.text)["input_ids"]


def test_existing_folder_needs_overwrite(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="--overwrite"):
        build_sample(tmp_path / "out", SMALL)
    build_sample(tmp_path / "out", SMALL, overwrite=True)
    build_sample(tmp_path / "out", SMALL, overwrite=True)


def test_only_a_sample_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="did not make"):
        build_sample(tmp_path, SMALL, overwrite=True)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_manifest_describes_every_file(sample_dir: Path) -> None:
    manifest = read_manifest(sample_dir, FORMAT, VERSION, made_by="kebiolm sample")
    on_disk = {path.relative_to(sample_dir).as_posix() for path in sample_dir.rglob("*") if path.is_file()}
    assert set(manifest["files"]) == on_disk - {"manifest.json"}
    assert manifest["counts"]["abstracts"] == len(gold_documents(sample_dir))


def test_command_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["sample", str(tmp_path / "out"), "--abstracts", "12"])
    assert result.exit_code == 0, result.output
    assert "12 abstracts" in result.output
    assert len(gold_documents(tmp_path / "out")) == 12
